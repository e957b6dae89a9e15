"""Distributions of numpyro as posterior, likelihood and prior.

python -m experiments.examples.numpyro_distributions
"""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

import jaxvae

W = jnp.array([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # z ~ N(0, I), x ~ N(W z, I)
COVARIANCE = jnp.linalg.inv(jnp.eye(2) + W.T @ W)  # of the true posterior


def encode(x):
    """Return the true posterior."""
    return jaxvae.adapt(dist.MultivariateNormal(COVARIANCE @ W.T @ x, COVARIANCE))


def decode(z):
    """Return p(x|z); to_event(1) makes its three entries one event."""
    return jaxvae.adapt(dist.Normal(W @ z, 1.0).to_event(1))


prior = jaxvae.adapt(dist.Normal(jnp.zeros(2), 1.0).to_event(1))
x = jnp.array([1.0, 0.5, 2.0])
bound = jaxvae.iwae(jax.random.key(0), x, encode=encode, decode=decode, prior=prior, num_samples=5)
exact = jax.scipy.stats.multivariate_normal.logpdf(x, jnp.zeros(3), jnp.eye(3) + W @ W.T)
# At the true posterior every draw has the same weight, p(x): the bound is exact.
print(f"IWAE {bound.objective:.4f} nats, exact log p(x) {exact:.4f}")
