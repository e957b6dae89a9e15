"""Convolutional layers: Flax linen modules for one image."""

import math
from itertools import product

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxvae.cpu.convolution import Padding, convolution, transposed_convolution


class _Layer(nn.Module):
    """A linen layer for one image, of a kernel with a bias; subclasses say what the kernel does.

    Attributes:
        features: channels of the output.
        kernel_size: rows and columns of the kernel.
        use_bias: whether to add one number per channel.
        kernel_init: initializer of the kernel as a matrix [A B C, O].
        dtype: type to compute in; None: that of the image and the parameters.
    """

    features: int
    kernel_size: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Image [H', W', features] for an image [H, W, C]."""
        shape = (self.kernel_size, self.kernel_size, jnp.shape(x)[-1], self.features)
        kernel = self.param("kernel", self._initial, shape)
        dtype = self.dtype or jnp.result_type(x, kernel)
        y = self.without_bias(jnp.asarray(x, dtype), jnp.asarray(kernel, dtype))
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return y + jnp.asarray(bias, dtype)[None, None]

    def _initial(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Initial kernel, drawn as a matrix, since XLA takes seconds to compile four axes."""
        return self.kernel_init(key, (math.prod(shape[:-1]), shape[-1])).reshape(shape)

    def without_bias(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Image [H', W', features] for an image and a kernel."""
        raise NotImplementedError


class Conv(_Layer):
    """`convolution` with a bias; it has the parameters of `nn.Conv`.

    Attributes:
        stride, dilation, padding: as in `convolution`.
        features, kernel_size, use_bias, kernel_init, dtype: as in `_Layer`.
    """

    stride: int = 1
    dilation: int = 1
    padding: Padding | None = None

    def without_bias(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Image [H', W', features] for an image and a kernel."""
        return convolution(
            x, kernel, stride=self.stride, dilation=self.dilation, padding=self.padding
        )


class ConvTranspose(_Layer):
    """`transposed_convolution` with a bias; without padding its output is [s H, s W, features].

    Attributes:
        stride, padding: as in `transposed_convolution`.
        features, kernel_size, use_bias, kernel_init, dtype: as in `_Layer`.
    """

    stride: int = 2
    padding: Padding | None = None

    def without_bias(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Image [H', W', features] for an image and a kernel."""
        return transposed_convolution(x, kernel, stride=self.stride, padding=self.padding)


class Upsample(_Layer):
    """Each pixel becomes s x s equal ones, followed by `convolution` and a bias.

    On every backend it is computed as the transposed convolution that equals it, whose kernel is
    the convolution of the given one with ones, [A + s - 1, B + s - 1]: for 3 x 3 and s = 2 that
    takes 16 products per pixel and channel of the small image instead of 36.

    Attributes:
        stride: s.
        features, kernel_size, use_bias, kernel_init, dtype: as in `_Layer`.
    """

    stride: int = 2

    def without_bias(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Image [s H, s W, features] for an image and a kernel."""
        taps, s = kernel.shape[:2], self.stride
        padded = lambda i, j: ((i, s - 1 - i), (j, s - 1 - j), (0, 0), (0, 0))
        shifted = [jnp.pad(kernel, padded(i, j)) for i, j in product(range(s), range(s))]
        before = [(tap - 1) // 2 for tap in taps]
        rows, columns = (
            (b + s - 1, tap - 1 - b + s - 1) for b, tap in zip(before, taps, strict=True)
        )
        return transposed_convolution(
            x, sum(shifted[1:], start=shifted[0]), stride=s, padding=(rows, columns)
        )
