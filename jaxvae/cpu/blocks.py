"""Mapping over many rows in blocks whose intermediate values fit in a CPU's cache."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

VALUES_IN_CACHE = 2**19
"""Values of one array that a block may have: 2 MB of float32. With more, each operation reads its
operands from memory: all rows at once take up to four times as long."""
PRIME = 10007
"""Rows for which a function is traced: no size of a model is a multiple of it by chance."""
WEIGHT_SHARE = 4
"""A block computes at least this many times as many values as the function has weights, since
every block reads all of them."""


def map_in_blocks(function: Callable[[Any], Any], rows: Any) -> Any:
    """`jax.vmap(function)(rows)`, computed in blocks of equal size.

    Args:
        function: pure function of one row.
        rows: pytree of arrays [N, ...].
    """
    number = len(jax.tree.leaves(rows)[0])
    most = rows_in_cache(function, rows)
    if most is None or number <= most:
        return jax.vmap(function)(rows)
    # Blocks of equal size are one program. The last row fills the last block.
    blocks = -(-number // most)
    size = -(-number // blocks)
    index = jnp.minimum(jnp.arange(blocks * size), number - 1)
    whole = jax.tree.map(lambda leaf: leaf[index].reshape(blocks, size, *leaf.shape[1:]), rows)
    found = jax.lax.map(jax.vmap(function), whole)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:number], found)


def rows_in_cache(
    function: Callable[..., Any], rows: Any, *fixed: Any, gradient: bool = False
) -> int | None:
    """Number of rows that a CPU should compute at once; None: all.

    As many as fit in the cache, but enough that reading the weights takes a small share of the
    time. All, if the function has a convolution that XLA's CPU backend computes slowly in a loop.

    Args:
        function: pure function of one row and the fixed arguments.
        rows: pytree of arrays [N, ...], or of their shapes.
        fixed: arrays, or their shapes.
        gradient: True if its gradient with respect to the weights is computed, which reads and
            writes three times as many arrays of their size for each value.

    >>> rows_in_cache(lambda x: jnp.sum(jnp.outer(x, jnp.ones(2**16))), jnp.zeros((9, 2)))
    4
    """
    many = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((PRIME, *leaf.shape[1:]), leaf.dtype), rows
    )
    mapped = jax.vmap(function, in_axes=(0, *[None] * len(fixed)))
    program = jax.make_jaxpr(mapped)(many, *fixed).jaxpr
    equations = list(_equations(program))
    if any(map(_is_slow_in_loops, equations)):
        return None
    computed = [_size(output) for equation in equations for output in equation.outvars]
    per_row = [size // PRIME for size in computed if size and size % PRIME == 0] or [1]
    given = map(_size, (*program.invars, *program.constvars))
    weights = sum(size for size in given if size % PRIME)
    share = 3 * WEIGHT_SHARE if gradient else WEIGHT_SHARE
    return max(1, VALUES_IN_CACHE // max(per_row), share * weights // sum(per_row))


def divisor_near(number: int, most: int) -> int | None:
    """Largest divisor of a number that is at most `most`; None if it is much smaller than that.

    >>> divisor_near(100, 30), divisor_near(97, 30)
    (25, None)
    """
    most = min(most, number)
    size = max(size for size in range(1, most + 1) if number % size == 0)
    return size if 4 * size >= most else None


def _equations(program: Jaxpr) -> Iterator[Any]:
    """All equations of a program, those of its loops, branches and functions included."""
    for equation in program.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=_is_program):
            if _is_program(value):
                yield from _equations(value.jaxpr if isinstance(value, ClosedJaxpr) else value)


def _is_program(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def _is_slow_in_loops(equation: Any) -> bool:
    """True for a convolution whose layout is not the usual one: see `jaxvae.cpu.convolution`."""
    if equation.primitive.name != "conv_general_dilated":
        return False
    sides = len(equation.outvars[0].aval.shape) - 2
    usual = (0, sides + 1, *range(1, sides + 1))
    layouts = (usual, (sides + 1, sides, *range(sides)), usual)
    return tuple(equation.params["dimension_numbers"]) != layouts


def _size(variable: Any) -> int:
    return getattr(variable.aval, "size", 0)
