"""Random keys of every generator: draws end, with the right distribution; commands use threefry."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import jaxvae
from experiments.evaluate import EvaluateConfig, evaluate
from experiments.machine.keys import root_key
from experiments.run.loop import training
from jaxvae.distributions.count_draws import log_gamma, poisson
from tests.experiments.test_train import _rows, _same_parameters
from tests.files import ROOT
from tests.observations import assert_mean_of_draws

GENERATORS = ("threefry2x32", "rbg", "unsafe_rbg", "legacy")
every_generator = pytest.mark.parametrize("generator", GENERATORS)
NUM_DRAWS = 4096
LOG_RATES = jnp.array([-3.0, 0.0, 2.2, 2.4, 5.0, 15.0, 22.0])
"""Rates on both sides of 10, where the method of drawing changes, and of the largest int32."""


@pytest.fixture(autouse=True)
def _legacy_keys_are_allowed():
    with jax.legacy_prng_key("allow"):
        yield


def keys_of(generator, count=NUM_DRAWS):
    legacy = generator == "legacy"
    root = jax.random.PRNGKey(1) if legacy else jax.random.key(1, impl=generator)
    return jax.random.split(root, count)


@jax.jit
def mapped_draws(p, keys):
    """Draws, one for each key, as the lanes of one `vmap`."""
    return jax.vmap(p.sample)(keys)


def draws(p, generator):
    return np.asarray(mapped_draws(p, keys_of(generator)), np.float64)


# Law


@pytest.mark.slow
@every_generator
@pytest.mark.parametrize("dim", [2, 12])
def test_von_mises_fisher_draws_end_and_have_the_mean(generator, dim):
    """Each lane has another concentration, so that some accept later than others."""
    loc = jnp.zeros(dim).at[0].set(1.0)
    log_concentrations = jnp.linspace(-2.0, 6.0, NUM_DRAWS)
    one = lambda key, t: jaxvae.VonMisesFisher(loc, t).sample(key)
    mean = lambda t: jaxvae.VonMisesFisher(loc, t).mean()
    x = np.asarray(jax.jit(jax.vmap(one))(keys_of(generator), log_concentrations), np.float64)
    expected = np.asarray(jax.jit(jax.vmap(mean))(log_concentrations), np.float64)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1.0, rtol=1e-5)
    difference = x - expected
    error = difference.std(0) / np.sqrt(NUM_DRAWS)
    assert (np.abs(difference.mean(0)) <= 4 * error).all()


@pytest.mark.slow
@every_generator
def test_poisson_draws_have_mean_and_variance_at_every_rate(generator):
    x = draws(jaxvae.Poisson(LOG_RATES), generator)
    rate = np.exp(np.asarray(LOG_RATES, np.float64))
    assert_mean_of_draws(x, rate, rate)
    # The variance of x is known to the root of (E (x - rate)^4 - rate^2) / N.
    error = np.sqrt((rate + 2 * rate**2) / NUM_DRAWS)
    assert (np.abs(x.var(0) - rate) <= 4.5 * error).all()
    np.testing.assert_array_equal(x, np.round(x))


@pytest.mark.slow
@every_generator
def test_negative_binomial_draws_have_mean_and_variance(generator):
    log_mean, log_dispersion = jnp.array([0.0, 2.0, 22.0]), jnp.array([-1.0, 1.0, 3.0])
    x = draws(jaxvae.NegativeBinomial(log_mean, log_dispersion), generator)
    mean, theta = (np.exp(np.asarray(a, np.float64)) for a in (log_mean, log_dispersion))
    assert_mean_of_draws(x, mean, mean + mean**2 / theta)
    np.testing.assert_allclose(x.var(0), mean + mean**2 / theta, rtol=0.35)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.3, 5.0, 9.9, 10.1, 14.0, 300.0])
def test_poisson_draws_pass_a_chi_square_test(rate):
    count = 200_000
    x = np.asarray(jax.jit(poisson)(jax.random.key(0), jnp.full(count, rate)))
    low, high = scipy.stats.poisson.ppf([1e-3, 1 - 1e-3], rate)
    edges = np.arange(low, high + 1)
    # Every count between the ends, and the two tails.
    expected = np.diff(scipy.stats.poisson.cdf([-1, *edges, np.inf], rate))
    seen = np.histogram(x, [-0.5, *(edges + 0.5), np.inf])[0]
    assert scipy.stats.chisquare(seen, expected * count).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("shape", [0.05, 0.9, 1.0, 7.0, 1e6])
def test_log_gamma_draws_pass_a_kolmogorov_smirnov_test(shape):
    x = np.asarray(jax.jit(log_gamma)(jax.random.key(0), jnp.full(20_000, shape)), np.float64)
    assert scipy.stats.kstest(x, scipy.stats.loggamma(shape).cdf).pvalue > 1e-3


@pytest.mark.parametrize("log_rate", [-200.0, 33.0, 88.0, 200.0])
def test_poisson_draws_at_extreme_rates_are_the_rate(log_rate):
    """They are within 5 standard deviations, to float32: no draw is NaN or saturates."""
    x = np.asarray(jax.jit(poisson)(jax.random.key(0), jnp.exp(jnp.full(1000, log_rate))))
    rate = np.exp(np.float64(log_rate)) if log_rate < 100 else np.inf
    np.testing.assert_allclose(x, rate, rtol=1e-6 + 5 / np.sqrt(rate + 1e-300), atol=1e-30)


@every_generator
@pytest.mark.parametrize("prior", ["mixture", "vamp", "flow"])
def test_priors_draw_under_every_generator(generator, prior):
    vae = jaxvae.mlp_vae(data_shape=(3,), latent_dim=2, hidden=(2,), prior=prior, num_components=3)
    shape = jax.eval_shape(
        lambda key: vae.prior(vae.init(key)).sample(key), keys_of(generator, 1)[0]
    )
    assert shape.shape == (2,)


@pytest.mark.slow
@pytest.mark.parametrize("generator", [name for name in GENERATORS if name != "threefry2x32"])
def test_a_training_step_takes_keys_of_every_generator(generator):
    """All other tests train with keys of threefry."""
    vae, optimizer = jaxvae.mlp_vae(data_shape=(3,), latent_dim=2, hidden=(2,)), optax.sgd(0.1)
    keys = keys_of(generator, 4)

    @jax.jit
    def first_step(keys, xs):
        state = jaxvae.init_state(vae, optimizer, keys[0])
        return jaxvae.make_train_step(vae, optimizer)(state, keys, xs)[1]

    metrics = first_step(keys, np.ones((4, 3), np.float32))
    assert np.isfinite(metrics["objective"])
    assert int(metrics["skipped"]) == 0


# Commands


@pytest.mark.parametrize("generator", ["rbg", "unsafe_rbg"])
def test_keys_of_commands_are_threefry_whatever_the_default_is(generator):
    with jax.default_prng_impl(generator):
        assert root_key(3) == jax.random.key(3, impl="threefry2x32")


def test_no_command_makes_a_key_by_itself():
    experiments = ROOT / "experiments"
    makes = re.compile(r"random\.(key|PRNGKey|wrap_key_data)\(")
    paths = [path for path in experiments.rglob("*.py") if path.parent.name != "examples"]
    found = [path.name for path in paths if makes.search(path.read_text())]
    assert found == ["keys.py"]


@pytest.mark.slow
def test_a_run_killed_and_continued_under_rbg_is_the_run_under_threefry(whole_run, small, tmp_path):
    config = dataclasses.replace(small, run=tmp_path / "run")
    with jax.default_prng_impl("rbg"):
        for num_steps in (23, 60):
            part = dataclasses.replace(config, num_steps=num_steps)
            with training(part, jax.devices()[:1]) as loop:
                assert loop.train() == 0
    assert _rows(config.run) == _rows(whole_run.run)
    _same_parameters(config.run, whole_run.run)


@pytest.mark.slow
def test_numbers_of_evaluate_do_not_depend_on_the_batch_under_rbg(whole_run, tmp_path):
    scores = {}
    for batch_size in (3, 10):
        output = tmp_path / str(batch_size)
        with jax.default_prng_impl("rbg"):
            evaluate(
                EvaluateConfig(
                    whole_run.run,
                    num_samples=5,
                    batch_size=batch_size,
                    num_devices=1,
                    output=output,
                )
            )
        (path,) = output.glob("*.npz")
        scores[batch_size] = dict(np.load(path))
    for name, values in scores[3].items():
        np.testing.assert_allclose(values, scores[10][name], rtol=1e-5, atol=1e-5, err_msg=name)
