"""The fully connected layer of the library's networks, with its initializations and activations."""

import math
from collections.abc import Callable
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxvae.cpu.row_product import row_product

Initialization = Literal["lecun", "torch"]
Activation = Literal["relu", "tanh"]

ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "tanh": jnp.tanh,
}
"""Name -> activation after each hidden layer; the networks of Burda et al. 2016 use tanh."""


def dense(
    features: int,
    fan_in: int,
    initialization: Initialization,
    bias_init: nn.initializers.Initializer | None = None,
    dtype: DTypeLike | None = None,
) -> nn.Dense:
    """Make a linen Dense layer from `fan_in` to `features`.

    Args:
        features: width of the output.
        fan_in: width of the input, which "torch" needs for the bias.
        initialization: "lecun", kernels of variance 1/fan_in and zero biases (flax's default);
            "torch", kernels and biases uniform in +-1/sqrt(fan_in) (torch.nn.Linear's).
        bias_init: initializer of the biases; None: that of `initialization`.
        dtype: type to compute in; None: that of input and parameters, float32.

    Raises:
        ValueError: the initialization is unknown.

    Ref: LeCun et al., Efficient BackProp, 1998.
    """
    if initialization not in get_args(Initialization):
        raise ValueError(f"initialization must be lecun or torch, got {initialization!r}.")
    limit = 1 / math.sqrt(fan_in)

    def uniform(
        key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
    ) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    kernels, biases = {
        "lecun": (nn.initializers.lecun_normal(), nn.initializers.zeros),
        "torch": (uniform, uniform),
    }[initialization]
    return nn.Dense(
        features,
        dtype=dtype,
        kernel_init=kernels,
        bias_init=bias_init or biases,
        dot_general=_rows_by_matrix,
    )


def conditioned(
    h: jax.Array, condition: jax.Array | None, dtype: DTypeLike | None = None
) -> jax.Array:
    """h [..., F] plus a linear function of the condition [E], the same at all places.

    It makes a linen layer inside the module that calls it; without a condition it returns h.

    Ref: Perez et al., FiLM, 2018, AAAI (without its scale).
    """
    if condition is None:
        return h
    shift = dense(h.shape[-1], condition.size, "lecun", dtype=dtype)(condition)
    return h + shift.reshape((1,) * (h.ndim - 1) + (-1,))


def _rows_by_matrix(x: jax.Array, matrix: jax.Array, *_: object, **__: object) -> jax.Array:
    """Replacement for `jax.lax.dot_general` in linen layers, for speed on CPUs (`row_product`)."""
    return row_product(x, matrix)
