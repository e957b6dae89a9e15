"""The draws of `jaxvae.cpu.threefry` are those of jax.random."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.cpu import threefry

KEY = jax.random.key(7)
PAIRS = {
    "bits": (partial(threefry.bits, shape=(3, 5)), partial(jax.random.bits, shape=(3, 5))),
    "uniform": (partial(threefry.uniform, shape=(40,)), partial(jax.random.uniform, shape=(40,))),
    "one": (partial(threefry.uniform, shape=()), jax.random.uniform),
    "none": (partial(threefry.bits, shape=(0,)), partial(jax.random.bits, shape=(0,))),
    "bernoulli": (
        lambda key: threefry.bernoulli(key, jnp.linspace(0.0, 1.0, 60).reshape(3, 20)),
        lambda key: jax.random.bernoulli(key, jnp.linspace(0.0, 1.0, 60).reshape(3, 20)),
    ),
    "normal": (
        lambda key: threefry.normal(key, (2, 30), jnp.float32),
        lambda key: jax.random.normal(key, (2, 30)),
    ),
    "half": (
        lambda key: threefry.normal(key, (9,), jnp.bfloat16),
        lambda key: jax.random.normal(key, (9,), jnp.bfloat16),
    ),
}
pairs = pytest.mark.parametrize("name", PAIRS)


@pairs
def test_draws_are_those_of_jax(name):
    """Without jit, with it and under vmap; jax's own are the same in all three."""
    ours, jaxs = PAIRS[name]
    both = lambda key: [(f(key), jax.vmap(f)(jax.random.split(key, 6))) for f in (ours, jaxs)]
    got, expected = jax.jit(both)(KEY)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    np.testing.assert_array_equal(ours(KEY), expected[0])


@pytest.mark.parametrize("key", [jax.random.key(3, impl="rbg"), jax.random.key(3)], ids=str)
def test_other_generators_and_settings_are_left_to_jax(key):
    with jax.threefry_partitionable(False):
        ours = threefry.uniform(key, (11,))
        np.testing.assert_array_equal(ours, jax.random.uniform(key, (11,)))


def test_float64_draws_in_x64_are_those_of_jax():
    with jax.enable_x64(True):
        p = jnp.full((50,), 0.5, jnp.float64)
        ours = threefry.bernoulli(KEY, p)
        np.testing.assert_array_equal(ours, jax.random.bernoulli(KEY, p))
        assert threefry.bits(KEY, (3,)).dtype == jnp.uint32
        assert threefry.normal(KEY, (3,), jnp.float64).dtype == jnp.float64
