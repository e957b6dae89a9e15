"""Preprocessing of stored examples before a model sees them, and its description in words.

A likelihood needs data of its kind: binary pixels for a Bernoulli, real numbers for a Gaussian.
`preprocess` chooses the conversion from the stored type and rejects meaningless combinations. A
probability mass over integers must see the integers themselves, so its rule never dequantizes.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import Dataset
from experiments.data.splits import SPLITS
from jaxvae.cpu import threefry

STATIC_SEED = 0
EXAMPLES_AT_ONCE = 4096
MOST_COUNTS = 2**24
"""Largest count: above it float32 cannot represent every integer."""


class Preprocessing(NamedTuple):
    """Conversion of one stored example to x.

    Attributes:
        prepare: (key, stored example [*data_shape]) -> x float32 [*data_shape]; pure.
        name: Description of the conversion, in words.
        offset_bits: Bits to add to -bound / (D log 2) for bits per dimension of `unit`.
        unit: Data that bits per dimension refer to, in words.
        mean: [*data_shape] float32, mean of x over the training split.
        standardizes: Whether the model sees x in units of the training split (`units_of`);
            `prepare` does not apply them.
    """

    prepare: Callable[[jax.Array, jax.Array], jax.Array]
    name: str
    offset_bits: float
    unit: str
    mean: np.ndarray
    standardizes: bool = False


def preprocess(
    dataset: Dataset,
    *,
    likelihood: str,
    binarize: str = "auto",
    grey_probabilities: bool = False,
    standardize: str = "none",
) -> tuple[Dataset, Preprocessing]:
    """Return the data set and the preprocessing of its examples for a likelihood.

    Args:
        dataset: The data as loaded; only static binarization changes them.
        likelihood: A key of `RULES`.
        binarize: dynamic (each pixel drawn anew at each call), static (drawn once, the same in
            all runs), none, or auto: dynamic for 8-bit data under a Bernoulli, else none.
        grey_probabilities: Accept grey levels in [0, 1] in place of binary pixels under a
            Bernoulli.
        standardize: columns, none, or auto: columns for real numbers under a Gaussian or a
            Laplace, but none for 8-bit data, which are scaled to [0, 1].

    Raises:
        ValueError: The data are outside the likelihood's support, or the flags conflict.
    """
    if likelihood not in RULES:
        raise ValueError(
            f"likelihood must be one of {', '.join(RULES)}; got {likelihood!r}. Use one of them."
        )
    if binarize not in ("auto", "dynamic", "static", "none"):
        raise ValueError(
            f"binarize must be auto, dynamic, static or none; got {binarize!r}. Use one of them."
        )
    if grey_probabilities and binarize in ("dynamic", "static"):
        raise ValueError(
            "grey_probabilities needs binarize none, as binary pixels have no grey levels left; "
            f"got binarize {binarize}. Leave out --grey-probabilities or --binarize={binarize}."
        )
    dataset, preprocessing = RULES[likelihood](dataset, binarize, grey_probabilities)
    real = RULES[likelihood] is _for_real_values and dataset.train.dtype != np.uint8
    if standardize == "none" or (standardize == "auto" and not real):
        return dataset, preprocessing
    if not real:
        raise ValueError(
            f"--standardize=columns is for real numbers; {dataset.name} under {likelihood} has "
            f"{preprocessing.name}. Leave it out."
        )
    name = "columns standardized inside the model"
    name = name if preprocessing.name == "none" else f"{preprocessing.name}, {name}"
    return dataset, preprocessing._replace(name=name, standardizes=True)


def _for_bernoulli(
    dataset: Dataset, binarize: str, grey_probabilities: bool
) -> tuple[Dataset, Preprocessing]:
    top = _top_of_range(dataset)
    _require_range("bernoulli", dataset, top, "--likelihood=gaussian, or rescale them")
    grey_split = _split_with_grey(dataset, top)
    if grey_split is None:
        name = "none" if top == 1 else "none (0 and 255 stand for 0 and 1)"
        return dataset, _scaled(dataset, top, name, "binary pixels")
    if binarize == "auto" and top == 255 and not grey_probabilities:
        binarize = "dynamic"
    if binarize == "dynamic":
        return dataset, _dynamic_binarization(dataset, top)
    if binarize == "static":
        drawn = _drawn_once(dataset, top)
        return drawn, _scaled(drawn, 1, "static binarization", "binary pixels")
    if not grey_probabilities:
        raise ValueError(
            f"bernoulli needs binary pixels; the {grey_split} split of {dataset.name} has grey "
            "levels. Use --binarize=dynamic, or --grey-probabilities to take them as they are."
        )
    name = "grey levels as Bernoulli probabilities"
    return dataset, _scaled(dataset, top, name, "grey levels, which are no binary pixels")


def _for_real_values(
    dataset: Dataset, binarize: str, grey_probabilities: bool
) -> tuple[Dataset, Preprocessing]:
    _reject_binary_flags(binarize, grey_probabilities)
    if dataset.train.dtype == np.uint8:
        return dataset, _uniform_dequantization(dataset)
    if np.issubdtype(dataset.train.dtype, np.integer):
        name = "integers as real numbers"
        return dataset, _scaled(dataset, 1, name, "integers taken as real numbers")
    _require_finite(dataset)
    return dataset, _scaled(dataset, 1, "none", "real numbers as stored")


def _for_unit_interval(
    dataset: Dataset, binarize: str, grey_probabilities: bool
) -> tuple[Dataset, Preprocessing]:
    _reject_binary_flags(binarize, grey_probabilities)
    if dataset.train.dtype == np.uint8:
        return dataset, _uniform_dequantization(dataset)
    _require_range("continuous_bernoulli", dataset, 1, "--likelihood=gaussian")
    return dataset, _scaled(dataset, 1, "none", "values in [0, 1] as stored")


def _for_8_bit_pixels(
    dataset: Dataset, binarize: str, grey_probabilities: bool
) -> tuple[Dataset, Preprocessing]:
    _reject_binary_flags(binarize, grey_probabilities)
    if dataset.train.dtype != np.uint8:
        raise ValueError(
            f"this likelihood needs 8-bit integers (uint8); {dataset.name} is stored as "
            f"{dataset.train.dtype}. Use --likelihood=gaussian, or store it as uint8."
        )
    return dataset, _scaled(dataset, 1, "none (integers 0 to 255)", "8-bit pixels")


def _for_counts(
    dataset: Dataset, binarize: str, grey_probabilities: bool
) -> tuple[Dataset, Preprocessing]:
    _reject_binary_flags(binarize, grey_probabilities)
    for split, values in _filled(dataset).items():
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= MOST_COUNTS):
            raise ValueError(
                f"counts must lie in [0, {MOST_COUNTS:,}]; the {split} split of {dataset.name} has "
                f"values from {low:.6g} to {high:.6g}. Use --likelihood=gaussian."
            )
        if any((chunk != np.round(chunk)).any() for chunk in _chunked(values)):
            raise ValueError(
                f"counts must be whole numbers; the {split} split of {dataset.name} has fractions. "
                "Use --likelihood=gaussian."
            )
    return dataset, _scaled(dataset, 1, "none (counts)", "counts")


def _reject_binary_flags(binarize: str, grey_probabilities: bool) -> None:
    if binarize in ("dynamic", "static") or grey_probabilities:
        flag = "--grey-probabilities" if grey_probabilities else f"--binarize={binarize}"
        raise ValueError(
            f"{flag} is for binary pixels, and the likelihood is for other data. Leave it out, or "
            "use --likelihood=bernoulli."
        )


RULES = {
    "bernoulli": _for_bernoulli,
    "continuous_bernoulli": _for_unit_interval,
    "gaussian": _for_real_values,
    "laplace": _for_real_values,
    "discretized_logistic": _for_8_bit_pixels,
    "logistic_mixture": _for_8_bit_pixels,
    "categorical": _for_8_bit_pixels,
    "poisson": _for_counts,
    "negative_binomial": _for_counts,
    "zero_inflated_negative_binomial": _for_counts,
}
"""Likelihood -> rule that prepares stored examples for it."""


def _scaled(dataset: Dataset, top: int, name: str, unit: str) -> Preprocessing:
    def prepare(key: jax.Array, example: jax.Array) -> jax.Array:
        del key
        return example.astype(jnp.float32) / top

    return Preprocessing(prepare, name, 0.0, unit, _mean(dataset.train) / np.float32(top))


def _dynamic_binarization(dataset: Dataset, top: int) -> Preprocessing:
    def prepare(key: jax.Array, example: jax.Array) -> jax.Array:
        p = example.ravel().astype(jnp.float32) / top  # flat: draws several entries at once
        return threefry.bernoulli(key, p).astype(jnp.float32).reshape(example.shape)

    mean = _mean(dataset.train) / np.float32(top)
    return Preprocessing(prepare, "dynamic binarization", 0.0, "binary pixels", mean)


def _uniform_dequantization(dataset: Dataset) -> Preprocessing:
    """Dequantize: x = (v + u) / 256 with u ~ U[0, 1), whose density bounds the mass of v below.

    Ref: Theis, van den Oord and Bethge, A note on the evaluation of generative models, 2016, ICLR.
    """

    def prepare(key: jax.Array, example: jax.Array) -> jax.Array:
        noise = jax.random.uniform(key, example.shape, jnp.float32)
        return (example.astype(jnp.float32) + noise) / 256

    mean = (_mean(dataset.train) + np.float32(0.5)) / np.float32(256)
    return Preprocessing(prepare, "uniform dequantization to [0, 1]", 8.0, "8-bit pixels", mean)


def _drawn_once(dataset: Dataset, top: int) -> Dataset:
    """Draw every pixel once from Bernoulli(value / top), in the order of the examples.

    Training and validation split share one random stream and the test split has its own, so that
    the pixels of an example do not depend on num_validation.
    """
    learn = np.random.default_rng((STATIC_SEED, 0))
    test = np.random.default_rng((STATIC_SEED, 1))
    return dataset._replace(
        train=_draw(learn, dataset.train, top),
        validation=_draw(learn, dataset.validation, top),
        test=_draw(test, dataset.test, top),
    )


def _draw(rng: np.random.Generator, values: np.ndarray, top: int) -> np.ndarray:
    drawn = np.empty(values.shape, np.uint8)
    for rows in _chunks(values):
        uniform = rng.random(values[rows].shape, np.float32)
        drawn[rows] = uniform < values[rows] / np.float32(top)
    return drawn


def _top_of_range(dataset: Dataset) -> int:
    """Stored value that stands for probability 1: 255 for 8-bit data, unless all are 0 or 1."""
    if dataset.train.dtype != np.uint8:
        return 1
    highest = {split: int(values.max()) for split, values in _filled(dataset).items()}
    binary = [split for split, value in highest.items() if value == 1]
    grey = [split for split, value in highest.items() if value > 1]
    if binary and grey:
        raise ValueError(
            f"The splits of {dataset.name} must share one scale; {binary[0]} has values up to 1, "
            f"{grey[0]} up to {highest[grey[0]]}. Rescale one of them."
        )
    return 255 if grey else 1


def _require_range(likelihood: str, dataset: Dataset, top: int, remedy: str) -> None:
    for split, values in _filled(dataset).items():
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= top):
            raise ValueError(
                f"{likelihood} needs values in [0, {top}]; the {split} split of {dataset.name} has "
                f"values from {low:.6g} to {high:.6g}. Use {remedy}."
            )


def _require_finite(dataset: Dataset) -> None:
    for split, values in _filled(dataset).items():
        low, high = values.min(), values.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError(
                f"The likelihood needs finite values; the {split} split of {dataset.name} has "
                f"values from {low:.6g} to {high:.6g}. Repair or drop such examples."
            )


def _split_with_grey(dataset: Dataset, top: int) -> str | None:
    """Name of the first split with a value other than 0 and top, or None."""
    for split, values in _filled(dataset).items():
        if any(((chunk != 0) & (chunk != top)).any() for chunk in _chunked(values)):
            return split
    return None


def _filled(dataset: Dataset) -> dict[str, np.ndarray]:
    splits = {split: getattr(dataset, split) for split in SPLITS}
    return {split: values for split, values in splits.items() if len(values)}


def _chunks(values: np.ndarray) -> Iterator[slice]:
    for start in range(0, len(values), EXAMPLES_AT_ONCE):
        yield slice(start, start + EXAMPLES_AT_ONCE)


def _chunked(values: np.ndarray) -> Iterator[np.ndarray]:
    return (values[rows] for rows in _chunks(values))


def _mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=0, dtype=np.float64).astype(np.float32)
