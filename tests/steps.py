"""Small models, batches and compiled steps, for the tests of the training step.

`jax.vmap` with an axis name stands in for the devices; `test_devices` uses simulated devices.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxvae
from jaxvae import Bernoulli, Gaussian
from jaxvae.models.builders import mlp_vae
from jaxvae.models.vae import VAE
from jaxvae.training.state import init_state
from jaxvae.training.step import make_train_step

BATCH, DIM, RATE, DECAY = 8, 5, 0.1, 0.9
SGD, ADAM = optax.sgd(RATE), optax.adam(1e-2)
LIKELIHOODS = {
    "bernoulli": {},
    "learned sigma": {"likelihood": "gaussian", "sigma": "learned"},
    "optimal sigma": {"likelihood": "gaussian", "sigma": "optimal"},
}


@cache
def toy(likelihood="bernoulli"):
    """Small network with parameters drawn by numpy: Flax's initialization compiles for seconds."""
    vae = mlp_vae(data_shape=(DIM,), latent_dim=2, hidden=(6,), **LIKELIHOODS[likelihood])
    shapes = jax.eval_shape(vae.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(scale=0.4, size=leaf.shape), shapes)
    to_default_float = lambda leaf: jnp.asarray(leaf, float)
    return vae._replace(init=lambda key: jax.tree.map(to_default_float, params))


def linear(scales=1.0):
    """VAE without networks: q(z|x) = N(3 + scales * x, I), and p(x|z) with logits z + bias."""
    return VAE(
        init=lambda key: {"bias": jnp.zeros(DIM)},
        encode=lambda params, x: Gaussian(3.0 + x * scales, jnp.zeros(DIM)),
        decode=lambda params, z: Bernoulli(z + params["bias"]),
        prior=lambda params: Gaussian.standard(DIM),
    )


def batch(seed=0):
    """Make keys [BATCH] and examples [BATCH, DIM] of zeros and ones."""
    xs = np.random.default_rng(seed).integers(0, 2, (BATCH, DIM))
    return jax.random.split(jax.random.key(seed), BATCH), jnp.asarray(xs, float)


def bad_batch():
    keys, xs = batch(1)
    return keys, xs.at[3, 1].set(jnp.nan)


@cache
def jitted(likelihood, optimizer, average_decay=None):
    """Compile a step once for several tests: compilation takes most of their time."""
    return jax.jit(make_train_step(toy(likelihood), optimizer, average_decay=average_decay))


@cache
def jitted_shards():
    """Compile the SGD step on shards [4, BATCH / 4] of a batch; results are those of each shard."""
    step = make_train_step(toy(), SGD, axis_name="devices")
    return jax.jit(jax.vmap(step, (None, 0, 0), axis_name="devices"))


def in_shards(keys, xs):
    return keys.reshape(4, -1), xs.reshape(4, -1, DIM)


def first_state(likelihood="bernoulli", optimizer=SGD, averaging=False):
    return init_state(toy(likelihood), optimizer, jax.random.key(0), averaging=averaging)


def parts(vae, params):
    return {
        "encode": partial(vae.encode, params),
        "decode": partial(vae.decode, params),
        "prior": vae.prior(params),
    }


def bounds(vae, params, keys, xs, objective=jaxvae.elbo):
    """Compute the bound of each row, with the second of the two keys split from the row's key."""

    def of_one(key, x):
        return objective(jax.random.split(key)[1], x, **parts(vae, params))

    return jax.vmap(of_one)(keys, xs)


jitted_bounds = jax.jit(bounds, static_argnums=0)


def row(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def movement(new, old):
    return flat(new.params) - flat(old.params)


def learned(state):
    """Return the parts of a state that a skipped step must not change."""
    return state._replace(step=0, skipped=0, skipped_in_row=0)


def counters(state):
    return int(state.step), int(state.skipped), int(state.skipped_in_row)
