"""Mapping in blocks: the numbers of vmap, for any number of rows, in blocks that fit a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.cpu import blocks
from jaxvae.cpu.blocks import map_in_blocks, values_per_row

WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 40)), jnp.float32)


def norms(row):
    """A function whose largest array has 40 values per row."""
    x, scale = row["x"], row["scale"]
    h = jnp.tanh(x @ WEIGHTS)
    return {"norm": scale * jnp.sum(h * h), "h": h[:2]}


def some_rows(number):
    x = np.random.default_rng(1).normal(size=(number, 3)).astype(np.float32)
    return {"x": jnp.asarray(x), "scale": jnp.arange(number, dtype=jnp.float32)}


@pytest.mark.parametrize("number", [1, 4, 5, 11])
def test_blocks_give_the_numbers_of_vmap(number, monkeypatch):
    """With room for 4 rows: one block, a full one, two of 3, three of 4."""
    monkeypatch.setattr(blocks, "VALUES_IN_CACHE", 4 * 40)
    rows = some_rows(number)
    found, expected = jax.jit(lambda rows: map_in_blocks(norms, rows))(rows), jax.vmap(norms)(rows)
    for name in ("norm", "h"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)


@pytest.mark.parametrize(("number", "size"), [(4, 4), (5, 3), (11, 4)])
def test_a_block_has_the_rows_that_fit(number, size, monkeypatch):
    monkeypatch.setattr(blocks, "VALUES_IN_CACHE", 4 * 40)
    mapped = jax.jit(lambda rows: map_in_blocks(norms, rows)).trace(some_rows(number))
    text = mapped.lower(lowering_platforms=("cpu",)).as_text()
    assert f"tensor<{size}x40xf32>" in text
    assert (f"tensor<{number}x40xf32>" in text) == (number == size)
    elsewhere = mapped.lower(lowering_platforms=("cuda",)).as_text()
    assert f"tensor<{number}x40xf32>" in elsewhere


def test_values_per_row_count_loops_and_branches_but_not_weights():
    def looped(x):
        step = lambda i, total: total + jnp.sum(jnp.outer(x, jnp.ones(7)))
        return jax.lax.fori_loop(0, 5, step, 0.0)

    branch = lambda x: jax.lax.cond(
        x[0] > 0, lambda: jnp.sum(jnp.outer(x, jnp.ones(9))), lambda: 0.0
    )
    constant = lambda x: jnp.sum(x) + jnp.sum(jnp.square(jnp.ones((50, 50))))
    x = jnp.zeros((2, 3))
    assert values_per_row(jax.jit(looped), x) == 21
    assert values_per_row(branch, x) == 27
    assert values_per_row(constant, x) == 1  # the sums: x itself is given
