"""Residual encoder and decoder for images: Flax linen modules."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvae.networks.convolutions import Conv, Upsample
from jaxvae.networks.decoders import OutputBias
from jaxvae.networks.dense import dense
from jaxvae.networks.residual import GroupNorm, Levels


class ResNetEncoder(nn.Module):
    """A residual network from an image [H, W, C] to outputs [num_outputs].

    3 x 3 convolutions with stride 2 between the levels halve the image. Sides that they do not
    divide are extended by repeated pixels.

    Attributes:
        num_outputs: number of inputs of the posterior (`jaxvae.models.posteriors`).
        levels: sizes of the network.
        by_place: whether the outputs belong to the places of the smallest level, [h, w, n] in one
            row; otherwise each is a linear function of all places.

    Ref: Esser, Rombach & Ommer, Taming Transformers for High-Resolution Image Synthesis, 2021.
    """

    num_outputs: int
    levels: Levels
    by_place: bool

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        """Outputs [num_outputs] for one image x [H, W, C], and a condition [E] if it has one."""
        levels = self.levels
        channels, dtype = levels.channels, levels.dtype
        places = levels.smallest(x.shape)
        factor = 2 ** (len(channels) - 1)
        extra = [(0, factor * p - n) for p, n in zip(places, x.shape[:2], strict=True)]
        h = Conv(channels[0], 3, dtype=dtype)(jnp.pad(x, (*extra, (0, 0)), mode="edge"))
        for level in range(len(channels)):
            if level > 0:
                h = Conv(channels[level], 3, stride=2, dtype=dtype)(h)
            h = levels.apply_blocks(h, level, condition)
        h = nn.silu(GroupNorm()(levels.apply_middle(h, condition)))
        if self.by_place:
            return Conv(self.num_outputs // math.prod(places), 3, dtype=dtype)(h).reshape(-1)
        return dense(self.num_outputs, h.size, "lecun", dtype=dtype)(h.reshape(-1))


class ResNetDecoder(nn.Module):
    """A residual network from z to an output [H, W, C]: `ResNetEncoder` mirrored.

    Between the levels each pixel becomes 2 x 2 equal ones, followed by a 3 x 3 convolution. The
    output is cropped to the image.

    Attributes:
        data_shape: (H, W, C) of the output.
        levels: sizes of the network.
        by_place: whether z belongs to the places of the smallest level, [h, w, ...]; otherwise each
            place is a linear function of all of z.
        output_bias: initializer of the output's bias [H, W, C], of which each channel gets the mean
            over all pixels; None: zeros.

    Ref: as for `ResNetEncoder`; Odena et al., Deconvolution and Checkerboard Artifacts, 2016.
    """

    data_shape: tuple[int, ...]
    levels: Levels
    by_place: bool
    output_bias: OutputBias | None = None

    @nn.compact
    def __call__(self, z: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        """Output [H, W, C] for one z, and a condition [E] if it has one."""
        levels = self.levels
        channels, dtype = levels.channels, levels.dtype
        places = levels.smallest(self.data_shape)
        if self.by_place:
            h = Conv(channels[-1], 3, dtype=dtype)(z.reshape(*places, -1))
        else:
            size = math.prod(places) * channels[-1]
            h = dense(size, z.size, "lecun", dtype=dtype)(z.reshape(-1))
            h = h.reshape(*places, channels[-1])
        h = levels.apply_middle(h, condition)
        for level in reversed(range(len(channels))):
            h = levels.apply_blocks(h, level, condition)
            if level > 0:
                h = Upsample(channels[level - 1], 3, dtype=dtype)(h)
        h = nn.silu(GroupNorm()(h))
        last = Conv(
            self.data_shape[2], 3, use_bias=False, kernel_init=nn.initializers.zeros, dtype=dtype
        )
        h = last(h)  # zero at first: the output starts at its bias, the mean of the data
        bias = self.param("output_bias", self._mean_bias, self.data_shape[2:])
        return (h + bias[None, None])[: self.data_shape[0], : self.data_shape[1]]

    def _mean_bias(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        start = self.output_bias or nn.initializers.zeros_init()
        return jnp.mean(start(key, self.data_shape), axis=(0, 1))
