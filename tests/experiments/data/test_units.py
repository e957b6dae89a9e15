"""One data set in different units: only the constant D log(unit) differs."""

import dataclasses
import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import jaxvae
from experiments.data.run_data import choose_preprocessing, load_data
from experiments.evaluate import EvaluateConfig, evaluate
from experiments.flags.command import UserError
from experiments.flags.config import TrainConfig
from experiments.flags.saved_flags import from_json
from experiments.run.choices import as_done, choices_of, choose
from experiments.run.model import initial_vae, recipe
from experiments.train import train
from jaxvae import Bernoulli, Gaussian, conv_vae, in_units, mlp_vae
from jaxvae.checkpoints import Checkpoints, load
from jaxvae.preprocessing import columns as units_module
from jaxvae.preprocessing.columns import RESOLVED, units_of
from jaxvae.training.state import init_state
from jaxvae.training.step import make_train_step

SCALES = (1.0, 1e4, 1e-5, 1e-12, 1e8)
SIGMAS = ("learned", "per_channel", "per_pixel", "optimal", 0.3)
KINDS = [(likelihood, sigma) for likelihood in ("gaussian", "laplace") for sigma in SIGMAS]
KINDS.remove(("laplace", "optimal"))
every_kind = pytest.mark.parametrize(("likelihood", "sigma"), KINDS)
DIM, NUM_TRAIN, BATCH = 6, 320, 64
SIZES = {"latent_dim": 2, "hidden": (8,)}


