"""Equinox modules under filter_jit.

python -m experiments.examples.equinox_model
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import jaxvae


class VAE(eqx.Module):
    """Two MLPs, with two latents between them."""

    encoder: eqx.nn.MLP
    decoder: eqx.nn.MLP

    def __init__(self, key):
        key_encoder, key_decoder = jax.random.split(key)
        self.encoder = eqx.nn.MLP(8, 4, 32, 1, jnp.tanh, key=key_encoder)
        self.decoder = eqx.nn.MLP(2, 8, 32, 1, jnp.tanh, key=key_decoder)

    def elbo(self, key, x):
        """Evidence lower bound of one example, in nats."""
        encode = lambda x: jaxvae.Gaussian(*jnp.split(self.encoder(x), 2))
        decode = lambda z: jaxvae.Bernoulli(self.decoder(z))
        prior = jaxvae.Gaussian.standard(2)
        return jaxvae.elbo(key, x, encode=encode, decode=decode, prior=prior).objective


@eqx.filter_jit
def step(model, opt_state, keys, xs):
    """One step of Adam; the module's arrays are trained, its functions are static."""
    loss = lambda model: -jax.vmap(model.elbo)(keys, xs).mean()
    updates, opt_state = optimizer.update(eqx.filter_grad(loss)(model), opt_state)
    return eqx.apply_updates(model, updates), opt_state


key = jax.random.key(0)
xs = jnp.repeat(jax.random.bernoulli(key, shape=(512, 2)), 4, axis=1).astype(jnp.float32)
model = VAE(key)
optimizer = optax.adam(1e-2)
opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
for t in range(500):
    keys = jax.random.split(jax.random.fold_in(key, t), len(xs))
    model, opt_state = step(model, opt_state, keys, xs)
bounds = jax.vmap(model.elbo)(jax.random.split(key, len(xs)), xs)
print(f"ELBO {bounds.mean():.2f} nats, exact log p(x) {-2 * jnp.log(2):.2f}")
