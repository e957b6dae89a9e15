"""Log densities and divergences where exp of a log scale or log rate leaves float32."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxvae.distributions import (
    DiscretizedLogistic,
    FullCovarianceGaussian,
    Gaussian,
    Laplace,
    LowRankGaussian,
    Mixture,
    NegativeBinomial,
    Poisson,
)
from jaxvae.divergences import kl

LOG_SCALES = (-160.0, -100.0, -89.0, -88.0, 88.0, 100.0, 160.0)
every_scale = pytest.mark.parametrize("log_scale", LOG_SCALES)
RTOL = 4e-6
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def value_and_slopes(make, *parameters):
    """A scalar function's value and its derivatives, compiled."""
    parameters = [jnp.float32(parameter) for parameter in parameters]
    value, slopes = jax.jit(jax.value_and_grad(make, tuple(range(len(parameters)))))(*parameters)
    return float(value), [float(slope) for slope in slopes]


@every_scale
@pytest.mark.parametrize("family", [Gaussian, Laplace])
def test_at_loc_the_log_density_is_minus_the_log_scale(family, log_scale):
    log_prob = lambda x, loc, s: family(loc[None], s).log_prob(x[None])
    constant = HALF_LOG_2PI if family is Gaussian else math.log(2)
    value, slopes = value_and_slopes(log_prob, 0.7, 0.7, log_scale)
    np.testing.assert_allclose(value, -log_scale - constant, rtol=RTOL)
    np.testing.assert_allclose(slopes, [0.0, 0.0, -1.0])


@every_scale
@pytest.mark.parametrize("steps", [-2.0, 0.5])
def test_some_scales_from_loc_it_is_the_formula(steps, log_scale):
    """At x = loc + steps * scale, where that is a float32 number."""
    with np.errstate(over="ignore"):
        x = np.float32(steps * np.exp(np.float64(log_scale)))
    if not 1e-37 < abs(x) < 1e37:
        x, steps = np.float32(1e-30), 1e-30 * np.exp(-np.float64(log_scale))
    if steps**2 > 1e37:
        expected, slope = -np.inf, None
    else:
        expected, slope = -0.5 * steps**2 - log_scale - HALF_LOG_2PI, steps**2 - 1
    log_prob = lambda x, s: Gaussian(jnp.zeros(1), s).log_prob(x[None])
    value, slopes = value_and_slopes(log_prob, x, log_scale)
    # exp(log_scale) has 160 of float32's units in the last place of log_scale as its error.
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    if slope is not None:
        np.testing.assert_allclose(slopes[1], slope, rtol=1e-4)


@every_scale
def test_far_from_loc_it_falls_and_no_gradient_is_nan(log_scale):
    for family in (Gaussian, Laplace):
        log_prob = lambda x, loc, s, family=family: family(loc[None], s).log_prob(x[None])
        value, slopes = value_and_slopes(log_prob, 1.0, 0.0, log_scale)
        assert value < -80 or log_scale < 0
        assert value < -1e30 or log_scale > 0
        assert not np.isnan(slopes).any()


@every_scale
def test_a_mixture_ignores_a_component_that_is_infinitely_far(log_scale):
    """Two Gaussians of that scale at 0 and 1, at the mean of the first."""

    def log_prob(x, loc, s):
        components = Gaussian(jnp.stack([loc, loc + 1])[:, None], jnp.stack([s, s]))
        return Mixture(jnp.zeros(2), components).log_prob(x[None])

    value, slopes = value_and_slopes(log_prob, 0.0, 0.0, log_scale)
    other = math.log(2) if log_scale < 0 else 0.0  # of a large scale both have the density
    np.testing.assert_allclose(value, -log_scale - HALF_LOG_2PI - other, rtol=RTOL)
    np.testing.assert_allclose(slopes, [0.0, 0.0, -1.0], atol=1e-6)


@pytest.mark.parametrize("log_scale", [-40.0, -20.0, 20.0, 40.0])
@pytest.mark.parametrize("away", [0.0, 1.0])
def test_correlated_gaussians_are_those_of_float64(log_scale, away):
    scale = np.exp(np.float64(np.float32(log_scale)))
    factor = np.array([[1.0], [0.5]]) * scale
    covariance = factor @ factor.T + scale**2 * np.eye(2)
    x = np.array([away, -away]) * scale
    expected = scipy.stats.multivariate_normal(np.zeros(2), covariance / scale**2).logpdf(x / scale)
    expected -= 2 * log_scale
    low_rank = lambda s: LowRankGaussian(
        jnp.zeros(2), jnp.array([[1.0], [0.5]]) * jnp.exp(s), s
    ).log_prob(jnp.asarray(x, jnp.float32))
    root = np.linalg.cholesky(covariance / scale**2)
    full = lambda s: FullCovarianceGaussian(
        jnp.zeros(2), jnp.asarray(root, jnp.float32) * jnp.exp(s)
    ).log_prob(jnp.asarray(x, jnp.float32))
    for log_prob in (low_rank, full):
        value, slopes = value_and_slopes(log_prob, log_scale)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert np.isfinite(slopes).all()


