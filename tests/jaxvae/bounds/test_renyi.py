"""The variational Renyi objective of every order, against values of 50 decimal digits."""

from decimal import Decimal, localcontext
from functools import cache, partial
from itertools import pairwise

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import iwae
from jaxvae.bounds import renyi
from tests.oracles import LARGE, drawn, in_float64, means_and_errors, tightness, weighted_by

ALPHAS = np.array(
    [-5.0, -1.0, 0.0, 0.5, 0.9, 1 - 1e-4, 1 - 1e-7, 1.0, 1 + 1e-7, 1 + 1e-4, 1.1, 2.0, 5.0]
)
ORDERS = ("elbo", "renyi -1", "renyi 0.5", "renyi 2")
SPREADS = [1e-4, 0.03, 1.0, 30.0, 1e4]
NUM_KEYS, NUM_SAMPLES = 12, 5


def objective(scale, alpha, key):
    result = renyi(key, **weighted_by(scale), num_samples=NUM_SAMPLES, alpha=alpha)
    return result.objective, result


@jax.jit
def by_alpha(scale, alphas, keys):
    """Value, slope by the spread of the log weights, and the rest: [alphas, keys]."""
    of_one = jax.value_and_grad(objective, has_aux=True)
    over_keys = jax.vmap(of_one, in_axes=(None, None, 0))
    return jax.vmap(over_keys, in_axes=(None, 0, None))(scale, alphas, keys)


@cache
def results(scale, precision):
    """Log weights, value and slope in float64, and the alphas rounded to the precision."""
    with jax.enable_x64(precision == "float64"):
        keys = jax.random.split(jax.random.key(0), NUM_KEYS)
        alphas = jnp.asarray(ALPHAS)
        (value, result), slope = jax.device_get(by_alpha(jnp.asarray(scale), alphas, keys))
    assert value.dtype == precision
    return *in_float64((result.log_weights[0], value, slope)), in_float64(alphas)


def in_decimal(log_weights, alpha):
    """1/t log 1/K sum exp(t r) with t = 1 - alpha, and its gradient by r."""
    with localcontext(prec=50):
        order, r = Decimal(1) - Decimal(alpha), [Decimal(entry) for entry in log_weights]
        if order == 0:
            return float(sum(r) / len(r)), np.full(len(r), 1 / len(r))
        powers = [(order * entry).exp() for entry in r]
        value = (sum(powers) / len(r)).ln() / order
        return float(value), np.array([float(power / sum(powers)) for power in powers])


# Golden


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("scale", SPREADS)
def test_value_and_gradient_are_those_of_50_digits(scale, precision):
    """For orders below, at and above 1, and log weights up to 1e4 nats apart."""
    log_weights, values, slopes, alphas = results(scale, precision)
    eps = np.finfo(precision).eps
    for logs, *by_alpha in zip(log_weights, values.T, slopes.T, strict=True):
        for alpha, value, slope in zip(alphas, *by_alpha, strict=True):
            expected, weights = in_decimal(logs, alpha)
            # exp(t r) has the error of t r, which is what its share is good to.
            far = min(1.0, 32 * eps * (1 + abs(1 - alpha) * np.ptp(logs)))
            assert abs(value - expected) <= 16 * eps * np.abs(logs).max()
            assert abs(slope - weights @ logs / scale) <= far * np.abs(logs).max() / scale


# Law


@pytest.mark.parametrize("scale", SPREADS)
def test_renyi_falls_as_alpha_rises_and_is_continuous_at_one(scale):
    log_weights, values, slopes, alphas = results(scale, "float64")
    largest = np.abs(log_weights).max(1)
    assert (np.diff(values, axis=0) <= 1e-14 * largest[None]).all()
    at_one = list(alphas).index(1.0)
    np.testing.assert_allclose(values[at_one], log_weights.mean(1), rtol=0, atol=1e-14 * scale * 4)
    # The slope by the order is at most half the squared spread, that of the gradient its cube.
    for i in range(at_one - 2, at_one + 3):
        step = abs(alphas[i] - 1) * np.ptp(log_weights, axis=1) * largest + 1e-13 * largest
        assert (np.abs(values[i] - values[at_one]) <= step).all()
        assert (np.abs(slopes[i] - slopes[at_one]) <= 2 * step / scale).all()


def test_renyi_at_zero_is_iwae_and_at_one_the_elbo_with_a_sampled_kl():
    keys = jax.random.split(jax.random.key(0), NUM_KEYS)
    scale = jnp.float32(3.0)
    (value, result), slope = by_alpha(scale, jnp.array([0.0, 1.0]), keys)
    of_iwae = lambda scale, key: iwae(key, **weighted_by(scale), num_samples=NUM_SAMPLES).objective
    expected = jax.jit(jax.vmap(jax.value_and_grad(of_iwae), in_axes=(None, 0)))(scale, keys)
    np.testing.assert_allclose((value[0], slope[0]), expected, rtol=1e-5)
    mean = result.log_weights[1].mean(1)
    np.testing.assert_allclose(value[1], mean, rtol=0, atol=1e-6 * 10)
    np.testing.assert_allclose(slope[1], mean / 3, rtol=0, atol=1e-6 * 4)


@pytest.mark.slow
def test_more_samples_tighten_renyi_below_order_one_and_loosen_it_above():
    """With one sample it is the ELBO; with more, it moves to its limit above or below."""
    for name, direction in (("renyi 0.5", 1), ("renyi -1", 1), ("renyi 2", -1)):
        by_size, _ = tightness(LARGE, name, ORDERS)
        for (fewer, error_fewer), (more, error_more) in pairwise(by_size):
            assert direction * (more - fewer) > 4 * np.hypot(error_fewer, error_more)


@pytest.mark.slow
def test_renyi_of_negative_order_is_not_a_bound():
    """With many samples it exceeds log p(x)."""
    bounds, log_prob = drawn(LARGE, 64, ("elbo, sampled KL", *ORDERS))
    names = ("renyi -1", "renyi 0.5", "renyi 2")
    (beyond, error), *below = means_and_errors(*[bounds[name].objective for name in names])
    assert beyond > log_prob + 4 * error
    assert all(mean < log_prob - 4 * error for mean, error in below)
    for name in names:  # which leaves the ELBO as it is
        np.testing.assert_array_equal(bounds[name].elbo, bounds["elbo"].elbo)


# Transform


def test_an_order_may_be_traced_or_an_integer():
    key, scale = jax.random.key(0), jnp.float32(1.0)
    run = lambda alpha: objective(scale, alpha, key)[0]
    chex.clear_trace_counter()
    traced = jax.jit(chex.assert_max_traces(run, 1))
    integers = (-1, 1, 2)
    expected = jax.jit(lambda key: [objective(scale, by, key)[0] for by in integers])(key)
    for alpha, value in zip(integers, expected, strict=True):
        np.testing.assert_allclose(traced(float(alpha)), value, rtol=1e-6)


def test_no_gradient_goes_to_the_order():
    run = partial(objective, jnp.float32(1.0))
    assert jax.grad(lambda alpha: run(alpha, jax.random.key(0))[0])(0.5) == 0.0
