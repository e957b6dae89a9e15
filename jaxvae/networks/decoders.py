"""Decoders: Flax linen modules from one z to the outputs that a likelihood reads."""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from jaxvae.networks.convolutions import ConvTranspose
from jaxvae.networks.dense import ACTIVATIONS, Activation, Initialization, conditioned, dense

OutputBias = Callable[[jax.Array, tuple[int, ...]], jax.Array]
"""An initializer (key, shape) -> output bias, such that a decoder starts at the data's mean."""


class MLPDecoder(nn.Module):
    """A fully connected network from z of any shape to an output [*data_shape].

    Attributes:
        data_shape: shape of the output.
        hidden: widths of the hidden layers, first to last.
        initialization: see `jaxvae.networks.dense`.
        output_bias: initializer of the output's bias [*data_shape]; None: that of `initialization`.
        activation: "relu" or "tanh", after each hidden layer.
        dtype: type to compute in; None: that of z and the parameters.
    """

    data_shape: tuple[int, ...]
    hidden: tuple[int, ...]
    initialization: Initialization = "lecun"
    output_bias: OutputBias | None = None
    activation: Activation = "relu"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, z: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        """Output [*data_shape] for one z of any shape, and a condition [E] if it has one."""
        z = z.reshape(-1)
        for width in self.hidden:
            layer = dense(width, z.size, self.initialization, dtype=self.dtype)
            z = ACTIVATIONS[self.activation](conditioned(layer(z), condition, self.dtype))
        start = self.output_bias
        flat = start and (lambda key, shape, *_: start(key, self.data_shape).ravel())
        size = math.prod(self.data_shape)
        last = dense(size, z.size, self.initialization, flat, self.dtype)
        return conditioned(last(z), condition, self.dtype).reshape(self.data_shape)


class ConvDecoder(nn.Module):
    """A convolutional network from z of any shape to an output [H, W, C]: `ConvEncoder` mirrored.

    It has a fully connected layer, another one to the smallest level, then 4 x 4 transposed
    convolutions with stride 2, each cropped to the encoder's size at that level, with ReLU between
    all layers. The output's bias is one number per pixel and channel.

    Attributes:
        data_shape: (H, W, C).
        channels: channels of each level, largest image first, as in the encoder.
        width: width of the first fully connected layer.
        output_bias: initializer of the output's bias [H, W, C]; None: zeros.
        dtype: type to compute in; None: that of z and the parameters.
    """

    data_shape: tuple[int, ...]
    channels: tuple[int, ...]
    width: int
    output_bias: OutputBias | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, z: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        """Output [H, W, C] for one z of any shape, and a condition [E] if it has one."""
        given = partial(conditioned, condition=condition, dtype=self.dtype)
        sizes = [self.data_shape[:2]]
        for _ in self.channels:
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        smallest = (*sizes[-1], self.channels[-1])
        h = dense(self.width, z.size, "lecun", dtype=self.dtype)(z.reshape(-1))
        h = nn.relu(given(h))
        h = dense(math.prod(smallest), h.size, "lecun", dtype=self.dtype)(h)
        h = nn.relu(given(h.reshape(smallest)))
        outputs = (self.data_shape[2], *self.channels[:-1])
        for level in reversed(range(len(self.channels))):
            last = level == 0
            h = ConvTranspose(outputs[level], 4, use_bias=not last, dtype=self.dtype)(h)
            h = h[: sizes[level][0], : sizes[level][1]]
            h = given(h)
            h = h if last else nn.relu(h)
        start = self.output_bias or nn.initializers.zeros_init()
        return h + self.param("output_bias", start, self.data_shape)
