"""The tutorial's construction, against scipy's integrals, and its theorem."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats

from jaxvae import elbo
from jaxvae.testing import OneDimensional

WEIGHTS, LOC, SCALE = np.array([0.4, 0.6]), np.array([-1.5, 1.0]), np.array([0.5, 0.7])
SIGMAS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
X = np.linspace(-3.0, 3.0, 7)
Z = np.array([-8.0, -3.0, -0.5, 0.0, 0.5, 3.0, 8.0])
TOLERANCE = {"float32": 4e-6, "float64": 1e-11}
"""Error of f and g per unit of 1 + |result|, and of log densities per nat."""
GAP_ERROR = {"float32": 2e-5, "float64": 1e-8}
NUM_KEYS = 4_000

precisions = pytest.mark.parametrize("precision", TOLERANCE)


def model(sigma):
    arrays = np.log(WEIGHTS) + 1.0, LOC, np.log(SCALE), np.log(sigma)
    return OneDimensional(*map(jnp.asarray, arrays))


@jax.jit
def everything(model, xs, zs):
    def of_x(x):
        q = model.encode(x)
        return {
            "log_prob": model.log_prob(x),
            "log_ground_truth": model.log_ground_truth(x),
            "gap": model.gap(x),
            "loc": q.loc,
            "log_scale": q.log_scale,
        }

    def of_z(z):
        x, slope = jax.value_and_grad(model.generate)(z)
        return {"x": x, "x_slope": slope, "back": model.invert(x)}

    return jax.vmap(of_x)(xs) | jax.vmap(of_z)(zs)


@cache
def solved(sigma, precision="float64"):
    with jax.enable_x64(precision == "float64"):
        found = jax.device_get(everything(model(sigma), jnp.asarray(X), jnp.asarray(Z)))
        assert {leaf.dtype.name for leaf in found.values()} == {precision}
        return found


def cdf(x, side=1):
    return WEIGHTS @ scipy.stats.norm.cdf(side * (x - LOC) / SCALE)


def density(x):
    return WEIGHTS @ scipy.stats.norm.pdf(x, LOC, SCALE)


def generate(z):
    """f from the nearer tail of scipy's distribution functions."""
    side = 1 if z < 0 else -1
    target = scipy.stats.norm.cdf(side * z)
    ends = min(LOC + SCALE * z) - 0.1, max(LOC + SCALE * z) + 0.1
    excess = lambda x: cdf(x, side) / target - 1
    return scipy.optimize.brentq(excess, *ends, xtol=1e-13, rtol=1e-14)


def invert(x):
    side = 1 if cdf(x) < 0.5 else -1
    return side * scipy.special.ndtri(cdf(x, side))


@cache
def integrals(x, sigma):
    """log p(x) and KL(q || p(z|x)) by Simpson's rule over 12 standard deviations of q, with the
    generator and the densities of scipy."""
    q = scipy.stats.norm(invert(x), density(x) / scipy.stats.norm.pdf(invert(x)) * sigma)
    z = np.linspace(q.mean() - 12 * q.std(), q.mean() + 12 * q.std(), 401)
    center = np.array([generate(each) for each in z])
    log_joint = scipy.stats.norm.logpdf(x, center, sigma) + scipy.stats.norm.logpdf(z)
    log_prob = np.log(scipy.integrate.simpson(np.exp(log_joint), x=z))
    excess = q.pdf(z) * (q.logpdf(z) - log_joint + log_prob)
    return log_prob, scipy.integrate.simpson(excess, x=z)


# Golden


@pytest.mark.slow
@precisions
def test_generate_and_invert_are_scipys(precision):
    found, close = solved(1.0, precision), partial(np.testing.assert_allclose, rtol=0)
    expected = np.array([generate(z) for z in Z])
    error = np.abs(found["x"] - expected) / (1 + np.abs(expected))
    assert error.max() <= TOLERANCE[precision]
    slopes = scipy.stats.norm.pdf(Z) / [density(x) for x in expected]
    close(found["x_slope"], slopes, atol=10 * TOLERANCE[precision])
    close(found["loc"], [invert(x) for x in X], atol=4 * TOLERANCE[precision])
    slopes = np.array([density(x) / scipy.stats.norm.pdf(invert(x)) for x in X])
    close(found["log_scale"], np.log(slopes), atol=10 * TOLERANCE[precision])


@precisions
def test_log_prob_and_gap_are_integrals_over_z(precision):
    found = solved(0.1, precision)
    for i in (0, 2, 6):
        log_prob, gap = integrals(X[i], 0.1)
        assert abs(found["log_prob"][i] - log_prob) <= 4 * TOLERANCE[precision]
        assert abs(found["gap"][i] - gap) <= GAP_ERROR[precision]
        assert abs(found["log_ground_truth"][i] - np.log(density(X[i]))) <= TOLERANCE[precision]


