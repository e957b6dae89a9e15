"""The small network whose output parameterizes a layer of a flow."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.distributions import at_least_float32

Params = Any
"""Of a network: dicts of arrays, "layer_0" first. Of a flow: dicts of those of its layers."""
OUTPUT_SCALE = 0.01
"""Of the last layer's first kernel, in units of 1/sqrt(fan in): a new flow is near where its
biases put it."""


def conditioner_init(
    key: jax.Array, sizes: Sequence[int], context_dim: int, output_bias: jax.Array
) -> Params:
    """Parameters of a fully connected network with kernels of variance 1/fan_in (LeCun 1998).

    Args:
        key: consumed here.
        sizes: inputs, hidden widths, outputs. With no inputs the first layer has no kernel.
        context_dim: C, entries of the context vector, or 0.
        output_bias: [outputs], where the output starts, up to `OUTPUT_SCALE`.

    Raises:
        ValueError: no hidden layer, or one without units.
    """
    if len(sizes) < 3 or min(sizes[1:]) < 1 or context_dim < 0:
        raise ValueError(
            "flow: dim and every width in hidden must be at least 1, with one width or more, and "
            f"context_dim at least 0; got widths {tuple(sizes[1:-1])}, context_dim {context_dim} "
            f"and {sizes[-1]} outputs. Give sizes such as hidden=(128,)."
        )
    *keys, key_context = jax.random.split(key, len(sizes))
    params: Params = {}
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        params[f"layer_{i}"] = {"bias": jnp.zeros(fan_out)}
        if fan_in:
            kernel = jax.random.normal(keys[i], (fan_in, fan_out)) / math.sqrt(fan_in)
            params[f"layer_{i}"]["kernel"] = kernel
    if context_dim:
        kernel = jax.random.normal(key_context, (context_dim, sizes[1]))
        params["layer_0"]["context"] = kernel / math.sqrt(context_dim)
    last = params[f"layer_{len(sizes) - 2}"]
    last |= {"kernel": OUTPUT_SCALE * last["kernel"], "bias": output_bias}
    return params


def conditioner(
    params: Params,
    inputs: jax.Array,
    context: jax.Array | None,
    masks: Sequence[np.ndarray] | None = None,
) -> jax.Array:
    """The network's output, in float32 at least.

    The context enters the first hidden layer, added to the inputs' share. The hidden units are
    tanh: bounded, so that no input, however far out, makes a layer of the flow overflow.
    Products are of full precision on every device, or an inverse would not undo its map.

    Args:
        params: from `conditioner_init`.
        inputs: [the inputs].
        context: [C], or None where the parameters know of none.
        masks: of each kernel's shape; where False, an input does not reach a unit.

    Raises:
        ValueError: a context that the parameters do not take, or none where they do.
    """
    _check_context(params, context)
    to_float = lambda array: at_least_float32(array)[0]
    params, inputs, context = jax.tree.map(to_float, (params, inputs, context))
    values = inputs
    for i in range(len(params)):
        layer = params[f"layer_{i}"]
        total = layer["bias"]
        if "kernel" in layer:
            kernel = jnp.where(masks[i], layer["kernel"], 0.0) if masks else layer["kernel"]
            total = total + jnp.matmul(values, kernel, precision="highest")
        if "context" in layer:
            total = total + jnp.matmul(context, layer["context"], precision="highest")
        values = jnp.tanh(total) if i < len(params) - 1 else total
    return values


def _check_context(params: Params, context: jax.Array | None) -> None:
    """Refuse a context vector of another length than the parameters were made for."""
    kernel = params["layer_0"].get("context")
    expected = None if kernel is None else kernel.shape[:1]
    came = None if context is None else jnp.shape(context)
    if came != expected:
        raise ValueError(
            f"flow: the context must have shape {expected}, it has {came}. Build the parameters "
            "with its context_dim, or pass the vector that the encoder makes for them."
        )


def check_vector(what: str, z: jax.Array, dim: int) -> None:
    """Refuse a z that is not the one vector [Z] of a layer.

    Raises:
        ValueError: `z` has another shape.
    """
    if jnp.shape(z) != (dim,):
        raise ValueError(
            f"{what}: z must have shape ({dim},), it has {jnp.shape(z)}. Build the flow with "
            "dim=Z; jax.vmap adds the batch."
        )
