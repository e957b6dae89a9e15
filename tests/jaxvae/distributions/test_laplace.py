"""The Laplace distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.distributions import Laplace
from tests.observations import (
    EPS,
    TOLERANCE,
    assert_computed_in_float32,
    assert_golden,
    assert_made_by_script,
    assert_mean_of_draws,
    assert_rejected,
    assert_transforms_agree,
    draws,
    log_probs,
    log_probs_and_gradient,
    repeated,
)

LOC, LOG_SCALE = jnp.array([0.5, -2.0, 100.0]), jnp.array([-1.0, 0.0, 1.5])

# Golden


@pytest.mark.slow
def test_golden_file_is_what_its_script_makes():
    assert_made_by_script("laplace")


@pytest.mark.parametrize("precision", TOLERANCE)
def test_log_prob_and_gradient_are_the_golden_values(precision):
    assert_golden("laplace", Laplace, ["loc", "log_scale"], precision)


# Law


def test_density_integrates_to_one():
    """By Gauss and Laguerre's rule on both sides, for which exp(-t) is the weight."""
    points, weights = np.polynomial.laguerre.laggauss(8)
    scale = np.exp(np.asarray(LOG_SCALE))
    total = np.zeros(3)
    for side in (-1, 1):
        x = jnp.asarray(np.asarray(LOC) + side * points[:, None] * scale, jnp.float32)
        log_p = np.asarray(log_probs(repeated(Laplace(LOC, LOG_SCALE), 8), x), np.float64)
        total += (weights * np.exp(points)) @ np.exp(log_p) * scale
    # Of the exponent's terms 1.5 |log scale| + 1.7, and of x half an eps of 100 in units of scale.
    np.testing.assert_allclose(total, 1.0, rtol=50 * EPS)


def test_draws_have_the_right_moments():
    x, scale = draws(Laplace(LOC, LOG_SCALE)), np.exp(np.asarray(LOG_SCALE, np.float64))
    assert_mean_of_draws(x, np.asarray(LOC), 2 * scale**2)
    # |x - loc| is exponential of mean s; its square has mean 2 s^2, its fourth power 24 s^4.
    deviation = np.abs(x - np.asarray(LOC))
    assert_mean_of_draws(deviation, scale, scale**2)
    assert_mean_of_draws(deviation**2, 2 * scale**2, 20 * scale**4)
    np.testing.assert_array_equal(Laplace(LOC, LOG_SCALE).mean(), LOC)


def test_one_scale_serves_all_entries():
    x = jnp.array([0.0, 1.0, 90.0])
    shared, gradient = log_probs_and_gradient(Laplace(LOC, jnp.array(0.3)), x)
    own, gradients = log_probs_and_gradient(Laplace(LOC, jnp.full(3, 0.3)), x)
    np.testing.assert_allclose(shared, own, rtol=4 * EPS)
    np.testing.assert_allclose(gradient.log_scale, gradients.log_scale.sum(), rtol=4 * EPS)


def test_at_its_own_location_the_gradient_is_zero():
    """Zero is the middle of the subgradients at the corner."""
    _, gradient = log_probs_and_gradient(Laplace(LOC, LOG_SCALE), LOC)
    np.testing.assert_array_equal(gradient.loc, jnp.zeros(3))


def test_sample_is_a_shift_and_scale_of_the_same_noise():
    key = jax.random.key(2)
    weights = jnp.array([1.0, -2.0, 3.0])
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(weights * p.sample(key))))(
        Laplace(LOC, LOG_SCALE)
    )
    np.testing.assert_array_equal(gradient.loc, weights)
    noise = Laplace(jnp.zeros(3), LOG_SCALE).sample(key)
    np.testing.assert_allclose(gradient.log_scale, weights * noise, rtol=8 * EPS)


# Transform


@pytest.mark.slow
def test_transforms_agree():
    assert_transforms_agree(Laplace(LOC, LOG_SCALE), jnp.array([0.0, 1.0, 90.0]), terms=20.0)


def test_bfloat16_is_computed_in_float32():
    assert_computed_in_float32(Laplace(LOC, LOG_SCALE), jnp.array([0.0, 1.0, 90.0]))


# Failure


def test_a_value_of_another_shape_is_rejected():
    assert_rejected(Laplace(LOC, LOG_SCALE), (3,), "Laplace")


def test_a_scale_of_another_shape_is_rejected():
    message = r"Laplace: log_scale must be a scalar or have loc's shape \(3,\), got \(1,\)\. Re"
    for use in ("sample", "log_prob"):
        with pytest.raises(ValueError, match=message):
            getattr(Laplace(LOC, jnp.zeros(1)), use)(LOC if use == "log_prob" else None)