# Law


def test_invert_undoes_generate():
    for precision in TOLERANCE:
        np.testing.assert_allclose(solved(1.0, precision)["back"], Z, atol=TOLERANCE[precision])


@jax.jit
def elbos(model, xs, keys):
    of = lambda key, x: elbo(
        key, x, encode=model.encode, decode=model.decode, prior=model.prior(), kl="sampled"
    )
    return jax.vmap(lambda x: jax.lax.map(lambda key: of(key, x).objective, keys))(xs)


@pytest.mark.parametrize("sigma", SIGMAS[::2])
def test_elbo_is_log_prob_less_the_gap(sigma):
    """Doersch 2016, equation 5."""
    keys = jax.random.split(jax.random.key(0), NUM_KEYS)
    draws = np.asarray(elbos(model(sigma), jnp.asarray(X, jnp.float32), keys), np.float64)
    found = solved(sigma)
    errors = 4 * draws.std(1) / np.sqrt(NUM_KEYS) + 1e-4  # which float32 is off by here
    assert np.all(np.abs(draws.mean(1) - (found["log_prob"] - found["gap"])) <= errors)


def test_gap_vanishes_like_the_variance_of_the_noise():
    """The tutorial's claim: a Gaussian q costs nothing in the limit."""
    worst = [solved(sigma)["gap"].max() for sigma in SIGMAS]
    assert np.all([solved(sigma)["gap"] > 0 for sigma in SIGMAS])
    assert np.all(np.diff(worst) < 0)
    rates = np.array(worst) / np.square(SIGMAS)
    assert worst[0] > 1
    np.testing.assert_allclose(rates[-3:], rates[-1], rtol=0.01)


def test_density_tends_to_the_ground_truth():
    """By a second-order term: sigma^2 / 2 times the second derivative of p_gt."""
    off = lambda found: np.exp(found["log_prob"]) - np.exp(found["log_ground_truth"])
    worst = [np.abs(off(solved(sigma))).max() for sigma in SIGMAS]
    assert np.all(np.diff(worst) < 0)
    eps = (X[:, None] - LOC) / SCALE
    curvature = (scipy.stats.norm.pdf(eps) * (eps**2 - 1) / SCALE**3) @ WEIGHTS
    np.testing.assert_allclose(off(solved(0.003)) / 0.003**2, curvature / 2, atol=1e-4)


@precisions
def test_gap_in_float32_has_the_documented_error(precision):
    for sigma in SIGMAS:
        error = np.abs(solved(sigma, precision)["gap"] - solved(sigma)["gap"])
        assert error.max() <= GAP_ERROR[precision]


# Transform


@pytest.mark.slow
def test_gradients_are_those_of_finite_differences():
    """f and g are solved for; their gradients come by the implicit function theorem."""
    with jax.enable_x64(True):
        step, at = 1e-5, (model(0.1), jnp.asarray(0.3), jnp.asarray(0.7))
        both = jax.jit(
            jax.value_and_grad(lambda m, z, x: m.generate(z) + 2 * m.invert(x), argnums=(0, 1, 2))
        )
        slopes = jax.tree.leaves(both(*at)[1])
        leaves, structure = jax.tree.flatten(at)
        for i, leaf in enumerate(leaves):
            direction = np.linspace(1.0, 0.5, leaf.size).reshape(leaf.shape)
            ends = [
                jax.tree.unflatten(
                    structure, [*leaves[:i], leaf + by * direction, *leaves[i + 1 :]]
                )
                for by in (step, -step)
            ]
            expected = (both(*ends[0])[0] - both(*ends[1])[0]) / (2 * step)
            np.testing.assert_allclose(np.vdot(slopes[i], direction), expected, atol=1e-8)


def test_far_tails_are_finite_and_right():
    """100 standard deviations out f is as straight as the wider component: f'(z) -> 0.7."""
    ends = np.array([-100.0, -50.0, -30.0, -20.0, 20.0, 30.0, 100.0], np.float32)
    found = jax.device_get(everything(model(1.0), jnp.asarray(X, jnp.float32), jnp.asarray(ends)))
    np.testing.assert_allclose(found["back"], ends, rtol=1e-5)
    np.testing.assert_allclose(found["x_slope"], np.full(7, 0.7), rtol=2e-3)


# Failure


def test_a_vector_is_rejected():
    with pytest.raises(ValueError, match=r"event shape \(\)"):
        model(0.1).log_prob(jnp.zeros(2))
