"""The fully connected layer of the shipped networks, with its two initialisations."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

Initialization = Literal["lecun", "torch"]


def dense(
    features: int,
    fan_in: int,
    initialization: Initialization,
    bias_init: nn.initializers.Initializer | None = None,
) -> nn.Dense:
    """A linen Dense layer from `fan_in` to `features`.

    Args:
        features: width of the output.
        fan_in: width of the input, which the bias of "torch" depends on.
        initialization: "lecun", kernels of variance 1/fan_in and zero biases (flax's default);
            "torch", kernels and biases uniform in +-1/sqrt(fan_in) (torch.nn.Linear's).
        bias_init: for the biases, instead of the initialization's own.

    Raises:
        ValueError: another name.

    Ref: LeCun et al., Efficient BackProp, 1998.
    """
    if initialization == "lecun":
        return nn.Dense(features, bias_init=bias_init or nn.initializers.zeros)
    if initialization != "torch":
        raise ValueError(f"initialization must be lecun or torch, got {initialization!r}.")
    limit = 1 / math.sqrt(fan_in)

    def uniform(
        key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
    ) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return nn.Dense(features, kernel_init=uniform, bias_init=bias_init or uniform)