@pytest.mark.slow
@every_scale
def test_discretized_logistic_has_masses_that_add_up(log_scale):
    """There are three values, with loc at the middle one; the bins have width 1."""
    log_mass = lambda v: lambda loc, s: DiscretizedLogistic(loc[None], s, 3).log_prob(v[None])
    masses = []
    for v in (0.0, 1.0, 2.0):
        value, slopes = value_and_slopes(log_mass(jnp.float32(v)), 1.0, log_scale)
        assert not np.isnan([value, *slopes]).any()
        masses.append(np.exp(value))
    np.testing.assert_allclose(sum(masses), 1.0, rtol=1e-6)
    np.testing.assert_allclose(masses[1], 1.0 if log_scale < 0 else 0.0, atol=1e-6)
    if log_scale > 0:  # sigma(t) - sigma(-t) is t / 2 at t = exp(-log_scale) / 2
        value, slopes = value_and_slopes(log_mass(jnp.float32(1.0)), 1.0, log_scale)
        np.testing.assert_allclose(value, -log_scale - math.log(4), rtol=RTOL)
        np.testing.assert_allclose(slopes, [0.0, -1.0], atol=1e-6)


@every_scale
def test_kl_of_equal_gaussians_is_0_and_of_a_narrower_one_the_formula(log_scale):
    one = lambda loc, s: Gaussian(loc[None], s[None])
    equal = lambda loc, s: kl(one(loc, s), one(loc, s))
    value, slopes = value_and_slopes(equal, 0.3, log_scale)
    assert (value, *slopes) == (0.0, 0.0, 0.0)
    # KL(N(0, s^2) || N(0, t^2)) = r^2 / 2 - 1/2 - log r with r = s / t, here 0 to float32.
    narrow, wide = sorted([0.0, log_scale])
    value, slopes = value_and_slopes(
        lambda s, t: kl(one(jnp.zeros(()), s), one(jnp.zeros(()), t)), narrow, wide
    )
    np.testing.assert_allclose(value, wide - narrow - 0.5, rtol=RTOL)
    np.testing.assert_allclose(slopes, [-1.0, 1.0])
    value, slopes = value_and_slopes(
        lambda s, t: kl(one(jnp.zeros(()), s), one(jnp.zeros(()), t)), wide, narrow
    )
    assert value == np.inf
    assert not np.isnan(slopes).any()


@pytest.mark.parametrize("log_rate", [-100.0, -80.0, 80.0, 88.0, 100.0])
@pytest.mark.parametrize("count", [0.0, 1.0, 7.0])
def test_poisson_at_extreme_rates_is_the_formula(log_rate, count):
    log_prob = lambda r: Poisson(r[None]).log_prob(jnp.full(1, count))
    value, (slope,) = value_and_slopes(log_prob, log_rate)
    rate = np.exp(np.float64(log_rate))
    expected = count * log_rate - rate - math.lgamma(count + 1)
    with np.errstate(over="ignore"):
        expected, expected_slope = np.float32(expected), np.float32(count - rate)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("count", [0.0, 3.0])
def test_negative_binomial_at_extreme_parameters_is_the_formula(count):
    log_prob = lambda m, t: NegativeBinomial(m[None], t).log_prob(jnp.full(1, count))
    grid = np.meshgrid([-60.0, 0.0, 30.0, 100.0], [-100.0, -60.0, 0.0, 60.0, 100.0])
    log_mean, log_dispersion = (np.ravel(side) for side in grid)
    with_slopes = jax.jit(jax.vmap(jax.value_and_grad(log_prob, (0, 1))))
    values, slopes = with_slopes(jnp.float32(log_mean), jnp.float32(log_dispersion))
    assert not np.isnan([values, *slopes]).any()
    theta = np.exp(log_dispersion)
    # log(theta / (theta + mu)) and log(mu / (theta + mu))
    of_theta = -np.logaddexp(0.0, log_mean - log_dispersion)
    of_mu = -np.logaddexp(0.0, log_dispersion - log_mean)
    rising = sum(np.log(theta + i) for i in range(int(count)))  # lgamma(x + theta) - lgamma(theta)
    expected = rising - math.lgamma(count + 1) + theta * of_theta + count * of_mu
    poisson = count * log_mean - np.exp(log_mean) - math.lgamma(count + 1)
    # For large theta the logarithm loses its digits, in float64 too.
    expected = np.where(theta > 1e15, poisson, expected)
    known = log_mean < 40
    np.testing.assert_allclose(values[known], expected[known], rtol=1e-4, atol=1e-5)
