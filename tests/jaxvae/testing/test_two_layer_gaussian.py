"""The two-layer linear Gaussian model, against scipy and Bayes' rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxvae import Gaussian, kl
from jaxvae.testing import LinearGaussian, TwoLayerGaussian
from tests.oracles import two_layer_model

TOLERANCE = 1e-9
"""Relative, in float64: sums of 30 terms of order 1, and covariances of condition numbers to 50."""


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def test_log_prob_is_scipys():
    model, _, x = two_layer_model()
    chain, w = model.chain, np.asarray(model.weight)
    inner = np.asarray(chain.weight)
    of_first = inner @ np.diag(np.exp(2 * chain.log_scale)) @ inner.T
    of_second = of_first + np.diag(np.exp(2 * chain.noise))
    covariance = w @ of_second @ w.T + np.diag(np.exp(2 * model.log_scale))
    mean = w @ (inner @ chain.loc + chain.bias) + model.bias
    expected = scipy.stats.multivariate_normal(mean, covariance).logpdf(x)
    assert float(model.log_prob(x)) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("top_down", [True, False])
def test_log_joint_less_log_posterior_is_log_prob_at_any_latents(top_down):
    model, _, x = two_layer_model()
    posterior = model.posterior(x, top_down=top_down)
    for seed in range(3):
        z = jax.tree.map(lambda z: 2 * z, model.prior().sample(jax.random.key(seed)))
        joint = model.prior().log_prob(z) + model.decode(z).log_prob(x)
        expected = pytest.approx(float(model.log_prob(x)), rel=TOLERANCE)
        assert float(joint - posterior.log_prob(z)) == expected


def test_elbo_is_the_mean_over_draws_of_its_terms():
    model, chain, x = two_layer_model()
    q = chain.hierarchy()

    def term(key):
        z, log_q = q.sample_and_log_prob(key)
        return model.decode(z).log_prob(x) + model.prior().log_prob(z) - log_q

    terms = np.asarray(jax.vmap(term)(jax.random.split(jax.random.key(0), 100_000)))
    error = terms.std() / np.sqrt(len(terms))
    assert float(model.elbo(x, chain)) == pytest.approx(terms.mean(), abs=4 * error)
    assert error < 0.1  # the ELBO is -27


def test_elbo_of_a_single_level_is_that_of_the_linear_gaussian_model():
    """Without weights between the levels the upper one is its prior, and adds its KL only."""
    model, chain, x = two_layer_model()
    apart = lambda one: one._replace(weight=jnp.zeros_like(one.weight))
    standard = apart(model.chain)._replace(
        bias=jnp.zeros_like(model.chain.bias), noise=jnp.zeros_like(model.chain.noise)
    )
    model, q = TwoLayerGaussian(standard, *model[1:]), apart(chain)
    above = kl(Gaussian(q.loc, q.log_scale), Gaussian(standard.loc, standard.log_scale))
    below = LinearGaussian(*model[1:]).elbo(x, Gaussian(q.bias, q.noise))
    assert float(model.elbo(x, q)) == pytest.approx(float(below - above), rel=TOLERANCE)
