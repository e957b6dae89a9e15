"""Encoders: Flax linen modules x -> q(z|x), for one example."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvae.dense import Initialization, dense
from jaxvae.distributions import Gaussian, soft_clamp


class MLPEncoder(nn.Module):
    """A fully connected network x -> q(z|x) = N(loc, diag(exp(log_scale))^2).

    x of any shape is flattened; log_scale passes `jaxvae.soft_clamp`.

    Attributes:
        latent_dim: Z.
        hidden: widths of the hidden layers, first to last; ReLU after each.
        initialization: see `jaxvae.dense`.
    """

    latent_dim: int
    hidden: tuple[int, ...]
    initialization: Initialization = "lecun"

    @nn.compact
    def __call__(self, x: jax.Array) -> Gaussian:
        """q(z|x) over [Z] for one x of any shape."""
        h = x.reshape(-1)
        for width in self.hidden:
            h = nn.relu(dense(width, h.size, self.initialization)(h))
        return _posterior(h, self.latent_dim, self.initialization)


class ConvEncoder(nn.Module):
    """A convolutional network x -> q(z|x) for images [H, W, C].

    Each level halves height and width (odd ones rounded up) by a 4 x 4 convolution with
    stride 2, then one fully connected layer; ReLU after each.

    Attributes:
        latent_dim: Z.
        channels: channels of each level, first to last.
        width: of the fully connected layer.
    """

    latent_dim: int
    channels: tuple[int, ...]
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> Gaussian:
        """q(z|x) over [Z] for one image x [H, W, C]."""
        for channels in self.channels:
            padding = [(1, 1 + x.shape[0] % 2), (1, 1 + x.shape[1] % 2)]
            x = nn.relu(nn.Conv(channels, (4, 4), strides=(2, 2), padding=padding)(x))
        h = nn.relu(nn.Dense(self.width)(x.reshape(-1)))
        return _posterior(h, self.latent_dim, "lecun")


def _posterior(h: jax.Array, latent_dim: int, initialization: Initialization) -> Gaussian:
    loc, log_scale = jnp.split(dense(2 * latent_dim, h.size, initialization)(h), 2)
    return Gaussian(loc, soft_clamp(log_scale))
