"""Encoders: Flax linen modules from one x to the outputs that a posterior reads."""

from functools import partial

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from jaxvae.networks.convolutions import Conv
from jaxvae.networks.dense import ACTIVATIONS, Activation, Initialization, conditioned, dense


class MLPEncoder(nn.Module):
    """A fully connected network from x, flattened, to outputs [num_outputs].

    Attributes:
        num_outputs: number of inputs of the posterior (`jaxvae.models.posteriors`).
        hidden: widths of the hidden layers, first to last.
        initialization: see `jaxvae.networks.dense`.
        activation: "relu" or "tanh", after each hidden layer.
        dtype: type to compute in; None: that of x and the parameters.
    """

    num_outputs: int
    hidden: tuple[int, ...]
    initialization: Initialization = "lecun"
    activation: Activation = "relu"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        """Outputs [num_outputs] for one x of any shape, and a condition [E] if it has one."""
        h = x.reshape(-1)
        for width in self.hidden:
            layer = dense(width, h.size, self.initialization, dtype=self.dtype)
            h = ACTIVATIONS[self.activation](conditioned(layer(h), condition, self.dtype))
        last = dense(self.num_outputs, h.size, self.initialization, dtype=self.dtype)
        return conditioned(last(h), condition, self.dtype)


class ConvEncoder(nn.Module):
    """A convolutional network from an image [H, W, C] to outputs [num_outputs].

    Each level halves height and width (odd sides are rounded up) by a 4 x 4 convolution with
    stride 2. Then follow a fully connected layer and the output layer. ReLU after each layer but
    the last.

    Attributes:
        num_outputs: number of inputs of the posterior (`jaxvae.models.posteriors`).
        channels: channels of each level, first to last.
        width: width of the fully connected layer.
        dtype: type to compute in; None: that of x and the parameters.
    """

    num_outputs: int
    channels: tuple[int, ...]
    width: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        """Outputs [num_outputs] for one image x [H, W, C], and a condition [E] if it has one."""
        given = partial(conditioned, condition=condition, dtype=self.dtype)
        for channels in self.channels:
            x = nn.relu(given(Conv(channels, 4, stride=2, dtype=self.dtype)(x)))
        h = dense(self.width, x.size, "lecun", dtype=self.dtype)(x.reshape(-1))
        h = nn.relu(given(h))
        return given(dense(self.num_outputs, h.size, "lecun", dtype=self.dtype)(h))
