"""Residual blocks for images, their normalization, and self-attention: Flax linen modules."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jaxvae.networks.convolutions import Conv
from jaxvae.networks.dense import conditioned

GROUPS = 32
"""Largest number of groups of a normalization."""
LEAST_VALUES = 16
"""Smallest number of values of a group, where the channels allow it."""
QUERIES_AT_ONCE = 512
"""Places whose attention is computed at once, so that memory grows with the number of places and
not with its square."""

MOST_PLACES = 4096
"""Most places, [64, 64], between which there is attention."""


class GroupNorm(nn.Module):
    """Each group of channels of one image gets mean 0 and variance 1, then a scale and a bias.

    The number of groups is the largest power of two, at most 32, that divides the channels and
    leaves each group `LEAST_VALUES` values: a group of one value would always become 0. Mean and
    variance are computed in float32 or wider, the variance from the differences to the mean: the
    mean of squares less the squared mean is off by 0.035 at mean 100 and standard deviation 1.

    Attributes:
        epsilon: added to the variance.

    Ref: Wu & He, Group Normalization, 2018, arXiv 1803.08494.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Image of the shape and type of x [H, W, C]."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        groups = math.gcd(channels, GROUPS)
        while groups > 1 and x.size < LEAST_VALUES * groups:
            groups //= 2
        wide = jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32)).reshape(-1, channels)
        mean = self._of_group(jnp.mean(wide, axis=0), groups)
        centered = wide - mean[None]
        variance = self._of_group(jnp.mean(jnp.square(centered), axis=0), groups)
        factor = scale * lax.rsqrt(variance + self.epsilon)
        return jnp.asarray(centered * factor[None] + bias[None], x.dtype).reshape(x.shape)

    def _of_group(self, values: jax.Array, groups: int) -> jax.Array:
        """Mean of each channel's group, for each channel."""
        means = jnp.mean(values.reshape(groups, -1), axis=1, keepdims=True)
        return jnp.broadcast_to(means, (groups, values.size // groups)).reshape(-1)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))) with 3 x 3 convolutions.

    The second convolution starts at zero, so that the block starts as the identity. If the number
    of channels changes, x passes a 1 x 1 convolution.

    Attributes:
        features: channels of the output.
        dtype: type to compute in; None: that of x and the parameters.

    Ref: He et al., Identity Mappings in Deep Residual Networks, 2016; Goyal et al., 2017, arXiv
    1706.02677 (the start at zero).
    """

    features: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        """Image [H, W, features] for an image [H, W, C], and a condition [E] if it has one."""
        h = Conv(self.features, 3, dtype=self.dtype)(nn.silu(GroupNorm()(x)))
        h = conditioned(h, condition, self.dtype)
        last = Conv(self.features, 3, kernel_init=nn.initializers.zeros, dtype=self.dtype)
        h = last(nn.silu(GroupNorm()(h)))
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, use_bias=False, dtype=self.dtype)(x)
        return x + h


class SelfAttention(nn.Module):
    """x + attention with one head between all places of an image, which starts as the identity.

        x_i + W_o sum_j softmax_j(q_i . k_j / sqrt(C)) v_j

    where q, k and v are 1 x 1 convolutions of the normalized image. The softmax is in float32.

    Attributes:
        dtype: type to compute in; None: that of x and the parameters.

    Ref: Vaswani et al., Attention Is All You Need, 2017; Esser et al., Taming Transformers, 2021.
    """

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Image of the shape of x [H, W, C]."""
        height, width, channels = x.shape
        h = GroupNorm()(x)
        query, key, value = (
            Conv(channels, 1, dtype=self.dtype)(h).reshape(-1, channels) for _ in range(3)
        )

        def attended(queries: jax.Array) -> jax.Array:
            wide = jnp.promote_types(key.dtype, jnp.float32)
            scores = jnp.matmul(queries, key.T, preferred_element_type=wide)
            weights = jax.nn.softmax(scores / math.sqrt(channels), axis=-1)
            return jnp.asarray(weights, value.dtype) @ value

        places = height * width
        if places <= 2 * QUERIES_AT_ONCE:
            found = attended(query)
        else:  # jax.checkpoint: a gradient would keep the weights of all queries
            parts = -(-places // QUERIES_AT_ONCE)
            size = -(-places // parts)
            padded = jnp.pad(query, ((0, parts * size - places), (0, 0)))
            found = lax.map(jax.checkpoint(attended), padded.reshape(parts, size, channels))
            found = found.reshape(-1, channels)[:places]
        last = Conv(channels, 1, kernel_init=nn.initializers.zeros, dtype=self.dtype)
        return x + last(found.reshape(height, width, channels))


class Levels(NamedTuple):
    """Levels of a residual network; its methods create layers inside the module that calls them.

    Attributes:
        channels: channels of each level, largest image first; each level has half the sides.
        blocks: residual blocks of a level of the encoder; the decoder has as many.
        rematerialize: whether a gradient computes the blocks' values again instead of keeping them.
        dtype: type to compute in; None: that of the image and the parameters.
    """

    channels: tuple[int, ...]
    blocks: int
    rematerialize: bool
    dtype: DTypeLike | None

    def smallest(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Sides of the smallest level for an image [H, W, C]."""
        factor = 2 ** (len(self.channels) - 1)
        return -(-shape[0] // factor), -(-shape[1] // factor)

    def apply_blocks(
        self,
        x: jax.Array,
        level: int,
        condition: jax.Array | None = None,
        blocks: int | None = None,
    ) -> jax.Array:
        """Residual blocks with the channels of a level."""
        block = ResidualBlock
        if self.rematerialize:
            block = nn.remat(ResidualBlock)
            block.__name__ = ResidualBlock.__name__  # flax names the parameters after it
        for _ in range(blocks or self.blocks):
            x = block(self.channels[level], self.dtype)(x, condition)
        return x

    def apply_middle(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        """A block, self-attention and another block at the smallest level.

        Images with more than `MOST_PLACES` places there have no attention, whose time grows with
        their square.
        """
        x = self.apply_blocks(x, -1, condition, 1)
        if x.shape[0] * x.shape[1] <= MOST_PLACES:
            x = SelfAttention(self.dtype)(x)
        return self.apply_blocks(x, -1, condition, 1)
