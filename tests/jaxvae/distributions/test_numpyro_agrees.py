"""Families that scipy lacks, against numpyro's, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as npd
import pytest

import jaxvae
from jaxvae import kl

RNG = np.random.default_rng(0)
LOC, FACTOR, LOG_SCALE = RNG.normal(size=5), RNG.normal(size=(5, 2)), 0.3 * RNG.normal(size=5)
TRIL = np.tril(0.3 * RNG.normal(size=(5, 5)), -1) + np.diag(np.exp(LOG_SCALE))
LOG_MEAN, LOG_DISPERSION, ZERO_LOGITS = RNG.normal(size=(3, 5))
REAL, COUNTS = RNG.normal(size=5), np.array([0.0, 1.0, 2.0, 7.0, 0.0])

PAIRS = {
    "low rank": lambda: (
        jaxvae.LowRankGaussian(LOC, FACTOR, LOG_SCALE),
        npd.LowRankMultivariateNormal(LOC, FACTOR, np.exp(2 * LOG_SCALE)),
        REAL,
    ),
    "full covariance": lambda: (
        jaxvae.FullCovarianceGaussian(LOC, TRIL),
        npd.MultivariateNormal(LOC, scale_tril=TRIL),
        REAL,
    ),
    "negative binomial": lambda: (
        jaxvae.NegativeBinomial(LOG_MEAN, LOG_DISPERSION),
        npd.NegativeBinomial2(np.exp(LOG_MEAN), np.exp(LOG_DISPERSION)),
        COUNTS,
    ),
    "zero-inflated negative binomial": lambda: (
        jaxvae.ZeroInflatedNegativeBinomial(LOG_MEAN, LOG_DISPERSION, ZERO_LOGITS),
        npd.ZeroInflatedNegativeBinomial2(
            np.exp(LOG_MEAN), np.exp(LOG_DISPERSION), gate_logits=ZERO_LOGITS
        ),
        COUNTS,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_log_prob_is_numpyros(name):
    with jax.enable_x64(True):
        ours, theirs, value = jax.tree.map(jnp.asarray, PAIRS[name]())
        expected = np.asarray(theirs.log_prob(value))
        # numpyro's counts are off by 1e-7 themselves: test_counts holds ours to 1e-12.
        tolerance = (1e-6 if "binomial" in name else 1e-11) * np.abs(expected).sum()
        assert abs(float(ours.log_prob(value)) - expected.sum()) <= tolerance


@pytest.mark.slow
def test_kl_of_two_full_covariances_is_numpyros():
    other = TRIL.T @ TRIL + np.eye(5)
    with jax.enable_x64(True):
        q = jaxvae.FullCovarianceGaussian(jnp.asarray(LOC), jnp.asarray(TRIL))
        factor = jnp.linalg.cholesky(jnp.asarray(other))
        p = jaxvae.FullCovarianceGaussian(jnp.asarray(REAL), factor)
        expected = npd.kl_divergence(
            npd.MultivariateNormal(q.loc, scale_tril=q.scale_tril),
            npd.MultivariateNormal(p.loc, scale_tril=p.scale_tril),
        )
        np.testing.assert_allclose(kl(q, p), expected, rtol=1e-11)