@cache
def vectors():
    """400 rows of two factors and noise, about different locations."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)) @ rng.normal(size=(2, DIM)) + 0.3 * rng.normal(size=(400, DIM))
    return x + np.arange(DIM)


@cache
def images():
    """200 images of 16 bits, as real numbers around the middle of their range, with noise."""
    rng = np.random.default_rng(1)
    level = rng.uniform(0.2, 0.8, (200, 1, 1, 1)) + 0.1 * rng.normal(size=(200, 8, 8, 1))
    return (np.clip(level, 0, 1) * 65535).astype(np.uint16)


def settings(x, **changes):
    """Arguments of a model for data [N, ..., C], as the commands pass them."""
    found = units_of(x, "data")
    mean = x.mean(0, dtype=np.float64).astype(np.float32)
    return {
        "data_shape": x.shape[1:],
        "data_loc": tuple(found.loc),
        "data_unit": tuple(found.unit),
        "data_mean": jnp.asarray(mean),
        **SIZES,
        **changes,
    }


def elbos(vae, params, xs, keys):
    """Bounds of some examples, without jit, since each unit would compile a new program."""

    def one(key, x):
        encode, decode = partial(vae.encode, params), partial(vae.decode, params)
        return jaxvae.elbo(key, x, encode=encode, decode=decode, prior=vae.prior(params))

    return jax.device_get(jax.vmap(one)(keys, xs).elbo)


def in_scale(sigma, scale):
    """Convert a sigma to data in another unit."""
    return sigma if isinstance(sigma, str) else sigma * scale


# Law


@pytest.mark.slow
@every_kind
def test_elbo_moves_by_d_log_unit_with_the_same_parameters(likelihood, sigma):
    """Units are powers of 2, so all but the constant is bit-for-bit equal; density from scipy."""
    x, keys = vectors().astype(np.float32), jax.random.split(jax.random.key(0), 20)
    family = scipy.stats.norm if likelihood == "gaussian" else scipy.stats.laplace
    values = {}
    for s in (1.0, 2.0**-17 if likelihood == "gaussian" else 2.0**13):
        xs = x * np.float32(s)
        own = {"likelihood": likelihood, "sigma": in_scale(sigma, s)}
        vae = mlp_vae(**settings(xs, **own))
        params = vae.init(jax.random.key(1))
        p = vae.decode(params, jnp.array([0.3, -0.7]))
        loc, log_scale = (np.asarray(a, np.float64) for a in p.parameters())
        expected = family(loc, np.exp(log_scale)).logpdf(np.float64(xs[0])).sum()
        np.testing.assert_allclose(p.log_prob(jnp.asarray(xs[0])), expected, rtol=1e-5, atol=1e-4)
        if not isinstance(sigma, str):
            np.testing.assert_allclose(np.exp(log_scale), sigma * s, rtol=1e-5)
        values[s] = elbos(vae, params, xs[:20], keys)
        moved = values[1.0] - values[s] - DIM * np.log(s)
        assert np.all(np.abs(moved) < 1e-4 + 1e-5 * np.abs(values[1.0])), moved


@pytest.mark.parametrize("likelihood", ["gaussian", "laplace"])
def test_in_units_is_the_change_of_variables(likelihood):
    """log p(x|z) = log p(y|z) - sum_d log unit_d, entry by entry, and q(z|x) = q(z|y)."""
    inner = mlp_vae(data_shape=(3,), likelihood=likelihood, sigma="per_pixel", **SIZES)
    loc, unit = np.float32([1e3, 0.0, -5.0]), np.float32([10.0, 1e-3, 2.0])
    vae, params = in_units(inner, loc, unit), inner.init(jax.random.key(0))
    y, z = jnp.array([0.5, -2.0, 1.0]), jnp.array([1.0, -1.0])
    x = loc + unit * y
    per_entry = vae.decode(params, z).log_prob_per_entry(x)
    expected = inner.decode(params, z).log_prob_per_entry(y) - np.log(unit)
    np.testing.assert_allclose(per_entry, expected, rtol=0, atol=2e-4)
    np.testing.assert_allclose(vae.encode(params, x).loc, inner.encode(params, y).loc, atol=1e-4)
    draws = jax.vmap(vae.decode(params, z).sample)(jax.random.split(jax.random.key(1), 4000))
    center, spread = loc + unit * inner.decode(params, z).mean(), draws.std(0)
    assert np.all(np.abs(draws.mean(0) - center) < 5 * spread / np.sqrt(4000))


@pytest.mark.parametrize(("likelihood", "sigma"), [KINDS[0], KINDS[4], KINDS[-2]])
def test_masked_elbo_moves_by_log_unit_of_the_observed_entries(likelihood, sigma):
    x, mask = vectors().astype(np.float32), jnp.array([1, 0, 1, 1, 0, 0], bool)
    values = []
    for s in (1.0, 2.0**13):
        xs = x * np.float32(s)
        own = {"likelihood": likelihood, "sigma": in_scale(sigma, s)}
        vae = mlp_vae(**settings(xs, **own))
        params = vae.init(jax.random.key(1))
        functions = {"decode": partial(vae.decode, params), "prior": vae.prior(params)}
        functions["encode"] = partial(vae.encode, params)
        values.append(jaxvae.elbo(jax.random.key(2), jnp.asarray(xs[0]), mask=mask, **functions))
    moved = values[0].elbo - values[1].elbo
    assert abs(moved - 3 * np.log(2.0**13)) < 1e-4 + 1e-5 * abs(values[0].elbo)


def test_vamp_prior_and_initial_output_do_not_depend_on_the_unit():
    """Pseudo-inputs are examples: given in the data's unit, learned in that of the networks."""
    x, found = vectors().astype(np.float32), []
    for s in (1.0, 1e4):
        xs = x * np.float32(s)
        own = {"likelihood": "gaussian", "prior": "vamp", "num_components": 5}
        vae = mlp_vae(**settings(xs, **own, pseudo_inputs=jnp.asarray(xs[:5])))
        params = vae.init(jax.random.key(0))
        example = vae.encode(params, jnp.asarray(xs[0]))
        np.testing.assert_allclose(vae.prior(params).components.loc[0], example.loc, atol=1e-4)
        found.append(params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-4), *found)
    start = vae.decode(params, jnp.zeros(2)).mean()
    assert np.all(np.abs(start - xs.mean(0)) < 0.5 * xs.std(0))


def trained_elbo(x, num_steps, build, **own):
    """Test ELBO after training by the library's own step, on data of some unit."""
    vae, optimizer = build(**settings(x[:NUM_TRAIN], **own)), optax.adam(1e-2)
    step = make_train_step(vae, optimizer)

    @jax.jit
    def trained(key, batches):
        def one(state, batch):
            return step(state, jax.random.split(jax.random.fold_in(key, state.step), BATCH), batch)

        return jax.lax.scan(one, init_state(vae, optimizer, jax.random.key(0)), batches)[0]

    rows = np.random.default_rng(2).integers(0, min(NUM_TRAIN, len(x) - 40), (num_steps, BATCH))
    state = trained(jax.random.key(1), x[rows].astype(np.float32))
    assert state.skipped == 0
    keys = jax.random.split(jax.random.key(3), 40)
    return elbos(vae, state.params, x[-40:].astype(np.float32), keys).mean()


