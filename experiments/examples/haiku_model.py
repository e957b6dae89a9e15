"""Haiku networks, transformed into pure functions.

python -m experiments.examples.haiku_model
"""

from functools import partial

import haiku as hk
import jax
import jax.numpy as jnp
import optax

import jaxvae


def q_of(x):
    """Return q(z|x)."""
    return jaxvae.Gaussian(*jnp.split(hk.nets.MLP([32, 4], activation=jnp.tanh)(x), 2))


def p_of(z):
    """Return p(x|z)."""
    return jaxvae.Bernoulli(hk.nets.MLP([32, 8], activation=jnp.tanh)(z))


encoder, decoder = (hk.without_apply_rng(hk.transform(network)) for network in (q_of, p_of))


def elbo(params, key, x):
    """Evidence lower bound of one example, in nats."""
    encode, decode = partial(encoder.apply, params[0]), partial(decoder.apply, params[1])
    prior = jaxvae.Gaussian.standard(2)
    return jaxvae.elbo(key, x, encode=encode, decode=decode, prior=prior).objective


@jax.jit
def step(params, opt_state, keys, xs):
    """One step of Adam."""
    loss = lambda params: -jax.vmap(elbo, in_axes=(None, 0, 0))(params, keys, xs).mean()
    updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
    return optax.apply_updates(params, updates), opt_state


key = jax.random.key(0)
xs = jnp.repeat(jax.random.bernoulli(key, shape=(512, 2)), 4, axis=1).astype(jnp.float32)
params = encoder.init(key, xs[0]), decoder.init(key, jnp.zeros(2))
optimizer = optax.adam(1e-2)
opt_state = optimizer.init(params)
for t in range(500):
    keys = jax.random.split(jax.random.fold_in(key, t), len(xs))
    params, opt_state = step(params, opt_state, keys, xs)
bounds = jax.vmap(elbo, in_axes=(None, 0, 0))(params, jax.random.split(key, len(xs)), xs)
print(f"ELBO {bounds.mean():.2f} nats, exact log p(x) {-2 * jnp.log(2):.2f}")
