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
"""A network's parameters, {"layer_0": {name: array}, ...}, or a flow's, {"flow_0": ..., ...}."""
OUTPUT_SCALE = 0.01
"""Initial scale of the last layer's kernel, in units of 1/sqrt(fan_in): the output of a new network
is close to its biases."""


def conditioner_init(
    key: jax.Array, sizes: Sequence[int], context_dim: int, output_bias: jax.Array
) -> Params:
    """Make parameters of a fully connected network, kernels of variance 1/fan_in (LeCun 1998).

    Args:
        key: consumed here.
        sizes: inputs, hidden widths, outputs. With 0 inputs the first layer has no kernel.
        context_dim: C, entries of the context vector, or 0.
        output_bias: [outputs] bias of the last layer, whose kernel has the scale `OUTPUT_SCALE`.

    Raises:
        ValueError: there is no hidden layer, a width is below 1, or context_dim is negative.
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
    """Output of the network, at least float32.

    The context enters the first hidden layer, added to the inputs' share. The hidden units are
    tanh: bounded, so that no input, however large, makes a layer of the flow overflow. Products
    have full precision on every device, since otherwise an inverse would not undo its map.

    Args:
        params: from `conditioner_init`.
        inputs: [inputs].
        context: [C], or None if the parameters have no context.
        masks: arrays of the kernels' shapes, False where an input does not reach a unit.

    Raises:
        ValueError: the context does not match the parameters.
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
    """Check that the context has the length for which the parameters were made."""
    kernel = params["layer_0"].get("context")
    expected = None if kernel is None else kernel.shape[:1]
    came = None if context is None else jnp.shape(context)
    if came != expected:
        raise ValueError(
            f"flow: the context must have shape {expected}, got {came}. Build the parameters "
            "with its context_dim, or pass the vector that the encoder makes for them."
        )


def check_vector(what: str, z: jax.Array, dim: int) -> None:
    """Check that z is one vector [Z] of the layer's length.

    Raises:
        ValueError: `z` has another shape.
    """
    if jnp.shape(z) != (dim,):
        raise ValueError(
            f"{what}: z must have shape ({dim},), got {jnp.shape(z)}. Build the flow with "
            "dim=Z; jax.vmap adds the batch."
        )