@pytest.mark.long
@pytest.mark.parametrize(("likelihood", "sigma"), KINDS[: len(SIGMAS) + 1])
def test_trained_elbo_of_vectors_moves_by_d_log_unit(likelihood, sigma):
    """After 200 steps, the ELBO may differ by at most 1 nat, because of rounding."""
    found = {}
    for s in SCALES if sigma == "learned" else (1.0, 1e-5):
        own = {"likelihood": likelihood, "sigma": in_scale(sigma, s)}
        found[s] = trained_elbo((vectors() * s).astype(np.float32), 200, mlp_vae, **own)
        assert abs(found[1.0] - found[s] - DIM * np.log(s)) < 1, found
    assert found[1.0] > -9


@pytest.mark.long
@pytest.mark.parametrize("sigma", ["learned", "optimal"])
def test_trained_elbo_of_16_bit_images_moves_by_d_log_unit(sigma):
    own = {"likelihood": "gaussian", "sigma": sigma, "hidden": (4,), "width": 8}
    integers = trained_elbo(images().astype(np.int32), 60, conv_vae, **own)
    scaled = trained_elbo(images().astype(np.float32) / 65535, 60, conv_vae, **own)
    assert abs(scaled - integers - 64 * np.log(65535)) < 1


# Statistics


def test_units_are_mean_and_deviation_in_float64_whatever_the_offset():
    rng = np.random.default_rng(0)
    x = np.float32([1e6, -3.0, 1e-9]) + np.float32([1.0, 1e-3, 1e-12]) * rng.normal(
        size=(10_000, 3)
    ).astype(np.float32)
    found = units_of(x, "data")
    np.testing.assert_allclose(found.loc, x.mean(0, dtype=np.float64), rtol=1e-7)
    np.testing.assert_allclose(found.unit, x.std(0, dtype=np.float64), rtol=1e-6)
    assert found.about == ""


def test_units_in_pieces_are_those_of_the_whole(monkeypatch):
    x = images()
    whole = units_of(x, "data")
    assert len(whole.unit) == 1  # per channel
    np.testing.assert_allclose(whole.unit, x.std(dtype=np.float64), rtol=1e-6)
    monkeypatch.setattr(units_module, "ENTRIES_AT_ONCE", 100)
    pieces = units_of(x, "data")
    np.testing.assert_allclose(pieces.loc + pieces.unit, whole.loc + whole.unit, rtol=1e-6)


def test_a_constant_column_has_the_median_unit_of_the_others():
    x = vectors().astype(np.float32)
    x[:, 2] = 0.1
    for s in (1.0, 1e4, 1e-5):
        found = units_of((x * s).astype(np.float32), "data")
        others = np.delete(found.unit, 2)
        np.testing.assert_allclose(found.unit[2], np.median(others), rtol=1e-6)
        np.testing.assert_allclose(found.unit[2] / s, units_of(x, "data").unit[2], rtol=1e-5)
        assert found.about == "1 constant"
    assert units_of(np.full((5, 2), 3.0, np.float32), "data").unit == [1.0, 1.0]


