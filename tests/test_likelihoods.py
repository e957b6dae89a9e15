"""How a decoder's outputs become p(x|z), and what sigma a Gaussian one has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxvae import Bernoulli, Gaussian, soft_clamp
from jaxvae.likelihoods import LIKELIHOODS, Likelihood, bernoulli, gaussian, likelihood_named

SHAPE = (3, 2, 1)
FAMILIES = {
    "bernoulli": bernoulli(),
    "sigma 0.3": gaussian(0.3),
    "sigma learned": gaussian("learned"),
    "sigma optimal": gaussian("optimal"),
}

families = pytest.mark.parametrize("name", FAMILIES)


def output_and_data():
    rng = np.random.default_rng(0)
    output, x = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    return output, x


def learned_log_scale(log_scale):
    """The parameter of a learned sigma, before its soft_clamp, at which log sigma is this."""
    return jnp.float32(7 * np.arctanh(log_scale / 7))


def log_prob(family, log_scale, output, x):
    return family.distribution({"log_scale": log_scale}, output).log_prob(x)


# Golden


@families
def test_log_prob_is_scipys(name):
    """Six terms of order one: 1e-5 is 80 eps of float32."""
    output, x = output_and_data()
    family = FAMILIES[name]
    params = family.init(0.3)
    if name == "bernoulli":
        x = (x > 0).astype(np.float32)
        expected = scipy.stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-output.astype(float))))
    else:
        sigma = np.exp(7 * np.tanh(np.log(0.3) / 7)) if name == "sigma learned" else 0.3
        expected = scipy.stats.norm.logpdf(x.astype(float), output, sigma)
    actual = family.distribution(params, jnp.asarray(output)).log_prob(x)
    assert abs(float(actual) - expected.sum()) <= 1e-5 * np.abs(expected).sum()


# Law


@families
def test_output_at_a_mean_has_that_mean(name):
    """A Bernoulli's to within 0.01 of certainty, from where gradients still lead away."""
    mean = np.linspace(0, 1, 6, dtype=np.float32).reshape(SHAPE)
    family = FAMILIES[name]
    result = family.distribution(family.init(1.0), family.output_at(mean)).mean()
    expected = np.clip(mean, 0.01, 0.99) if name == "bernoulli" else mean
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


@families
def test_own_parameters_start_at_the_data_scale(name):
    params = FAMILIES[name].init(0.25)
    if name in ("bernoulli", "sigma 0.3"):
        assert params == {}
    else:
        assert set(params) == {"log_scale"}
        assert (params["log_scale"].shape, params["log_scale"].dtype) == ((), "float32")
        np.testing.assert_allclose(params["log_scale"], np.log(0.25), rtol=1e-6)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_gradient_of_a_learned_sigma_is_its_closed_form(factor):
    """d log p / d log sigma = D (MSE / sigma^2 - 1): zero at sigma^2 = MSE, and only there."""
    output, x = output_and_data()
    mean_square = np.square(x - output, dtype=np.float64).mean()
    log_sigma = 0.5 * np.log(factor * mean_square)
    slope = jax.jit(jax.grad(log_prob, argnums=1), static_argnums=0)(
        gaussian("learned"), learned_log_scale(log_sigma), output, x
    )
    bend = 1 - (log_sigma / 7) ** 2  # of soft_clamp, at the parameter
    expected = x.size * (1 / factor - 1) * bend
    assert abs(float(slope) - expected) <= 1e-5 * x.size * (1 / factor + 1)


def test_a_learned_sigma_stays_within_the_clamp():
    for size in (-1e6, 1e6):
        p = gaussian("learned").distribution({"log_scale": jnp.float32(size)}, jnp.zeros(2))
        assert p.log_scale == soft_clamp(jnp.float32(size)) == np.sign(size) * 7


@pytest.mark.parametrize("sigma", ["learned", "optimal"])
def test_the_mean_squared_error_is_the_sigma_squared_of_the_highest_likelihood(sigma):
    """Against a grid of factors; the nearest differ by D / 4 * log(1.1)^2 = 0.014 nats."""
    output, x = output_and_data()
    optimum = 0.5 * np.log(np.square(x - output, dtype=np.float64).mean())
    grid = optimum + 0.5 * np.log(1.1) * np.arange(-40, 41)
    params = learned_log_scale(grid) if sigma == "learned" else jnp.float32(grid)
    over_grid = jax.vmap(lambda log_scale: log_prob(gaussian(sigma), log_scale, output, x))
    values = np.asarray(over_grid(params))
    assert values.argmax() == 40
    assert values[40] - max(values[39], values[41]) > 0.01


def test_an_optimal_sigma_passes_no_gradient_to_itself():
    """But the one to the network, that of the Gaussian with this sigma: (x - f) / sigma^2."""
    output, x = output_and_data()
    to_scale, to_output = jax.grad(log_prob, argnums=(1, 2))(
        gaussian("optimal"), jnp.log(0.5), output, x
    )
    assert to_scale == 0
    np.testing.assert_allclose(to_output, (x - output) / 0.25, rtol=1e-5)


def test_only_an_optimal_sigma_can_be_set():
    setters = {name: family.with_log_scale for name, family in FAMILIES.items()}
    set_scale = setters.pop("sigma optimal")
    assert set(setters.values()) == {None}
    params = {"log_scale": jnp.zeros(())}
    assert set_scale(params, jnp.float32(-1.5)) == {"log_scale": -1.5}
    assert params["log_scale"] == 0


def test_a_fixed_sigma_does_not_depend_on_parameters_or_data_scale():
    p = gaussian(2).distribution({"log_scale": jnp.float32(5.0)}, jnp.zeros(SHAPE))
    np.testing.assert_allclose(p.log_scale, np.log(2), rtol=1e-6)
    assert gaussian(2).init(0.1) == {}


@pytest.mark.parametrize(("name", "kind"), [("bernoulli", Bernoulli), ("gaussian", Gaussian)])
def test_a_likelihood_has_the_distribution_of_its_name(name, kind):
    family = likelihood_named(name, 0.5)
    assert isinstance(family, Likelihood)
    assert type(family.distribution(family.init(1.0), jnp.zeros(SHAPE))) is kind


def test_a_likelihood_can_be_added(monkeypatch):
    monkeypatch.setitem(LIKELIHOODS, "two words", lambda sigma: gaussian(sigma / 2))
    p = likelihood_named("two words", 1.0).distribution({}, jnp.zeros(SHAPE))
    np.testing.assert_allclose(p.log_scale, -np.log(2), rtol=1e-6)


# Transform


@families
def test_eager_jit_and_vmap_agree(name):
    family = FAMILIES[name]
    outputs, xs = np.random.default_rng(1).random((2, 4, *SHAPE), dtype=np.float32)
    one = lambda output, x: family.distribution(family.init(0.5), output).log_prob(x)
    eager = [one(output, x) for output, x in zip(outputs, xs, strict=True)]
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(outputs, xs), eager, rtol=1e-5)


# Failure


@pytest.mark.parametrize("sigma", [0.0, -0.5, np.inf, np.nan, "best", "0.5"])
def test_a_sigma_that_is_none_is_refused(sigma):
    message = r"sigma must be a positive number, learned or optimal, got '?(0|-0|inf|nan|best)"
    with pytest.raises(ValueError, match=message):
        gaussian(sigma)


def test_an_unknown_likelihood_is_refused():
    with pytest.raises(ValueError, match=r"likelihood must be one of .*gaussian.*, got 'normal'"):
        likelihood_named("normal", "learned")
