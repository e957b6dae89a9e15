"""Layers of the nets on whole batches, written by hand: a matrix product and a bias each.

Only the convolutions come from the library, whose own are written by hand, too.
"""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark.nets import DATA_SIDE, Net
from jaxvae.cpu.convolution import convolution, transposed_convolution


def encoder_outputs(params: Any, net: Net, x: jax.Array) -> jax.Array:
    """Encode a batch: x [B, 784] -> loc and unclamped log_scale, [B, 2 Z]."""
    layers, h = params["encoder"]["params"], x
    if net.model == "conv":
        h = h.reshape(len(h), DATA_SIDE, DATA_SIDE, 1)
        for level in range(len(net.hidden)):
            h = jax.nn.relu(_convolved(layers[f"Conv_{level}"], h))
        h = h.reshape(len(h), -1)
    return _dense_layers(layers, net, h)


def decoder_logits(params: Any, net: Net, z: jax.Array) -> jax.Array:
    """Decode latents: z [N, Z] -> logits [N, 784]."""
    layers = params["decoder"]["params"]
    h = _dense_layers(layers, net, z)
    if net.model == "mlp":
        return h
    side, last = DATA_SIDE // 2 ** len(net.hidden), len(net.hidden) - 1
    h = jax.nn.relu(h).reshape(len(h), side, side, net.hidden[-1])
    for level in range(last + 1):
        h = _transposed(layers[f"ConvTranspose_{level}"], h)
        h = h if level == last else jax.nn.relu(h)
    return (h + layers["output_bias"][None]).reshape(len(h), -1)


def _dense_layers(layers: Any, net: Net, h: jax.Array) -> jax.Array:
    """Apply all fully connected layers, with an activation after each but the last."""
    activate = jnp.tanh if net.activation == "tanh" else jax.nn.relu
    count = sum(name.startswith("Dense_") for name in layers)
    for index in range(count):
        layer = layers[f"Dense_{index}"]
        h = h @ layer["kernel"] + layer["bias"][None]
        h = h if index == count - 1 else activate(h)
    return h


def _convolved(layer: Any, images: jax.Array) -> jax.Array:
    h = jax.vmap(lambda image: convolution(image, layer["kernel"], stride=2))(images)
    return h + layer["bias"][None, None, None]


def _transposed(layer: Any, images: jax.Array) -> jax.Array:
    h = jax.vmap(lambda image: transposed_convolution(image, layer["kernel"]))(images)
    return h + layer["bias"][None, None, None] if "bias" in layer else h