def test_a_column_that_rarely_varies_gets_the_median_unit_of_the_others():
    """A border pixel is 0 except in a row or two: its deviation does not predict new rows."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(1000, 5)).astype(np.float32)
    x[:, 3] = 0
    x[7, 3] = 0.01
    for s in (1.0, 1e4):
        found = units_of((x * s).astype(np.float32), "data")
        np.testing.assert_allclose(found.unit[3], np.median(np.delete(found.unit, 3)), rtol=1e-6)
        assert found.about == "1 that rarely vary"
    x[7, 3] = 1e4  # a large unit is not replaced
    np.testing.assert_allclose(units_of(x, "data").unit[3], x[:, 3].std(), rtol=1e-5)
    alone = units_of(x[:, 3:4], "data")
    np.testing.assert_allclose(alone.unit, x[:, 3:4].std(0), rtol=1e-5)


def test_a_column_that_float32_does_not_resolve_gets_the_smallest_resolved_unit():
    x = np.float32(1.7e9) + np.float32([[0], [128], [0], [128]])
    found = units_of(x, "data")
    np.testing.assert_allclose(found.unit, RESOLVED * 1.7e9, rtol=1e-6)
    assert found.about == "1 with a spread that float32 does not resolve"


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_unit_beyond_float32_is_rejected(scale):
    x = (vectors() * scale).astype(np.float32)
    with pytest.raises(
        ValueError, match=r"column 0 of data has a standard deviation of .*; float32 needs"
    ):
        units_of(x, "data")


# Commands


@pytest.fixture
def run_of(tmp_path, small):
    """Train on an array with the command; return its flags."""

    def run(x, name="run", **flags):
        np.save(tmp_path / f"{name}.npy", x)
        flags = {"likelihood": "gaussian", "num_steps": 40, "eval_every": 20} | flags
        config = dataclasses.replace(
            small, dataset=f"npy:{tmp_path}/{name}.npy", run=tmp_path / name, **flags
        )
        assert train(config) == 0
        return config

    return run


def numbers(config):
    return json.loads((config.run / "results.json").read_text())["test"]


@pytest.mark.long
def test_commands_move_by_d_log_unit_and_report_in_the_data_unit(run_of):
    one, large = run_of(vectors(), "one"), run_of(vectors() * 1e4, "large")
    moved = numbers(one)["elbo"]["value"] - numbers(large)["elbo"]["value"]
    assert abs(moved - DIM * np.log(1e4)) < 1e-2
    bits = (
        numbers(large)["bits_per_dimension"]["value"] - numbers(one)["bits_per_dimension"]["value"]
    )
    assert abs(bits - np.log2(1e4)) < 1e-2
    sigmas = [numbers(config)["sigma_squared"]["value"] for config in (one, large)]
    np.testing.assert_allclose(sigmas[1] / sigmas[0], 1e8, rtol=1e-2)
    vae, params = load(large.run)
    x = jnp.asarray(vectors()[0] * 1e4, jnp.float32)
    means = vae.decode(params, vae.encode(params, x).mean()).mean()
    assert np.abs(means).max() > 1e4
    saved = json.loads((large.run / "config.json").read_text())
    assert (saved["standardize"], saved["sigma_rate"]) == ("columns", 10.0)
    evaluate(EvaluateConfig(large.run, num_samples=4, num_devices=1))
    written = json.loads(next(large.run.glob("evaluations/*.json")).read_text())
    assert written["preprocessing"] == "columns standardized inside the model"


@pytest.mark.long
def test_a_continued_run_keeps_its_units_whatever_the_data(run_of, tmp_path):
    config = run_of(vectors(), "data")

    def units(step):
        checkpoints = Checkpoints(config.run / "checkpoints", read_only=True)
        about = checkpoints.about(step)
        checkpoints.close()
        return {k: v for k, v in about["vae"]["arguments"].items() if k.startswith("data_")}

    half = dataclasses.replace(config, run=tmp_path / "half", num_steps=20)
    assert train(half) == 0
    assert train(dataclasses.replace(half, num_steps=40)) == 0
    assert numbers(half) == numbers(config)  # continued is never stopped
    first = units(40)
    np.save(tmp_path / "data.npy", vectors() * 3 + 1)
    assert train(dataclasses.replace(config, num_steps=60, allow_other_data=True)) == 0
    assert units(60) == first
    assert len(first["data_unit"]) == DIM


@pytest.mark.parametrize(
    ("x", "flags", "standardize", "name"),
    [
        (vectors(), {}, "columns", "columns standardized inside the model"),
        (vectors(), {"standardize": "none"}, "none", "none"),
        (
            images(),
            {"likelihood": "laplace"},
            "columns",
            "integers as real numbers, columns standardized inside the model",
        ),
        (images().astype(np.uint8), {}, "none", "uniform dequantization to [0, 1]"),
        (images() % 2, {"likelihood": "bernoulli"}, "none", "none"),
        (vectors(), {"model": f"{__name__}:plain"}, "none", "none"),
        (
            vectors(),
            {"model": f"{__name__}:own"},
            "columns",
            "columns standardized inside the model",
        ),
    ],
)
def test_standardization_is_recorded_and_reported(tmp_path, x, flags, standardize, name):
    np.save(tmp_path / "x.npy", x)
    given = TrainConfig(dataset=f"npy:{tmp_path}/x.npy", **{"likelihood": "gaussian"} | flags)
    dataset, _ = load_data(given)
    config, _ = choose(given, dataset)
    _, preprocessing = choose_preprocessing(config, dataset)
    config = as_done(config, preprocessing)
    assert (config.standardize, preprocessing.name) == (standardize, name)
    config.check()  # as config.json has it
    assert choices_of(config, given).standardize == standardize  # auto is what the run has


def plain(data_shape, latent_dim, likelihood):
    """Build a model that takes no units."""
    return mlp_vae(data_shape=data_shape, latent_dim=latent_dim, likelihood=likelihood, hidden=(4,))


def own(data_shape, latent_dim, likelihood, data_loc, data_unit):
    """Build a model that applies units itself."""
    return in_units(plain(data_shape, latent_dim, likelihood), data_loc, data_unit)


def test_a_run_of_an_earlier_release_is_not_standardized():
    """The config.json of such a run has neither flag."""
    config = from_json({"likelihood": "gaussian", "dataset": "npy:x.npy"})
    assert (config.standardize, config.sigma_rate) == ("none", 1.0)
    assert from_json({}).sigma_rate is None


def test_recipe_without_units_is_that_of_earlier_releases(small):
    config = dataclasses.replace(small, likelihood="gaussian", sigma="learned")
    dataset, preprocessing = choose_preprocessing(config, load_data(config)[0])
    made = recipe(config, dataset.train.shape[1:])
    assert not {"data_loc", "data_unit"} & made["arguments"].keys()
    vae = initial_vae(made, config, preprocessing, dataset.train)
    params = vae.init(jax.random.key(0))
    assert isinstance(vae.decode(params, jnp.zeros(2)), Gaussian)
    assert vae.decode(params, jnp.zeros(2)).log_scale.shape == ()


# Failure


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"standardize": "columns", "likelihood": "bernoulli"}, "--standardize goes with --likel"),
        (
            {"standardize": "columns"},
            r"--standardize=columns is for real numbers; .*dequantization",
        ),
    ],
)
def test_meaningless_standardization_is_rejected(small, tmp_path, flags, message):
    config = dataclasses.replace(small, run=tmp_path / "r", **{"likelihood": "gaussian"} | flags)
    with pytest.raises(UserError, match=message):
        train(config)


def test_model_that_takes_no_units_is_rejected_by_name(small, tmp_path):
    np.save(tmp_path / "x.npy", vectors())
    config = TrainConfig(
        dataset=f"npy:{tmp_path}/x.npy",
        run=tmp_path / "r",
        model=f"{__name__}:plain",
        likelihood="gaussian",
        standardize="columns",
    )
    with pytest.raises(
        UserError, match=r"--standardize must be left out: .*:plain takes no argument .data_un"
    ):
        train(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_loc": None}, "data_loc and data_unit need each other, got only one. Give both"),
        ({"data_unit": (1.0,)}, r"for each of the 2 entries .*got shapes \(2,\) and \(1,\)"),
        ({"data_unit": (1.0, 0.0)}, "data_unit positive in float32"),
        ({"data_unit": (1.0, 1e-60)}, "data_unit positive in float32"),
        ({"data_loc": (np.nan, 0.0)}, "data_loc must be finite"),
        ({"data_loc": ({}, 0.0)}, "must be lists of numbers"),
        ({"likelihood": "poisson"}, "data_unit needs likelihood=gaussian or laplace, got poisson"),
    ],
)
def test_invalid_units_are_rejected(changes, message):
    given = {"likelihood": "gaussian", "data_loc": (0.0, 0.0), "data_unit": (1.0, 1.0)}
    with pytest.raises(ValueError, match=message):
        mlp_vae(data_shape=(2,), **given | changes)


def test_a_density_without_location_and_scale_is_rejected():
    vae = mlp_vae(data_shape=(2,), likelihood="bernoulli", **SIZES)
    moved = in_units(vae, [0.0, 0.0], [2.0, 2.0])
    with pytest.raises(ValueError, match=r"a Gaussian or a Laplace, .*got Bernoulli"):
        moved.decode(vae.init(jax.random.key(0)), jnp.zeros(2))
    assert isinstance(vae.decode(vae.init(jax.random.key(0)), jnp.zeros(2)), Bernoulli)
    with pytest.raises(ValueError, match="last axis must have 2 entries"):
        moved.encode(vae.init(jax.random.key(0)), jnp.zeros(3))
