"""softplus without log1p, and the sum of an event's entries, against float64 and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.cpu.event_sum import event_sum
from jaxvae.cpu.softplus import softplus

EPS = np.finfo(np.float32).eps
X = np.concatenate([np.linspace(-85, 85, 20_001), [-1e4, 1e4, 0.0]]).astype(np.float32)


def test_softplus_is_exact_to_two_roundings():
    """The error is relative; log1p has two roundings too. Below -87, floats are flushed to 0."""
    exact = np.logaddexp(0.0, X.astype(np.float64))
    ours = np.asarray(softplus(X), np.float64)
    np.testing.assert_allclose(ours, exact, rtol=2 * EPS, atol=1e-37)


def test_slope_of_softplus_is_the_sigmoid_of_jax():
    slopes = jax.vmap(jax.grad(softplus))(X)
    np.testing.assert_array_equal(slopes, jax.nn.sigmoid(X))
    second = jax.vmap(jax.grad(jax.grad(softplus)))(X)
    s = np.exp(-np.logaddexp(0.0, -X.astype(np.float64)))
    np.testing.assert_allclose(second, s * (1 - s), atol=2 * EPS)


def test_infinities_and_nan_pass():
    ends = softplus(jnp.array([-jnp.inf, jnp.inf, jnp.nan]))
    np.testing.assert_array_equal(ends, [0.0, np.inf, np.nan])


def test_float64_takes_log1p():
    with jax.enable_x64(True):
        x = jnp.linspace(-700.0, 700.0, 999)
        np.testing.assert_allclose(softplus(x), np.logaddexp(0.0, x), rtol=1e-15)


@pytest.mark.parametrize("shape", [(), (7,), (3, 4, 2)])
def test_the_sum_is_that_of_all_entries(shape):
    entries = jax.random.normal(jax.random.key(0), (5, *shape))
    for function in (jax.vmap(event_sum), jax.jit(jax.vmap(event_sum))):
        expected = np.asarray(entries, np.float64).reshape(5, -1).sum(1)
        np.testing.assert_allclose(function(entries), expected, rtol=1e-5, atol=1e-6)
    slopes = jax.vmap(jax.grad(event_sum))(entries)
    np.testing.assert_array_equal(slopes, jnp.ones_like(entries))


def test_an_impossible_entry_makes_the_sum_impossible():
    assert event_sum(jnp.array([0.0, -jnp.inf])) == -jnp.inf
    assert jnp.isnan(event_sum(jnp.array([0.0, jnp.nan])))
