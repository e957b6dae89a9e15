"""Flax NNX module with dropout, whose random numbers come from the example's key.

python -m experiments.examples.nnx_dropout
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxvae


class VAE(nnx.Module):
    """Encoder and decoder with one hidden layer each and two latents; the encoder has dropout."""

    def __init__(self, rngs):
        self.hidden, self.posterior = nnx.Linear(8, 32, rngs=rngs), nnx.Linear(32, 4, rngs=rngs)
        self.back, self.output = nnx.Linear(2, 32, rngs=rngs), nnx.Linear(32, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.1)

    def encode(self, x, rngs):
        """Return q(z|x)."""
        h = self.dropout(nnx.tanh(self.hidden(x)), rngs=rngs)
        return jaxvae.Gaussian(*jnp.split(self.posterior(h), 2))

    def decode(self, z):
        """Return p(x|z)."""
        return jaxvae.Bernoulli(self.output(nnx.tanh(self.back(z))))


def elbo(model, key, x):
    """Evidence lower bound of one example, in nats."""
    key_bound, key_dropout = jax.random.split(key)
    # An Rngs stored in the module counts its calls, and vmap would have to share that counter
    # between examples. One Rngs per example, made from the example's key, needs no counter.
    encode = lambda x: model.encode(x, nnx.Rngs(dropout=key_dropout))
    prior = jaxvae.Gaussian.standard(2)
    return jaxvae.elbo(key_bound, x, encode=encode, decode=model.decode, prior=prior).objective


@nnx.jit
def step(model, optimizer, keys, xs):
    """One step of Adam."""
    loss = lambda model: -jax.vmap(elbo, in_axes=(None, 0, 0))(model, keys, xs).mean()
    optimizer.update(model, nnx.grad(loss)(model))


key = jax.random.key(0)
xs = jnp.repeat(jax.random.bernoulli(key, shape=(512, 2)), 4, axis=1).astype(jnp.float32)
model = VAE(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
model.train()
for t in range(500):
    step(model, optimizer, jax.random.split(jax.random.fold_in(key, t), len(xs)), xs)
model.eval()  # no dropout
bounds = jax.vmap(elbo, in_axes=(None, 0, 0))(model, jax.random.split(key, len(xs)), xs)
print(f"ELBO {bounds.mean():.2f} nats, exact log p(x) {-2 * jnp.log(2):.2f}")
