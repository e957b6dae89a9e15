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


def elbo(params, key, row):
    """Evidence lower bound of one row, in nats."""

    def encode(row):  # scales every column to numbers of order 1 for the network
        height, visits, member, colour = row
        seen = jnp.stack(
            [height, jnp.log1p(visits), member, *jax.nn.one_hot(colour.astype(int), 3)]
        )
        h = jnp.tanh(seen @ params["hidden"])
        return jaxvae.Gaussian(*jnp.split(h @ params["posterior"], 2))

    def decode(z):
        h = jnp.tanh(z @ params["back"]) @ params["output"] + params["bias"]
        return Row(
            jaxvae.Gaussian(h[:1], params["log_scale"]),
            jaxvae.Poisson(h[1:2]),
            jaxvae.Bernoulli(h[2:3]),
            jaxvae.Categorical(h[None, 3:]),
        )

    prior = jaxvae.Gaussian.standard(1)
    return jaxvae.elbo(key, row, encode=encode, decode=decode, prior=prior).objective


def mean_elbo(params, key):
    """Mean bound over the table, in nats."""
    keys = jax.random.split(key, len(rows))
    return jax.vmap(elbo, in_axes=(None, 0, 0))(params, keys, rows).mean()


@jax.jit
def step(params, opt_state, key):
    """One step of Adam on the whole table."""
    gradient = jax.grad(lambda params: -mean_elbo(params, key))(params)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, updates), opt_state


key = jax.random.key(0)
group = jax.random.bernoulli(key, shape=(512,)).astype(jnp.float32)  # shared by the columns
noise, counts = jax.random.normal(key, (512,)), jax.random.poisson(key, 1 + 9 * group)
rows = jnp.stack([3 * group + noise, counts, group, 2 * group], axis=1)
layer = lambda i, shape: 0.3 * jax.random.normal(jax.random.fold_in(key, i), shape)
shapes = {"hidden": (6, 16), "posterior": (16, 2), "back": (1, 16), "output": (16, 6)}
params = {name: layer(i, shape) for i, (name, shape) in enumerate(shapes.items())}
params |= {"bias": jnp.zeros(6), "log_scale": jnp.zeros(())}
optimizer = optax.adam(1e-2)
opt_state = optimizer.init(params)
before = mean_elbo(params, key)
for t in range(800):
    params, opt_state = step(params, opt_state, jax.random.fold_in(key, t))
print(f"ELBO {mean_elbo(params, key):.2f} nats per row, {before:.2f} before training")
