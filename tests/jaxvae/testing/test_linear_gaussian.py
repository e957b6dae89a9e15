"""The linear Gaussian model, against float64 linear algebra and Bayes' rule."""

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxvae import FullCovarianceGaussian, Gaussian, kl
from jaxvae.testing import LinearGaussian

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
"""80 eps of float32 per unit of summed terms: the covariances here have condition numbers to 50."""
CASES = {
    "1 from 1, one noise": (1, 1, ()),
    "2 from 3, noise of each": (2, 3, (2,)),
    "20 from 4, one noise": (20, 4, ()),
}

cases = pytest.mark.parametrize("case", CASES)
precisions = pytest.mark.parametrize("precision", TOLERANCE)
kinds = pytest.mark.parametrize("kind", ["diagonal", "full"])


def model_and_data(case):
    dim, latent_dim, noise_shape = CASES[case]
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(dim, latent_dim)) / np.sqrt(latent_dim)
    log_scale = rng.normal(-0.3, 0.3, size=noise_shape)
    model = LinearGaussian(*[jnp.asarray(a) for a in (weight, rng.normal(size=dim), log_scale)])
    return model, jnp.asarray(2 * rng.normal(size=dim))


def guesses(latent_dim):
    """A q(z|x) of each kind that is not the posterior."""
    rng = np.random.default_rng(1)
    loc, log_scale = rng.normal(size=latent_dim), rng.normal(-1.0, 0.3, size=latent_dim)
    tril = np.diag(np.exp(log_scale)) + 0.2 * np.tril(rng.normal(size=2 * [latent_dim]), -1)
    return {
        "diagonal": Gaussian(jnp.asarray(loc), jnp.asarray(log_scale)),
        "full": FullCovarianceGaussian(jnp.asarray(loc), jnp.asarray(tril)),
    }


@jax.jit
def everything(model, x):
    posterior, z = model.posterior(x), jnp.ones(model.weight.shape[1])
    return {
        "log_prob": model.log_prob(x),
        "posterior": posterior,
        "elbo": {kind: model.elbo(x, q) for kind, q in guesses(len(z)).items()},
        "gap": {kind: kl(q, posterior) for kind, q in guesses(len(z)).items()},
        "elbo_at_posterior": model.elbo(x, posterior),
        "log p(x|z), log p(z)": (model.decode(z).log_prob(x), model.prior().log_prob(z)),
        "log p(z|x)": posterior.log_prob(z),
    }


@cache
def solved(case, precision):
    """Model, data and the library's results, as numpy arrays of that precision."""
    with jax.enable_x64(precision == "float64"):
        model, x = model_and_data(case)
        return jax.device_get((model, x, everything(model, x), guesses(model.weight.shape[1])))


def in_float64(model, x):
    """W, b, R, x."""
    weight, bias, log_scale, x = [np.asarray(a, np.float64) for a in (*model, x)]
    return weight, bias, np.diag(np.exp(2 * np.broadcast_to(log_scale, bias.shape))), x


def tril_in_float64(q):
    if isinstance(q, FullCovarianceGaussian):
        return np.asarray(q.scale_tril, np.float64)
    return np.diag(np.exp(np.asarray(q.log_scale, np.float64)))


def density_terms(x, mean, covariance):
    """The absolute terms of a Gaussian log density."""
    square = (x - mean) @ np.linalg.solve(covariance, x - mean)
    log_scales = 0.5 * np.abs(np.log(np.linalg.eigvalsh(covariance)))
    return 0.5 * square + np.sum(log_scales + 0.5 * np.log(2 * np.pi))


# Golden


@cases
@precisions
def test_log_prob_is_scipys(case, precision):
    model, x, result, _ = solved(case, precision)
    assert (result["log_prob"].shape, result["log_prob"].dtype.name) == ((), precision)
    weight, bias, noise, x = in_float64(model, x)
    covariance = weight @ weight.T + noise
    expected = scipy.stats.multivariate_normal.logpdf(x, bias, covariance)
    tolerance = TOLERANCE[precision] * density_terms(x, bias, covariance)
    assert abs(float(result["log_prob"]) - expected) <= tolerance


