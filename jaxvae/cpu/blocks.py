"""Mapping over many rows in blocks whose intermediate values fit in a CPU's cache."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

VALUES_IN_CACHE = 2**19
"""Values of one array that a block may have: 2 MB of float32. All rows at once take up to twice as
long, since each operation then reads its operands from memory."""
PRIME = 10007
"""Rows for which a function is traced: no size of a model is a multiple of it by chance."""


def map_in_blocks(function: Callable[[Any], Any], rows: Any) -> Any:
    """Map a function over the leading axis of all arrays of `rows`; on CPUs in blocks.

    Args:
        function: pure function of one row.
        rows: pytree of arrays [N, ...].
    """

    def on_cpu(rows: Any) -> Any:
        number = len(jax.tree.leaves(rows)[0])
        most = rows_in_cache(function, rows)
        blocks = -(-number // most)
        if blocks == 1:
            return jax.vmap(function)(rows)
        # Blocks of one size, since other rows would be another program; the last rows are repeated.
        size = -(-number // blocks)
        index = jnp.minimum(jnp.arange(blocks * size), number - 1)
        whole = jax.tree.map(lambda leaf: leaf[index].reshape(blocks, size, *leaf.shape[1:]), rows)
        found = jax.lax.map(jax.vmap(function), whole)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:number], found)

    return jax.lax.platform_dependent(rows, cpu=on_cpu, default=jax.vmap(function))


def rows_in_cache(function: Callable[..., Any], rows: Any, *fixed: Any) -> int:
    """Number of rows, at least one, whose largest array fits in the cache.

    Args:
        function, rows, fixed: as in `values_per_row`.
    """
    return max(1, VALUES_IN_CACHE // values_per_row(function, rows, *fixed))


def values_per_row(function: Callable[..., Any], rows: Any, *fixed: Any) -> int:
    """Values per row of the largest array that a function computes on the way, loops included.

    Args:
        function: pure function of one row and the fixed arguments.
        rows: pytree of arrays [N, ...], or of their shapes.
        fixed: arrays, or their shapes.

    >>> values_per_row(lambda x: jnp.sum(jnp.outer(x, jnp.ones(5))), jnp.zeros((2, 3)))
    15
    """
    many = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((PRIME, *leaf.shape[1:]), leaf.dtype), rows
    )
    mapped = jax.vmap(function, in_axes=(0, *[None] * len(fixed)))
    sizes = _sizes(jax.make_jaxpr(mapped)(many, *fixed).jaxpr)
    return max((size // PRIME for size in sizes if size % PRIME == 0), default=1)


def _sizes(jaxpr: Jaxpr) -> Iterator[int]:
    """Sizes of all arrays that a program computes."""
    for equation in jaxpr.eqns:
        yield from (output.aval.size for output in equation.outvars if hasattr(output.aval, "size"))
        for value in jax.tree.leaves(equation.params, is_leaf=_is_program):
            if _is_program(value):
                yield from _sizes(value.jaxpr if isinstance(value, ClosedJaxpr) else value)


def _is_program(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)
