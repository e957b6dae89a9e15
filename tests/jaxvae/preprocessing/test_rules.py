"""Preprocessing: conversions, units and errors of each likelihood."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.models.likelihoods import LIKELIHOODS
from jaxvae.preprocessing.rules import RULES, Preprocessing, Splits, preprocess

KEY = jax.random.key(7)
REALS = ("gaussian", "laplace")
PIXELS = ("discretized_logistic", "logistic_mixture", "color_logistic_mixture", "categorical")
COUNTS = ("poisson", "negative_binomial", "zero_inflated_negative_binomial")


def dataset_of(
    train: np.ndarray, test: np.ndarray | None = None, validation: np.ndarray | None = None
) -> Splits:
    return Splits(
        "made up",
        train,
        train[:0] if validation is None else validation,
        train if test is None else test,
    )


def grey(count: int = 64, seed: int = 0) -> np.ndarray:
    """[N, 4, 3, 1] uint8 with every grey level from 0 to 255 possible."""
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 3, 1), dtype=np.uint8)


def prepared(preprocessing: Preprocessing, key: jax.Array, values: np.ndarray) -> np.ndarray:
    """[N, *data_shape], each example with its own key."""
    keys = jax.random.split(key, len(values))
    return np.asarray(jax.jit(jax.vmap(preprocessing.prepare))(keys, values))


# Golden: units, names and offsets.


@pytest.mark.parametrize(
    ("train", "likelihood", "flags", "name", "offset", "unit"),
    [
        (grey(), "bernoulli", {}, "dynamic binarization", 0, "binary pixels"),
        (grey(), "bernoulli", {"binarize": "static"}, "static binarization", 0, "binary pixels"),
        (
            grey(),
            "bernoulli",
            {"grey_probabilities": True},
            "grey levels as Bernoulli probabilities",
            0,
            "grey levels, which are not binary pixels",
        ),
        (grey() // 128, "bernoulli", {}, "none", 0, "binary pixels"),
        (grey(), "gaussian", {}, "uniform dequantization to [0, 1]", 8, "8-bit pixels"),
        (grey().astype(np.float32), "gaussian", {}, "none", 0, "real numbers as stored"),
        (
            grey().astype(np.int32),
            "gaussian",
            {},
            "integers as real numbers",
            0,
            "integers taken as real numbers",
        ),
    ],
)
def test_preprocessing_has_the_expected_name_offset_and_unit(
    train: np.ndarray, likelihood: str, flags: dict, name: str, offset: float, unit: str
) -> None:
    _, preprocessing = preprocess(dataset_of(train), likelihood=likelihood, **flags)
    assert preprocessing[1:4] == (name, offset, unit)


KINDS = {
    "bytes": grey(),
    "bits": grey() // 128,
    "levels": grey().astype(np.float32) / 255,
    "reals": grey().astype(np.float32) - 90.5,
    "halves": grey().astype(np.float32) / 2,
    "whole": grey().astype(np.float32) * 3,
    "counts": grey().astype(np.int32) * 3,
    "signed": grey().astype(np.int32) - 90,
}
DEQUANTIZED = ("uniform dequantization to [0, 1]", 8, "8-bit pixels")
AS_STORED = ("none", 0, "real numbers as stored")
AS_REALS = ("integers as real numbers", 0, "integers taken as real numbers")
BYTES = ("none (integers 0 to 255)", 0, "8-bit pixels")
WHOLE = ("none (counts)", 0, "counts")
OUTSIDE_UNIT = r"continuous_bernoulli needs values in \[0, 1\]; the train split of made up"
NO_BYTES = "this likelihood needs 8-bit integers .uint8.; made up is stored as {}. Use likelihood"
NO_COUNTS = r"counts must lie in \[0, 16,777,216\]; the train split of made up has values from -90"
FRACTIONS = "counts must be whole numbers; the train split of made up has fractions. Use like"
OUTCOMES = {
    **{
        name: {
            "bytes": DEQUANTIZED,
            "bits": DEQUANTIZED,
            "levels": AS_STORED,
            "reals": AS_STORED,
            "halves": AS_STORED,
            "whole": AS_STORED,
            "counts": AS_REALS,
            "signed": AS_REALS,
        }
        for name in REALS
    },
    "continuous_bernoulli": {
        "bytes": DEQUANTIZED,
        "bits": DEQUANTIZED,
        "levels": ("none", 0, "values in [0, 1] as stored"),
        "reals": OUTSIDE_UNIT + " has values from -90.5 to .*Use likelihood=gaussian",
        **dict.fromkeys(("halves", "whole", "counts", "signed"), OUTSIDE_UNIT),
    },
    **{
        name: {
            "bytes": BYTES,
            "bits": BYTES,
            **dict.fromkeys(("levels", "reals", "halves", "whole"), NO_BYTES.format("float32")),
            **dict.fromkeys(("counts", "signed"), NO_BYTES.format("int32")),
        }
        for name in PIXELS
    },
    **{
        name: {
            "bytes": WHOLE,
            "bits": WHOLE,
            "levels": FRACTIONS,
            "reals": NO_COUNTS,
            "halves": FRACTIONS,
            "whole": WHOLE,
            "counts": WHOLE,
            "signed": NO_COUNTS,
        }
        for name in COUNTS
    },
}
"""Likelihood -> kind of data -> expected name, offset and unit, or expected error."""


@pytest.mark.parametrize(
    ("likelihood", "kind"), [(name, kind) for name in OUTCOMES for kind in KINDS]
)
def test_each_likelihood_accepts_only_its_kind_of_data(likelihood: str, kind: str) -> None:
    outcome, dataset = OUTCOMES[likelihood][kind], dataset_of(KINDS[kind])
    if isinstance(outcome, str):
        with pytest.raises(ValueError, match=outcome):
            preprocess(dataset, likelihood=likelihood)
        return
    kept, preprocessing = preprocess(dataset, likelihood=likelihood)
    assert kept is dataset
    assert preprocessing[1:4] == outcome
    x = prepared(preprocessing, KEY, KINDS[kind][:8])
    assert x.dtype == np.float32
    if outcome is DEQUANTIZED:
        np.testing.assert_array_equal(np.floor(x * 256), KINDS[kind][:8])
    else:
        np.testing.assert_array_equal(x, KINDS[kind][:8])
        np.testing.assert_allclose(preprocessing.mean, KINDS[kind].mean(axis=0), rtol=1e-6)


def test_every_likelihood_has_a_rule() -> None:
    assert set(RULES) == set(LIKELIHOODS) == {"bernoulli", *OUTCOMES}


@pytest.mark.parametrize(
    ("train", "likelihood", "flags", "expected"),
    [
        (grey(), "bernoulli", {}, lambda v: v / 255),
        (grey(), "bernoulli", {"grey_probabilities": True}, lambda v: v / 255),
        (grey() // 128, "bernoulli", {}, lambda v: v),
        (grey() // 128 * 255, "bernoulli", {}, lambda v: v / 255),
        (grey(), "gaussian", {}, lambda v: (v + 0.5) / 256),
        (grey().astype(np.float32) - 90, "gaussian", {}, lambda v: v),
        (grey().astype(np.int32), "gaussian", {}, lambda v: v),
    ],
)
def test_mean_is_that_of_the_training_split(
    train: np.ndarray,
    likelihood: str,
    flags: dict,
    expected: Callable[[np.ndarray], np.ndarray],
) -> None:
    dataset = dataset_of(train, test=np.zeros_like(train))
    _, preprocessing = preprocess(dataset, likelihood=likelihood, **flags)
    right = expected(train.astype(np.float64)).mean(axis=0)
    assert preprocessing.mean.dtype == np.float32
    np.testing.assert_allclose(preprocessing.mean, right, rtol=1e-6)


# Laws.


def test_dynamic_binarization_draws_each_pixel_with_its_grey_level() -> None:
    levels = np.arange(256, dtype=np.uint8)[None]
    _, preprocessing = preprocess(dataset_of(levels), likelihood="bernoulli", binarize="dynamic")
    draws = prepared(preprocessing, KEY, np.repeat(levels, 4_000, axis=0))
    assert set(np.unique(draws)) == {0.0, 1.0}
    probability = np.arange(256) / 255
    standard_error = np.sqrt(probability * (1 - probability) / 4_000)
    assert (abs(draws.mean(axis=0) - probability) <= 5 * standard_error).all()


def test_dynamic_binarization_depends_only_on_its_key() -> None:
    _, preprocessing = preprocess(dataset_of(grey()), likelihood="bernoulli")
    first, again = (preprocessing.prepare(KEY, grey()[0]) for _ in range(2))
    other = preprocessing.prepare(jax.random.key(8), grey()[0])
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_dynamic_binarization_accepts_floats_in_unit_interval() -> None:
    train = grey().astype(np.float32) / 255
    with pytest.raises(ValueError, match=r"has grey levels. Use binarize=dynamic"):
        preprocess(dataset_of(train), likelihood="bernoulli")
    _, floats = preprocess(dataset_of(train), likelihood="bernoulli", binarize="dynamic")
    _, bytes_ = preprocess(dataset_of(grey()), likelihood="bernoulli", binarize="dynamic")
    np.testing.assert_array_equal(prepared(floats, KEY, train), prepared(bytes_, KEY, grey()))


def test_static_binarization_is_drawn_once_with_the_grey_levels() -> None:
    levels = np.repeat(np.arange(256, dtype=np.uint8)[None], 5_000, axis=0)
    drawn, preprocessing = preprocess(
        dataset_of(levels, test=levels[:10]), likelihood="bernoulli", binarize="static"
    )
    assert drawn.train.dtype == np.uint8
    probability = np.arange(256) / 255
    standard_error = np.sqrt(probability * (1 - probability) / len(levels))
    assert (abs(drawn.train.mean(axis=0) - probability) <= 5 * standard_error).all()
    np.testing.assert_allclose(preprocessing.mean, drawn.train.mean(axis=0), rtol=1e-6)
    assert not (drawn.train[:10] == drawn.test).all()
    np.testing.assert_array_equal(
        prepared(preprocessing, KEY, drawn.test), drawn.test.astype(np.float32)
    )


def test_static_binarization_does_not_depend_on_num_validation() -> None:
    learn, test = grey(4_111), grey(21, seed=1)
    whole, cut = (
        preprocess(
            dataset_of(learn[:stop], test, learn[stop:]), likelihood="bernoulli", binarize="static"
        )[0]
        for stop in (4_111, 4_105)
    )
    np.testing.assert_array_equal(whole.train, np.concatenate([cut.train, cut.validation]))
    fewer, _ = preprocess(dataset_of(learn[:99], test), likelihood="bernoulli", binarize="static")
    np.testing.assert_array_equal(whole.test, cut.test)
    np.testing.assert_array_equal(whole.test, fewer.test)


def test_dequantization_fills_the_width_of_a_grey_level() -> None:
    train = np.repeat(np.array([[0, 100, 255]], np.uint8), 20_000, axis=0)
    _, preprocessing = preprocess(dataset_of(train), likelihood="gaussian")
    noise = prepared(preprocessing, KEY, train) * 256 - train
    assert noise.min() >= 0
    assert noise.max() <= 1
    # Mean and variance of U[0, 1), each within five of its standard errors.
    assert (abs(noise.mean(axis=0) - 1 / 2) < 5 * math.sqrt(1 / 12 / 20_000)).all()
    assert (abs(noise.var(axis=0) - 1 / 12) < 5 * math.sqrt(1 / 180 / 20_000)).all()


def test_the_offset_turns_the_uniform_density_into_eight_bits() -> None:
    _, preprocessing = preprocess(dataset_of(grey()), likelihood="gaussian")
    black, white = (
        preprocessing.prepare(KEY, np.full((1,), value, np.uint8)) for value in (0, 255)
    )
    width = (white - black).item() / 255
    assert preprocessing.offset_bits == pytest.approx(-math.log2(width), rel=1e-6)


@pytest.mark.parametrize(
    ("top", "dtype"), [(1, np.uint8), (255, np.uint8), (1, np.float32), (1, np.int32)]
)
@pytest.mark.parametrize("binarize", ["auto", "none", "dynamic", "static"])
def test_binary_data_pass_unchanged(top: int, dtype: type, binarize: str) -> None:
    train = (grey() // 128 * top).astype(dtype)
    kept, preprocessing = preprocess(dataset_of(train), likelihood="bernoulli", binarize=binarize)
    assert kept.train is train
    assert preprocessing.name.startswith("none")
    np.testing.assert_array_equal(prepared(preprocessing, KEY, train), train / top)


def test_grey_probabilities_are_the_grey_levels() -> None:
    _, preprocessing = preprocess(
        dataset_of(grey()), likelihood="bernoulli", binarize="none", grey_probabilities=True
    )
    np.testing.assert_allclose(prepared(preprocessing, KEY, grey()), grey() / 255, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
@pytest.mark.parametrize("likelihood", ["bernoulli", *PIXELS])
def test_whole_numbers_up_to_255_are_8_bit_pixels(likelihood: str, dtype: type) -> None:
    kept, preprocessing = preprocess(dataset_of(grey().astype(dtype)), likelihood=likelihood)
    _, expected = preprocess(dataset_of(grey()), likelihood=likelihood)
    np.testing.assert_array_equal(kept.train, grey())
    assert kept.train.dtype == np.uint8
    assert preprocessing[:4] == expected[:4]


# Transforms.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("likelihood", "dtype"),
    [
        *[(likelihood, np.uint8) for likelihood in sorted(RULES)],
        *[(likelihood, np.float32) for likelihood in sorted(RULES) if likelihood not in PIXELS],
    ],
)
def test_prepare_eager_jit_and_vmap_agree(likelihood: str, dtype: type) -> None:
    train = grey() if dtype == np.uint8 else (grey() // 128).astype(np.float32)
    _, preprocessing = preprocess(dataset_of(train), likelihood=likelihood)
    keys = jax.random.split(KEY, 5)
    eager = [preprocessing.prepare(key, x) for key, x in zip(keys, train[:5], strict=True)]
    jitted = [
        jax.jit(preprocessing.prepare)(key, x) for key, x in zip(keys, train[:5], strict=True)
    ]
    assert eager[0].dtype == jnp.float32
    np.testing.assert_allclose(eager, jitted, rtol=1e-6)
    np.testing.assert_allclose(eager, jax.vmap(preprocessing.prepare)(keys, train[:5]), rtol=1e-6)


# Failures.


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"likelihood": "poison"}, "one of bernoulli, .*, poisson, .*; got 'poison'. Use one"),
        (
            {"likelihood": "bernoulli", "binarize": "yes"},
            "auto, dynamic, static or none; got 'yes'",
        ),
        (
            {"likelihood": "bernoulli", "binarize": "none"},
            "train split of made up has grey levels. Use binarize=dynamic, or grey_prob",
        ),
        (
            {"likelihood": "bernoulli", "binarize": "static", "grey_probabilities": True},
            "got binarize static. Leave out grey_probabilities or binarize=static",
        ),
        (
            {"likelihood": "bernoulli", "binarize": "dynamic", "grey_probabilities": True},
            "got binarize dynamic. Leave out grey_probabilities or binarize=dynamic",
        ),
        (
            {"likelihood": "gaussian", "binarize": "dynamic"},
            "binarize=dynamic is for binary pixels, and the likelihood is for other data. Leave",
        ),
        (
            {"likelihood": "gaussian", "grey_probabilities": True},
            "grey_probabilities is for binary pixels, and the likelihood is for other data",
        ),
    ],
)
def test_invalid_flags_are_rejected(flags: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preprocess(dataset_of(grey()), **flags)


OUTSIDE = np.array([[-3.2, 0.5], [0.0, 7.1]], np.float32)
INSIDE = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_values_outside_the_support_are_rejected_in_every_split(split: str) -> None:
    dataset = dataset_of(INSIDE)._replace(**{split: OUTSIDE})
    message = rf"needs values in \[0, 1\]; the {split} split .* from -3.2 to 7.1. Use likelihood="
    with pytest.raises(ValueError, match=message):
        preprocess(dataset, likelihood="bernoulli")
    dataset = dataset_of(INSIDE)._replace(**{split: abs(INSIDE - 0.25)})
    with pytest.raises(ValueError, match=f"the {split} split of made up has grey levels"):
        preprocess(dataset, likelihood="bernoulli")
    dataset = dataset_of(INSIDE)._replace(**{split: INSIDE * np.float32(np.nan)})
    with pytest.raises(ValueError, match=f"needs finite values; the {split} split.*nan to nan"):
        preprocess(dataset, likelihood="gaussian")
    with pytest.raises(ValueError, match=f"the {split} split of made up has values from nan"):
        preprocess(dataset, likelihood="bernoulli")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("likelihood", ["continuous_bernoulli", "laplace", *COUNTS])
def test_every_split_is_checked(split: str, likelihood: str) -> None:
    needs = {
        "continuous_bernoulli": r"needs values in \[0, 1\]",
        "laplace": "needs finite values",
    }.get(likelihood, r"counts must lie in \[0, 16,777,216\]")
    for value, shown in [(np.nan, "nan to nan"), (np.inf, "inf"), (-np.inf, "-inf to 1")]:
        bad = np.array([[value, 1.0]], np.float32)
        dataset = dataset_of(INSIDE)._replace(**{split: bad})
        with pytest.raises(ValueError, match=f"{needs}; the {split} split of made up .*{shown}"):
            preprocess(dataset, likelihood=likelihood)
    if likelihood in COUNTS:
        dataset = dataset_of(INSIDE)._replace(**{split: INSIDE / 2})
        with pytest.raises(ValueError, match=f"whole numbers; the {split} split of made up"):
            preprocess(dataset, likelihood=likelihood)


def test_counts_above_the_integers_of_float32_are_rejected() -> None:
    counts = np.array([[0, 2**24 - 1], [1, 2**24]], np.int32)
    _, preprocessing = preprocess(dataset_of(counts), likelihood="poisson")
    np.testing.assert_array_equal(prepared(preprocessing, KEY, counts).astype(np.int64), counts)
    with pytest.raises(ValueError, match=r"counts must lie in \[0, 16,777,216\]; the train split"):
        preprocess(dataset_of(counts + 1), likelihood="poisson")


@pytest.mark.parametrize("likelihood", [name for name in RULES if name != "bernoulli"])
def test_flags_for_binary_pixels_are_rejected_by_other_likelihoods(likelihood: str) -> None:
    for flags, flag in [
        ({"binarize": "dynamic"}, "binarize=dynamic"),
        ({"binarize": "static"}, "binarize=static"),
        ({"grey_probabilities": True}, "grey_probabilities"),
    ]:
        message = f"{flag} is for binary pixels, and the likelihood is for other data. Leave it out"
        with pytest.raises(ValueError, match=message):
            preprocess(dataset_of(grey()), likelihood=likelihood, **flags)


def test_counts_are_rejected_as_probabilities() -> None:
    counts = np.array([[0, 37], [1, 2]], np.int32)
    with pytest.raises(ValueError, match=r"values in \[0, 1\].* from 0 to 37. Use likelihood=ga"):
        preprocess(dataset_of(counts), likelihood="bernoulli", binarize="dynamic")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_splits_of_two_scales_are_rejected(split: str) -> None:
    dataset = dataset_of(grey() // 128)._replace(**{split: grey() // 128 * 255})
    with pytest.raises(ValueError, match=r"one scale; train has values up to 1, .* up to 255"):
        preprocess(dataset, likelihood="bernoulli")
