"""Mapping in blocks: the numbers of vmap, for any number of rows, in blocks that fit a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.cpu import blocks
from jaxvae.cpu.blocks import map_in_blocks, rows_in_cache
from jaxvae.evaluation import map_dataset
from jaxvae.training.devices import make_map, make_mesh, replicate

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
    monkeypatch.setattr(blocks, "WEIGHT_SHARE", 0)
    rows = some_rows(number)
    found, expected = jax.jit(lambda rows: map_in_blocks(norms, rows))(rows), jax.vmap(norms)(rows)
    for name in ("norm", "h"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)


@pytest.mark.parametrize(("number", "size"), [(4, 4), (5, 3), (11, 4)])
def test_a_block_has_the_rows_that_fit(number, size, monkeypatch):
    monkeypatch.setattr(blocks, "VALUES_IN_CACHE", 4 * 40)
    monkeypatch.setattr(blocks, "WEIGHT_SHARE", 0)
    mapped = jax.jit(lambda rows: map_in_blocks(norms, rows)).trace(some_rows(number))
    text = mapped.lower().as_text()
    assert f"tensor<{size}x40xf32>" in text
    assert (f"tensor<{number}x40xf32>" in text) == (number == size)


def test_rows_count_loops_and_branches_but_not_what_all_rows_share():
    def looped(x):
        step = lambda i, total: total + jnp.sum(jnp.outer(x, jnp.ones(2**17)))
        return jax.lax.fori_loop(0, 5, step, 0.0)

    def branched(x):
        return jax.lax.cond(x[0] > 0, lambda: jnp.sum(jnp.outer(x, jnp.ones(2**16))), lambda: 0.0)

    shared = lambda x: jnp.sum(x) + jnp.sum(jnp.square(jnp.ones((50, 50))))
    x = jnp.zeros((2, 1))
    assert rows_in_cache(jax.jit(looped), x) == 4
    assert rows_in_cache(branched, x) == 8
    assert rows_in_cache(shared, x) == blocks.VALUES_IN_CACHE  # one sum per row


def test_a_block_computes_four_times_as_many_values_as_there_are_weights(monkeypatch):
    """Per row 10 products and 10 sums; 2,000 weights; 12 times as many for a gradient."""
    monkeypatch.setattr(blocks, "VALUES_IN_CACHE", 1)
    weights, bias = jnp.zeros((199, 10)), jnp.zeros(10)
    layer = lambda x, weights, bias: x @ weights + bias
    assert rows_in_cache(layer, jnp.zeros((2, 199)), weights, bias) == 4 * 2000 // 20
    assert rows_in_cache(layer, jnp.zeros((2, 199)), weights, bias, gradient=True) == 12 * 100


@pytest.mark.parametrize(("layout", "rows"), [("NCHW", None), ("NHWC", 2**19 // 64)])
def test_convolutions_that_loops_make_slow_are_not_in_one(layout, rows):
    kernel = jnp.zeros((3, 3, 1, 1))
    shape = (2, 8, 8, 1) if layout == "NHWC" else (2, 1, 8, 8)

    def convolved(x):
        numbers = (layout, "HWIO", layout)
        return jax.lax.conv_general_dilated(
            x[None], kernel, (1, 1), "SAME", dimension_numbers=numbers
        )

    assert rows_in_cache(convolved, jnp.zeros(shape)) == rows


def test_no_rows_are_mapped_too():
    assert jax.eval_shape(lambda rows: map_in_blocks(norms, rows), some_rows(0))["h"].shape == (
        0,
        2,
    )


def test_a_map_over_devices_in_blocks_is_that_of_one_program(monkeypatch):
    """7 rows on each of 4 devices in blocks of 3, 3 and 1 filled up, after those of all at once."""
    mesh = make_mesh(jax.devices()[:4])
    function = lambda params, key, x: norms({"x": x, "scale": params})["norm"]
    xs = np.random.default_rng(2).normal(size=(28, 3)).astype(np.float32)
    arguments = replicate(np.float32(2), mesh), replicate(jax.random.key(0), mesh), xs
    mapped = lambda: map_dataset(make_map(function, mesh), *arguments, mesh=mesh, batch_size=28)
    expected = mapped()
    monkeypatch.setattr(blocks, "VALUES_IN_CACHE", 3 * 40)
    monkeypatch.setattr(blocks, "WEIGHT_SHARE", 0)
    np.testing.assert_allclose(mapped(), expected, rtol=1e-6)