@cases
@precisions
def test_posterior_is_that_of_float64_linear_algebra(case, precision):
    """The conditional of the joint Gaussian, W^T (W W^T + R)^-1, unlike the library's formula."""
    model, x, result, _ = solved(case, precision)
    weight, bias, noise, x = in_float64(model, x)
    gain = weight.T @ np.linalg.inv(weight @ weight.T + noise)
    loc, covariance = gain @ (x - bias), np.eye(weight.shape[1]) - gain @ weight
    largest, tril = np.max(np.abs(gain) @ np.abs(x - bias)), tril_in_float64(result["posterior"])
    tolerance = TOLERANCE[precision]
    np.testing.assert_allclose(result["posterior"].loc, loc, rtol=0, atol=tolerance * largest)
    np.testing.assert_allclose(tril @ tril.T, covariance, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(np.triu(tril, 1), np.zeros_like(tril))


@cases
@precisions
@kinds
def test_elbo_is_the_formula_in_float64(case, precision, kind):
    """E_q log p(x|z) = log N(x | W m + b, R) - 1/2 tr(R^-1 W S W^T) for q = N(m, S)."""
    model, x, result, q = solved(case, precision)
    weight, bias, noise, x = in_float64(model, x)
    m, tril = np.asarray(q[kind].loc, np.float64), tril_in_float64(q[kind])
    center = weight @ m + bias
    reconstruction = scipy.stats.multivariate_normal.logpdf(x, center, noise)
    spread = 0.5 * np.sum((weight @ tril) ** 2 / np.diag(noise)[:, None])
    log_det = 2 * np.log(np.diag(tril)).sum()
    rate = 0.5 * (np.sum(tril**2) + m @ m - len(m) - log_det)
    terms = density_terms(x, center, noise) + spread + rate + len(m)
    error = abs(float(result["elbo"][kind]) - (reconstruction - spread - rate))
    assert error <= TOLERANCE[precision] * terms


# Law


@cases
@precisions
def test_bayes_rule_holds(case, precision):
    """log p(x|z) + log p(z) - log p(z|x) = log p(x), here at z = (1, ..., 1)."""
    _, _, result, _ = solved(case, precision)
    parts = [*result["log p(x|z), log p(z)"], -result["log p(z|x)"], -result["log_prob"]]
    assert abs(np.sum(parts, dtype=np.float64)) <= TOLERANCE[precision] * np.sum(np.abs(parts))


@cases
@precisions
@kinds
def test_elbo_is_log_prob_less_the_gap(case, precision, kind):
    """log p(x) - KL(q || p(z|x)) = E_q log p(x|z) - KL(q || p(z)): Doersch 2016, equation 5."""
    _, _, result, _ = solved(case, precision)
    parts = [result["log_prob"], -result["gap"][kind], -result["elbo"][kind]]
    assert result["gap"][kind] > 0.01
    assert abs(np.sum(parts, dtype=np.float64)) <= TOLERANCE[precision] * np.sum(np.abs(parts))


@cases
@precisions
def test_elbo_at_the_posterior_is_log_prob(case, precision):
    model, x, result, _ = solved(case, precision)
    _, bias, noise, x = in_float64(model, x)
    terms = density_terms(x, bias, noise)  # more than those of either side
    error = abs(float(result["elbo_at_posterior"]) - float(result["log_prob"]))
    assert error <= TOLERANCE[precision] * terms


def test_gradient_of_the_elbo_vanishes_at_the_posterior():
    """The ELBO is largest there; this checks elbo and posterior independently of constants."""
    with jax.enable_x64(True):
        model, x = model_and_data("2 from 3, noise of each")
        slope = jax.jit(jax.grad(model.elbo, argnums=1))(x, model.posterior(x))
    np.testing.assert_allclose(slope.loc, np.zeros(3), atol=1e-10)
    np.testing.assert_allclose(slope.scale_tril, np.zeros((3, 3)), atol=1e-10)


def test_a_scalar_noise_applies_to_every_dimension():
    model, x = model_and_data("20 from 4, one noise")
    spread = model._replace(log_scale=jnp.full(model.bias.shape, model.log_scale))
    chex.assert_trees_all_close(everything(model, x), everything(spread, x), rtol=1e-5, atol=1e-6)


# Transform


@pytest.mark.slow
def test_eager_jit_vmap_and_pmap_agree():
    model, x = model_and_data("2 from 3, noise of each")
    q = guesses(3)["full"]
    batch = np.stack([np.asarray(x) * 0.1 * (i + 1) for i in range(8)])

    def scores(x):
        return model.log_prob(x), model.posterior(x), model.elbo(x, q)

    stacked = lambda fn: jax.tree.map(lambda *leaves: np.stack(leaves), *[fn(x) for x in batch])
    eager = stacked(scores)
    chex.clear_trace_counter()
    for result in (
        stacked(jax.jit(chex.assert_max_traces(scores, 1))),
        jax.device_get(jax.jit(jax.vmap(scores))(batch)),
        jax.device_get(jax.pmap(scores)(batch)),
    ):
        chex.assert_trees_all_close(result, eager, rtol=1e-5, atol=1e-6)


# Failure


def test_data_of_another_size_are_rejected():
    model, _ = model_and_data("2 from 3, noise of each")
    with pytest.raises(ValueError, match=r"value has shape \(4,\), this .* event shape \(2,\)"):
        model.log_prob(jnp.zeros(4))
    with pytest.raises(ValueError, match=r"value has shape \(4,\), this .* event shape \(2,\)"):
        model.decode(jnp.zeros(3)).log_prob(jnp.zeros(4))
