"""Poisson, negative binomial and zero-inflated negative binomial counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from tests.observations import (
    EPS,
    TOLERANCE,
    assert_computed_in_float32,
    assert_draws_have_the_masses,
    assert_golden,
    assert_made_by_script,
    assert_mean_of_draws,
    assert_rejected,
    assert_transforms_agree,
    draws,
    log_probs,
    log_probs_and_gradient,
    masses,
)

FAMILIES = {
    "poisson": (Poisson, ["log_rate"]),
    "negative_binomial": (NegativeBinomial, ["log_mean", "log_dispersion"]),
    "zero_inflated_negative_binomial": (
        ZeroInflatedNegativeBinomial,
        ["log_mean", "log_dispersion", "zero_logits"],
    ),
}
LOG_MEAN = jnp.array([-20.0, -1.0, 0.0, 1.5, 3.0])
LOG_DISPERSION = jnp.array([0.0, 0.5, 1.0, 20.0, 0.7])
ZERO_LOGITS = jnp.array([0.0, -2.0, 1e4, 0.3, -1e4])
ENOUGH = 600
"""Counts beyond which no mass of these is left: (mean / (mean + theta))^600 < 1e-20."""

mean = jax.jit(lambda p: p.mean())
SAMPLED = ["poisson", "zero_inflated_negative_binomial"]
"""The last draws from a negative binomial: compiling that one's own draws adds only time."""
every_family = pytest.mark.parametrize("family", FAMILIES)


def example(family):
    make, names = FAMILIES[family]
    return make(*(LOG_MEAN, LOG_DISPERSION, ZERO_LOGITS)[: len(names)])


# Golden


@pytest.mark.slow
@every_family
def test_golden_file_is_what_its_script_makes(family):
    assert_made_by_script(family)


@pytest.mark.parametrize("precision", TOLERANCE)
@every_family
def test_log_prob_and_gradient_are_the_golden_values(family, precision):
    assert_golden(family, *FAMILIES[family], precision)


# Law


@every_family
def test_masses_add_up_to_one_and_give_mean_and_variance(family):
    p = example(family)
    mass, x = masses(p, ENOUGH), np.arange(ENOUGH)[:, None]
    # Terms of excess() in small counts add up to 40.
    np.testing.assert_allclose(mass.sum(0), 1.0, rtol=10e-6)
    first, second = (x * mass).sum(0), (x**2 * mass).sum(0)
    np.testing.assert_allclose(mean(p), first, rtol=10e-6)
    mu = np.exp(np.asarray(LOG_MEAN, np.float64))
    # E x^2 = mu + mu^2 + mu^2 / theta, of what is not inflated away.
    expected = mu + mu**2
    if family != "poisson":
        expected = expected + mu**2 * np.exp(-np.asarray(LOG_DISPERSION, np.float64))
    if family == "zero_inflated_negative_binomial":
        expected = expected * np.array([0.5, 0.88079708, 0.0, 0.42555748, 1.0])
    np.testing.assert_allclose(second, expected, rtol=20e-6)


@pytest.mark.parametrize("family", SAMPLED)
def test_draws_have_the_masses(family):
    p = example(family)
    x, mass = draws(p), masses(p, ENOUGH)
    assert_draws_have_the_masses(x, mass)
    expected = np.asarray(mean(p), np.float64)
    variance = ((np.arange(ENOUGH)[:, None] - expected) ** 2 * mass).sum(0)
    assert_mean_of_draws(x, expected, variance)


def test_negative_binomial_of_large_dispersion_is_poisson():
    """Up to ((x - mu)^2 + x) / (2 theta), here less than 1e-6."""
    x, log_rate = jnp.array([0, 1, 7, 30, 30]), jnp.array([1.0, -20.0, 2.0, 3.0, 4.0])
    near, gradient = log_probs_and_gradient(NegativeBinomial(log_rate, jnp.full(5, 20.0)), x)
    limit, slope = log_probs_and_gradient(Poisson(log_rate), x)
    np.testing.assert_allclose(near, limit, rtol=8 * EPS, atol=1e-5)
    np.testing.assert_allclose(gradient.log_mean, slope.log_rate, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient.log_dispersion, jnp.zeros(5), atol=1e-5)


def test_zero_inflated_without_inflation_is_negative_binomial():
    x = jnp.array([0, 1, 7, 0, 30])
    counts = NegativeBinomial(LOG_MEAN, LOG_DISPERSION)
    p = ZeroInflatedNegativeBinomial(LOG_MEAN, LOG_DISPERSION, jnp.array(-1e4))
    np.testing.assert_allclose(log_probs(p, x), log_probs(counts, x), rtol=4 * EPS)
    np.testing.assert_array_equal(mean(p), mean(counts))


