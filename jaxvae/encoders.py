"""Encoders: Flax linen modules from one x to the outputs that a posterior reads."""

import flax.linen as nn
import jax

from jaxvae.dense import Initialization, dense


class MLPEncoder(nn.Module):
    """A fully connected network x -> outputs [num_outputs]; x of any shape is flattened.

    Attributes:
        num_outputs: what the posterior takes (`jaxvae.posteriors`).
        hidden: widths of the hidden layers, first to last; ReLU after each.
        initialization: see `jaxvae.dense`.
    """

    num_outputs: int
    hidden: tuple[int, ...]
    initialization: Initialization = "lecun"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs [num_outputs] for one x of any shape."""
        h = x.reshape(-1)
        for width in self.hidden:
            h = nn.relu(dense(width, h.size, self.initialization)(h))
        return dense(self.num_outputs, h.size, self.initialization)(h)


class ConvEncoder(nn.Module):
    """A convolutional network x -> outputs [num_outputs] for images [H, W, C].

    Each level halves height and width (odd ones rounded up) by a 4 x 4 convolution with
    stride 2, then one fully connected layer; ReLU after each.

    Attributes:
        num_outputs: what the posterior takes (`jaxvae.posteriors`).
        channels: channels of each level, first to last.
        width: of the fully connected layer.
    """

    num_outputs: int
    channels: tuple[int, ...]
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs [num_outputs] for one image x [H, W, C]."""
        for channels in self.channels:
            padding = [(1, 1 + x.shape[0] % 2), (1, 1 + x.shape[1] % 2)]
            x = nn.relu(nn.Conv(channels, (4, 4), strides=(2, 2), padding=padding)(x))
        h = nn.relu(nn.Dense(self.width)(x.reshape(-1)))
        return dense(self.num_outputs, h.size, "lecun")(h)
