"""Product of rows with a matrix, which merges all axes that vmap adds into one axis of rows.

A network of one example under two `vmap`s, over examples and over draws, sees rows [B, K, I]. The
gradient of its weights sums over both axes, and XLA copies both operands for such a product. With
the axes merged there is one axis of B K rows, and no copy.
"""

from typing import Any

import jax
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType


def row_product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """x @ matrix for [..., I] and [I, O] of the same type, at jax's default precision.

    >>> import jax.numpy as jnp
    >>> row_product(jnp.ones((2, 3)), jnp.ones((3, 4))).shape
    (2, 4)
    """
    if any(is_explicit(operand) for operand in (x, matrix)):
        return _dot(x, matrix)
    return _row_product.bind(x, matrix)


def is_explicit(operand: jax.Array) -> bool:
    """True if a mesh axis makes sharding part of the type, the default of `jax.make_mesh`.

    A dot product then needs the sharding of its result, which merged axes do not have.
    """
    return AxisType.Explicit in jax.typeof(operand).sharding.mesh.axis_types


def _dot(x: jax.Array, matrix: jax.Array) -> jax.Array:
    return lax.dot_general(x, matrix, (((x.ndim - 1,), (0,)), ((), ())))


def _cotangent_of_matrix(cotangent: jax.Array, x: jax.Array, matrix: Any) -> jax.Array:
    del matrix  # jax passes no value, since the product is linear in the matrix
    rows = tuple(range(x.ndim - 1))
    return lax.dot_general(x, cotangent, ((rows, rows), ((), ())))


def _batched(
    operands: tuple[jax.Array, jax.Array], axes: tuple[int | None, int | None]
) -> tuple[jax.Array, int]:
    (x, matrix), (axis, matrix_axis) = operands, axes
    if matrix_axis is not None:
        return jax.vmap(_dot, axes)(x, matrix), 0
    x = jax.numpy.moveaxis(x, axis or 0, 0)
    rows = x.reshape(-1, x.shape[-1])
    return row_product(rows, matrix).reshape(*x.shape[:-1], matrix.shape[-1]), 0


_row_product = Primitive("row_product")
_row_product.def_impl(jax.jit(_dot))
_row_product.def_abstract_eval(
    lambda x, matrix: ShapedArray((*x.shape[:-1], matrix.shape[-1]), x.dtype)
)
mlir.register_lowering(_row_product, mlir.lower_fun(_dot, multiple_results=False))
ad.defbilinear(
    _row_product,
    lambda cotangent, x, matrix: row_product(cotangent, matrix.T),
    _cotangent_of_matrix,
)
batching.primitive_batchers[_row_product] = _batched
