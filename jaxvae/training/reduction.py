"""Mean over the global batch in three forms: whole batch, microbatches, shards in a fixed order.

Each form takes a function and the rows of a device, and returns (mean, kept). The function maps
rows [B', ...] to two pytrees: means over these rows, which the form averages over the global batch,
and values of the whole batch, such as a penalty. The whole batch returns these as `kept`; the forms
that split the batch return None.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.cpu.row_product import is_explicit
from jaxvae.leaves import at_rows, count_rows
from jaxvae.regularizers import Regularizer, gathered

Rows = Callable[..., tuple[Any, ...]]


class Reduction(NamedTuple):
    """The form in which a step takes its batch.

    Attributes:
        prepare_batch: rows -> rows, applied to the rows of a device before they are split.
        prepare_part: rows -> rows, applied to the rows that a function gets.
        mean: (function, *rows) -> (mean, kept).
    """

    prepare_batch: Rows
    prepare_part: Rows
    mean: Callable[..., tuple[Any, Any]]


def make_reduction(
    prepare: Rows,
    microbatch_size: int | None,
    virtual_shards: int | None,
    regularizer: Regularizer | None,
    axis_name: str | None,
) -> Reduction:
    """Choose the form of a training step; `jaxvae.make_train_step` documents the arguments.

    Args:
        prepare: rows as they are stored -> rows that the model sees.

    Raises:
        ValueError: two forms are given, or one that splits the batch that a regularizer needs.
    """
    parts = {"microbatch_size": microbatch_size, "virtual_shards": virtual_shards}
    given = [f"{name}={value}" for name, value in parts.items() if value is not None]
    if given and regularizer is not None:
        raise ValueError(
            f"a regularizer needs the whole batch at once, got {' and '.join(given)}. Use None."
        )
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other. Give one of them.")
    as_they_are = lambda *rows: rows
    if virtual_shards is not None:
        # A shard prepares its own rows: its program must not depend on how many a device has.
        mean = partial(over_shards, virtual_shards, axis_name)
        return Reduction(as_they_are, prepare, mean)
    # Once, before the batch is split: a small convolutional net took 6 % longer otherwise.
    if microbatch_size is not None:
        mean = partial(over_microbatches, microbatch_size, axis_name)
    else:
        mean = partial(over_whole_batch, axis_name)
    return Reduction(prepare, as_they_are, mean)


def over_whole_batch(
    axis_name: str | None, function: Callable[..., Any], *rows: Any
) -> tuple[Any, Any]:
    """Compute all rows of a device at once, then take the mean over the devices."""
    mean, kept = function(*rows)
    return _mean_over_devices(mean, axis_name), kept


def over_microbatches(
    size: int, axis_name: str | None, function: Callable[..., Any], *rows: Any
) -> tuple[Any, None]:
    """Compute the rows of a device `size` at a time, then take the mean over the devices.

    Raises:
        ValueError: `size` does not divide the rows of a device.
    """
    _check_not_explicit("microbatch_size", rows)
    num_rows = count_rows(rows)
    if size < 1 or num_rows % size:
        raise ValueError(
            f"microbatch_size must divide the batch of {num_rows} examples of a device, got "
            f"{size}. Use None, or a divisor."
        )
    if size == num_rows:
        return _mean_over_devices(function(*rows)[0], axis_name), None
    blocks = jax.tree.map(lambda all: all.reshape(-1, size, *all.shape[1:]), rows)
    of_block = lambda block: function(*block)[0]
    shapes = jax.eval_shape(of_block, at_rows(blocks, 0))
    add = lambda total, block: (jax.tree.map(jnp.add, total, of_block(block)), None)
    total, _ = jax.lax.scan(add, zeros(shapes), blocks)
    mean = jax.tree.map(lambda leaf: leaf / (num_rows // size), total)
    return _mean_over_devices(mean, axis_name), None


def over_shards(
    num_shards: int, axis_name: str | None, function: Callable[..., Any], *rows: Any
) -> tuple[Any, None]:
    """Compute the rows of all devices shard by shard, and add from the first shard to the last.

    The result is bit-for-bit the same on every number of devices, since the shards, the program
    that computes one, and the order of the sum are the same.

    Raises:
        ValueError: num_shards is not a multiple of the number of devices, or does not divide the
            batch.
    """
    _check_not_explicit("virtual_shards", rows)
    num_devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    count, rest = divmod(num_shards, num_devices)
    num_rows = count_rows(rows)
    if num_shards < 1 or rest or num_rows % count:
        raise ValueError(
            f"virtual_shards must be a multiple of the number of devices ({num_devices}) and "
            f"divide the batch of {num_rows * num_devices} examples, got {num_shards}."
        )
    blocks = jax.tree.map(lambda all: all.reshape(count, -1, *all.shape[1:]), rows)
    of_block = lambda i: function(*at_rows(blocks, i))[0]
    shapes = jax.eval_shape(of_block, 0)
    put = lambda i, all: jax.tree.map(lambda all, one: all.at[i].set(one), all, of_block(i))
    results = jax.lax.fori_loop(0, count, put, zeros(shapes, count))
    add = lambda total, one: (jax.tree.map(jnp.add, total, one), None)
    total, _ = jax.lax.scan(add, zeros(shapes), gathered(results, axis_name))
    return jax.tree.map(lambda leaf: leaf / num_shards, total), None


def _check_not_explicit(option: str, rows: tuple[Any, ...]) -> None:
    """Reject rows sharded over Explicit mesh axes, which jax cannot split into parts."""
    if any(map(is_explicit, jax.tree.leaves(rows))):
        raise ValueError(
            f"{option} splits the rows of a device; this batch is sharded over Explicit axes of "
            "a mesh. Use axes of type jax.sharding.AxisType.Auto, jax.pmap (make_chunk_step), or "
            "the whole batch."
        )


def _mean_over_devices(tree: Any, axis_name: str | None) -> Any:
    alone = axis_name is None or jax.lax.axis_size(axis_name) == 1
    return tree if alone else jax.lax.pmean(tree, axis_name)


def zeros(shapes: Any, *leading: int) -> Any:
    """Zeros for a pytree of shapes and types, with `leading` axes before those of each leaf."""
    return jax.tree.map(lambda one: jnp.zeros((*leading, *one.shape), one.dtype), shapes)
