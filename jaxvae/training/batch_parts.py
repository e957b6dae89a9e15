"""A batch part by part: blocks that a cache holds, shards whose sum has a fixed order."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae.regularizers import gathered


def mean_over_microbatches(
    function: Callable[..., Any], microbatch_size: int, *arrays: jax.Array
) -> Any:
    """The mean of a function of microbatch_size examples over all blocks of arrays [B, ...]."""
    blocks = [all.reshape(-1, microbatch_size, *all.shape[1:]) for all in arrays]
    shapes = jax.eval_shape(function, *(all[0] for all in blocks))
    zeros = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), shapes)
    add = lambda total, block: (jax.tree.map(jnp.add, total, function(*block)), None)
    total, _ = jax.lax.scan(add, zeros, blocks)
    return jax.tree.map(lambda leaf: leaf / len(blocks[0]), total)


def mean_over_shards(
    function: Callable[..., Any], num_shards: int, axis_name: str | None, *arrays: jax.Array
) -> Any:
    """The mean of a function of the rows of a shard over all shards of all devices.

    Bit for bit the same on every number of devices: a shard's rows are the same, so is the
    program that takes them, and the sum goes from the first shard to the last.
    """
    num_devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    count, rest = divmod(num_shards, num_devices)
    num_rows = len(arrays[0])
    if num_shards < 1 or rest or num_rows % count:
        raise ValueError(
            f"virtual_shards must be a multiple of the {num_devices} devices and divide the batch "
            f"of {num_rows * num_devices} examples, got {num_shards}."
        )
    blocks = [all.reshape(count, -1, *all.shape[1:]) for all in arrays]
    of_block = lambda i: function(*(all[i] for all in blocks))
    shapes = jax.eval_shape(of_block, 0)
    results = jax.tree.map(lambda one: jnp.zeros((count, *one.shape), one.dtype), shapes)
    put = lambda i, all: jax.tree.map(lambda all, one: all.at[i].set(one), all, of_block(i))
    results = jax.lax.fori_loop(0, count, put, results)
    zeros = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), shapes)
    add = lambda total, one: (jax.tree.map(jnp.add, total, one), None)
    total, _ = jax.lax.scan(add, zeros, gathered(results, axis_name))
    return jax.tree.map(lambda leaf: leaf / num_shards, total)


def check_microbatch_size(microbatch_size: int | None, num_examples: int) -> None:
    """Refuse blocks that do not divide the examples of a device.

    Raises:
        ValueError: naming both.
    """
    if microbatch_size is not None and (microbatch_size < 1 or num_examples % microbatch_size):
        raise ValueError(
            f"microbatch_size must divide the batch of {num_examples} examples of a device, got "
            f"{microbatch_size}. Use None, or a divisor."
        )