def test_large_counts_keep_the_digits_that_the_textbook_formula_loses():
    """A curve over the counts about a mean of 1e6: neighbours differ by log(mu / x)."""
    log_rate = jnp.full(9, np.log(1e6), jnp.float32)
    x = 1e6 + 250.0 * np.arange(-4, 5)
    result = np.asarray(log_probs(Poisson(log_rate), jnp.asarray(x, jnp.float32)), np.float64)
    exact = -((x - 1e6) ** 2) / 2e6 + (x - 1e6) ** 3 / 6e12 - 0.5 * np.log(2 * np.pi * x)
    # log_rate itself is rounded to 4.8e-7 at most, with slope x - mu <= 1000, and so is log x.
    np.testing.assert_allclose(result, exact, rtol=0, atol=2 * 4.8e-7 * 1000 + 1e-4)


@pytest.mark.parametrize("family", SAMPLED)
def test_draws_are_finite_in_the_corners(family):
    make, names = FAMILIES[family]
    corners = ([-20.0, -20.0, 20.0, 20.0, 0.0], [-20.0, 20.0, -20.0, 20.0, 0.0], [0.0] * 5)
    x = draws(make(*(jnp.array(corner) for corner in corners[: len(names)])))
    assert np.isfinite(x).all()
    assert (x >= 0).all()


# Transform


@pytest.mark.slow
@pytest.mark.parametrize("family", SAMPLED)
def test_transforms_agree(family):
    x = jnp.array([0.0, 1.0, 7.0, 0.0, 30.0])
    # Terms: up to 2e4 from zero logits of 1e4.
    terms = 2e4 if family == "zero_inflated_negative_binomial" else 300.0
    assert_transforms_agree(example(family), x, terms, thorough=False)


@pytest.mark.parametrize("family", SAMPLED)
def test_bfloat16_is_computed_in_float32(family):
    assert_computed_in_float32(example(family), jnp.array([0.0, 1.0, 7.0, 0.0, 30.0]))


def test_one_parameter_serves_all_entries():
    make, names = FAMILIES["zero_inflated_negative_binomial"]
    x, shared = jnp.array([0, 1, 7, 0, 30]), [jnp.array(0.3), jnp.array(-0.5)]
    value, gradient = log_probs_and_gradient(make(LOG_MEAN, *shared), x)
    own = [jnp.full(5, leaf) for leaf in shared]
    values, gradients = log_probs_and_gradient(make(LOG_MEAN, *own), x)
    np.testing.assert_allclose(value, values, rtol=4 * EPS)
    for name in names[1:]:
        total = getattr(gradients, name).sum()
        np.testing.assert_allclose(getattr(gradient, name), total, rtol=1e-5)


@every_family
def test_draws_pass_no_gradient(family):
    """Taking a gradient raises no error, though draws contain loops; only Poisson is compiled."""
    slope = jax.grad(lambda p: p.sample(jax.random.key(0)).sum())
    assert jax.eval_shape(slope, example(family)) == jax.eval_shape(lambda p: p, example(family))
    if family == "poisson":
        np.testing.assert_array_equal(jax.jit(slope)(example(family)).log_rate, jnp.zeros(5))


# Failure


@every_family
def test_a_value_of_another_shape_is_rejected(family):
    assert_rejected(example(family), (5,), FAMILIES[family][0].__name__)


@pytest.mark.parametrize("name", ["log_dispersion", "zero_logits"])
def test_a_parameter_of_another_shape_is_rejected(name):
    parameters = {"log_dispersion": LOG_MEAN, "zero_logits": LOG_MEAN} | {name: jnp.zeros(1)}
    p = ZeroInflatedNegativeBinomial(LOG_MEAN, **parameters)
    message = (
        rf"ZeroInflatedNegativeBinomial: {name} must be a scalar or have log_mean's shape \(5,\), "
        r"got \(1,\)\. Reshape it"
    )
    with pytest.raises(ValueError, match=message):
        p.log_prob(LOG_MEAN)
    with pytest.raises(ValueError, match=message):
        p.mean()


@pytest.mark.parametrize("family", [Poisson, NegativeBinomial, ZeroInflatedNegativeBinomial])
def test_a_negative_count_has_no_mass(family):
    p = family(*[jnp.zeros(2)] * len(dataclasses.fields(family)))
    assert p.log_prob(jnp.array([-1.0, 1.0])) == -jnp.inf
    assert jnp.isfinite(p.log_prob(jnp.array([0.0, 1.0])))
