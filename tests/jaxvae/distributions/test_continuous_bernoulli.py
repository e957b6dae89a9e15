"""The continuous Bernoulli, through l = 0 and far from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.distributions import ContinuousBernoulli
from tests.observations import (
    EPS,
    GOLDEN,
    NUM_DRAWS,
    TOLERANCE,
    assert_computed_in_float32,
    assert_golden,
    assert_made_by_script,
    assert_mean_of_draws,
    assert_near,
    assert_rejected,
    assert_transforms_agree,
    log_probs,
    log_probs_and_gradient,
    repeated,
)

LOGITS = np.array([-1e4, -20.0, -3.0, -0.51, -0.49, -1e-3, 0.0, 1e-6, 0.2, 1.0, 5.0, 1e4])
mean = jax.jit(lambda p: p.mean())


@jax.jit
def draws_and_slopes(p, key):
    """NUM_DRAWS draws [NUM_DRAWS, D], and the derivative of each in its own logit."""
    p = repeated(p, NUM_DRAWS)
    return jax.jvp(lambda p: p.sample(key), (p,), (jax.tree.map(jnp.ones_like, p),))


@jax.jit
def slope_of_mean(p):
    return jax.jvp(lambda p: p.mean(), (p,), (jax.tree.map(jnp.ones_like, p),))[1]


def variance(logits):
    """1 / l^2 - 1 / (4 sinh(l/2)^2), 1/12 at 0; to 1e-9 where |l| > 0.1 or |l| < 0.01."""
    size = np.maximum(np.abs(logits), 1e-2)
    far = 1 / size**2 - np.exp(-size) / np.expm1(-size) ** 2
    return np.where(np.abs(logits) < 0.01, 1 / 12 - logits**2 / 240, far)


# Golden


@pytest.mark.slow
def test_golden_file_is_what_its_script_makes():
    assert_made_by_script("continuous_bernoulli")


@pytest.mark.parametrize("precision", TOLERANCE)
def test_log_prob_mean_and_gradient_are_the_golden_values(precision):
    assert_golden("continuous_bernoulli", ContinuousBernoulli, ["logits"], precision)
    golden = GOLDEN["continuous_bernoulli"]
    with jax.enable_x64(precision == "float64"):
        result = mean(ContinuousBernoulli(jnp.asarray(golden["logits"], float)))
    # A sum of two numbers of less than 3.
    assert_near(result, golden["mean"], 5.0, precision, "mean")


# Law


def test_density_integrates_to_one():
    """By Gauss and Legendre's rule with 60 points, which is exact for these to 1e-14."""
    logits = LOGITS[1:-1]
    points, weights = np.polynomial.legendre.leggauss(60)
    x = np.broadcast_to(0.5 + 0.5 * points[:, None], (60, len(logits)))
    p = repeated(ContinuousBernoulli(jnp.asarray(logits, jnp.float32)), 60)
    densities = np.exp(np.asarray(log_probs(p, jnp.asarray(x, jnp.float32)), np.float64))
    total = 0.5 * weights @ densities
    # An exponent errs by 1e-6 of its terms, and x by half an eps, with slope l.
    assert (np.abs(total - 1) <= 1e-6 * (2 + 2 * np.abs(logits))).all()


def test_density_at_logit_zero_is_uniform():
    p, x = ContinuousBernoulli(jnp.zeros(12)), jnp.linspace(0.0, 1.0, 12)
    value, gradient = log_probs_and_gradient(p, x)
    np.testing.assert_array_equal(value, jnp.zeros(12))
    np.testing.assert_allclose(gradient.logits, x - 0.5, rtol=EPS)
    np.testing.assert_array_equal(mean(p), jnp.full(12, 0.5))


def test_draws_have_the_right_moments_and_gradients():
    """d E x / dl = Var x, of the draws and of mean()."""
    p = ContinuousBernoulli(jnp.asarray(LOGITS, jnp.float32))
    x, slopes = np.asarray(draws_and_slopes(p, jax.random.key(0)), np.float64)
    expected = np.asarray(mean(p), np.float64)
    assert ((x >= 0) & (x <= 1)).all()
    assert_mean_of_draws(x, expected, variance(LOGITS))
    square = (x - expected) ** 2
    assert_mean_of_draws(square, variance(LOGITS), square.var(0))
    assert_mean_of_draws(slopes, variance(LOGITS), slopes.var(0))
    np.testing.assert_allclose(slope_of_mean(p), variance(LOGITS), rtol=1e-6, atol=16 * EPS)


# Transform


def test_gradients_of_draws_by_the_logits_are_finite_differences():
    """Central differences in float64, over 0 and over where one form gives way to another."""
    logits, step, key = LOGITS[1:-1], 1e-5, jax.random.key(4)
    with jax.enable_x64(True):
        at = lambda shift: draws_and_slopes(ContinuousBernoulli(jnp.asarray(logits + shift)), key)
        difference = (at(step)[0] - at(-step)[0]) / (2 * step)
        slope = at(0.0)[1]
    # Rounding of x over the step: 1e-16 / 1e-5; and step^2 times a third derivative below 1.
    np.testing.assert_allclose(slope, difference, rtol=0, atol=2e-10)


@pytest.mark.slow
def test_transforms_agree():
    p = ContinuousBernoulli(jnp.array([[-3.0, 0.1], [0.0, 7.0]]))
    assert_transforms_agree(p, jnp.array([[0.0, 0.25], [0.5, 1.0]]), terms=30.0)


def test_bfloat16_is_computed_in_float32():
    assert_computed_in_float32(ContinuousBernoulli(jnp.array([-3.3, 0.0])), jnp.array([0.5, 1.0]))


# Failure


def test_a_value_of_another_shape_is_rejected():
    assert_rejected(ContinuousBernoulli(jnp.zeros((4, 4, 1))), (4, 4, 1), "ContinuousBernoulli")
