"""ELBO of your own model, next to the exact log p(x).

python -m experiments.examples.own_model
"""

import jax
import jax.numpy as jnp

import jaxvae

W = jnp.array([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # z ~ N(0, I), x ~ N(W z, I)
PRECISION = jnp.eye(2) + W.T @ W  # of the true posterior p(z|x)


def encode(x):
    """Return q(z|x): the true mean, and the best diagonal covariance about it."""
    loc = jnp.linalg.solve(PRECISION, W.T @ x)
    return jaxvae.Gaussian(loc, log_scale=-0.5 * jnp.log(jnp.diag(PRECISION)))


def decode(z):
    """Return p(x|z)."""
    return jaxvae.Gaussian(W @ z, log_scale=jnp.zeros(()))


def elbo(key, x):
    """Evidence lower bound of one example, in nats."""
    prior = jaxvae.Gaussian.standard(2)
    return jaxvae.elbo(key, x, encode=encode, decode=decode, prior=prior).elbo


x = jnp.array([1.0, 0.5, 2.0])
keys = jax.random.split(jax.random.key(0), 10_000)
elbos = jax.vmap(elbo, in_axes=(0, None))(keys, x)  # the bound of one draw for each key
exact = jax.scipy.stats.multivariate_normal.logpdf(x, jnp.zeros(3), jnp.eye(3) + W @ W.T)
print(f"ELBO {elbos.mean():.3f} nats, exact log p(x) {exact:.3f}")
