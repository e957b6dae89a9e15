"""Table with columns of different kinds: a real number, a count, a binary value, a category.

python -m experiments.examples.mixed_columns
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxvae


class Row(NamedTuple):
    """p(x|z) of one row: independent columns, each with its own distribution."""

    height: jaxvae.Gaussian
    visits: jaxvae.Poisson
    member: jaxvae.Bernoulli
    colour: jaxvae.Categorical

    def log_prob(self, row):
        """Sum of the columns' log probabilities, in nats: densities and masses add up."""
        return sum(column.log_prob(row[i : i + 1]) for i, column in enumerate(self))


def init(key):
    """Draw the parameters."""
    shapes = {"hidden": (6, 16), "posterior": (16, 2), "back": (1, 16), "output": (16, 6)}
    layer = lambda i, shape: 0.3 * jax.random.normal(jax.random.fold_in(key, i), shape)
    layers = {name: layer(i, shape) for i, (name, shape) in enumerate(shapes.items())}
    return layers | {"bias": jnp.zeros(6), "log_scale": jnp.zeros(())}


def encode(params, row):
    """Return q(z|x); the network sees every column as numbers of order 1."""
    height, visits, member, colour = row
    seen = jnp.stack([height, jnp.log1p(visits), member, *jax.nn.one_hot(colour.astype(int), 3)])
    return jaxvae.Gaussian(*jnp.split(jnp.tanh(seen @ params["hidden"]) @ params["posterior"], 2))


def decode(params, z):
    """Return p(x|z)."""
    h = jnp.tanh(z @ params["back"]) @ params["output"] + params["bias"]
    return Row(
        jaxvae.Gaussian(h[:1], params["log_scale"]),
        jaxvae.Poisson(h[1:2]),
        jaxvae.Bernoulli(h[2:3]),
        jaxvae.Categorical(h[None, 3:]),
    )


key = jax.random.key(0)
group = jax.random.bernoulli(key, shape=(512,)).astype(jnp.float32)  # shared by the columns
noise, counts = jax.random.normal(key, (512,)), jax.random.poisson(key, 1 + 9 * group)
rows = jnp.stack([3 * group + noise, counts, group, 2 * group], axis=1)
vae = jaxvae.VAE(init, encode, decode, prior=lambda params: jaxvae.Gaussian.standard(1))
optimizer = optax.adam(1e-2)
state = jaxvae.init_state(vae, optimizer, key)
step = jax.jit(jaxvae.make_train_step(vae, optimizer))
elbos = []
for t in range(800):
    state, metrics = step(state, jax.random.split(jax.random.fold_in(key, t), len(rows)), rows)
    elbos.append(metrics["elbo"])
print(f"ELBO {elbos[-1]:.2f} nats per row, {elbos[0]:.2f} before training")
