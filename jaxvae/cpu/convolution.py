"""Convolutions of kernel 4 x 4 and stride 2, and their transpose, fast on every backend.

On XLA's CPU backend the gradients of a convolution, and the transposed convolution, are an order of
magnitude slower than a matrix product. So on CPUs these functions rearrange the image into 2 x 2
blocks and use one matrix product; on a GPU or TPU they are XLA's own convolution. Both give the
same numbers, to rounding, and the same gradients, forward and reverse.
"""

import math
from itertools import product

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jaxvae.cpu.row_product import is_explicit

KERNEL, STRIDE = 4, 2
CORNERS = tuple(product((0, 1), (0, 1)))
"""Rows and columns, relative to the first, of the four blocks that a kernel covers."""


def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution of one image with stride 2, padded by one pixel, and one more for odd sides.

    y[i, j] = sum_{t, u} x[2i + t - 1, 2j + u - 1] kernel[t, u]

    Args:
        x: image [H, W, C].
        kernel: [4, 4, C, O].

    Returns:
        Image [ceil(H / 2), ceil(W / 2), O].

    Raises:
        ValueError: the shapes are different, or the image is sharded over an `Explicit` axis.

    >>> convolution(jnp.ones((7, 8, 3)), jnp.ones((4, 4, 3, 5))).shape
    (4, 4, 5)
    """
    _check("convolution", x, kernel)
    return lax.platform_dependent(x, kernel, cpu=_convolution_as_dot, default=_native_convolution)


def transposed_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution of one image with stride 2, which doubles its sides.

    y[2i + 2 - t, 2j + 2 - u] += x[i, j] kernel[t, u]

    Args:
        x: image [H, W, C].
        kernel: [4, 4, C, O].

    Returns:
        Image [2H, 2W, O].

    Raises:
        ValueError: the shapes are different, or the image is sharded over an `Explicit` axis.

    >>> transposed_convolution(jnp.ones((4, 4, 5)), jnp.ones((4, 4, 5, 3))).shape
    (8, 8, 3)
    """
    _check("transposed_convolution", x, kernel)
    return lax.platform_dependent(x, kernel, cpu=_transposed_as_dot, default=_native_transposed)


class Conv(nn.Module):
    """`convolution` with a bias: a linen layer for one image, with the parameters of `nn.Conv`.

    Attributes:
        features: channels of the output.
        use_bias: whether to add one number per channel.
        dtype: type to compute in; None: that of the image and the parameters.
    """

    features: int
    use_bias: bool = True
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Image [ceil(H / 2), ceil(W / 2), features] for an image [H, W, C]."""
        shape = (KERNEL, KERNEL, jnp.shape(x)[-1], self.features)
        kernel = self.param("kernel", _lecun_normal, shape)
        dtype = self.dtype or jnp.result_type(x, kernel)
        y = self.image(jnp.asarray(x, dtype), jnp.asarray(kernel, dtype))
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return y + jnp.asarray(bias, dtype)[None, None]

    def image(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The layer without its bias."""
        return convolution(x, kernel)


class ConvTranspose(Conv):
    """`transposed_convolution` with a bias; its output is an image [2H, 2W, features]."""

    def image(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The layer without its bias."""
        return transposed_convolution(x, kernel)


def _lecun_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """flax's initializer, drawn as a matrix, since XLA takes seconds to compile four axes."""
    return nn.initializers.lecun_normal()(key, (math.prod(shape[:-1]), shape[-1])).reshape(shape)


def _native_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    padding = [(1, 1 + side % STRIDE) for side in x.shape[:2]]
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x[None], kernel, (STRIDE, STRIDE), padding, dimension_numbers=layout
    )[0]


def _native_transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_transpose(x[None], kernel, (STRIDE, STRIDE), "SAME", dimension_numbers=layout)[
        0
    ]


def _convolution_as_dot(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution as one product; each window, four neighbouring 2 x 2 blocks, is a row."""
    height, width, channels = x.shape
    blocks = _to_blocks(jnp.pad(x, ((1, 1 + height % 2), (1, 1 + width % 2), (0, 0))))
    height, width = blocks.shape[0] - 1, blocks.shape[1] - 1
    corners = [blocks[i : i + height, j : j + width] for i, j in CORNERS]
    windows = jnp.stack(corners, axis=2).reshape(height, width, -1)
    return _product(windows, _by_corner(kernel).reshape(16 * channels, -1))


def _transposed_as_dot(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution as one product; each pixel adds to four neighbouring 2 x 2 blocks.

    Either the four pixels of a block are gathered before the product, or the product is scattered
    to four blocks after it, whichever array is smaller. The outer pixels are cut off.
    """
    height, width, channels = x.shape
    outputs = kernel.shape[-1]
    taps = _by_corner(kernel[::-1, ::-1])
    shifts = [((i, 1 - i, 0), (j, 1 - j, 0), (0, 0, 0)) for i, j in CORNERS]
    zero = jnp.zeros((), x.dtype)
    if channels <= STRIDE**2 * outputs:
        corners = jnp.stack([lax.pad(x, zero, shift) for shift in shifts], axis=2)
        matrix = taps.swapaxes(1, 2).reshape(4 * channels, 4 * outputs)
        blocks = _product(corners.reshape(height + 1, width + 1, -1), matrix)
    else:
        products = _product(x, taps.transpose(2, 0, 1, 3).reshape(channels, 16 * outputs))
        # Unlike slices, lax.split has a gradient that is one concatenation.
        shares = lax.split(products, [4 * outputs] * 4, axis=2)
        first, *others = [
            lax.pad(share, zero, shift) for share, shift in zip(shares, shifts, strict=True)
        ]
        blocks = sum(others, start=first)
    return _from_blocks(blocks)[1:-1, 1:-1]


def _product(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    """Product of [H, W, A] and [A, B] with a fast gradient with respect to the matrix.

    XLA's CPU backend computes one of rows^T cotangent and its transpose at half the speed of the
    other. The barrier keeps XLA from rewriting the fast form, used here, as the slow one.
    """
    transposed = lax.optimization_barrier(matrix.T)
    return lax.dot_general(rows, transposed, (((2,), (1,)), ((), ())))


def _to_blocks(image: jax.Array) -> jax.Array:
    """[2H, 2W, C] -> [H, W, 4C]."""
    height, width, channels = image.shape
    pixels = image.reshape(height // 2, 2, width // 2, 2, channels)
    return pixels.swapaxes(1, 2).reshape(height // 2, width // 2, 4 * channels)


def _from_blocks(blocks: jax.Array) -> jax.Array:
    """[H, W, 4C] -> [2H, 2W, C]."""
    height, width, channels = blocks.shape
    pixels = blocks.reshape(height, width, 2, 2, channels // 4)
    return pixels.swapaxes(1, 2).reshape(2 * height, 2 * width, channels // 4)


def _by_corner(kernel: jax.Array) -> jax.Array:
    """[4, 4, C, O] -> [4 blocks, 4 pixels of a block, C, O]."""
    return _to_blocks(kernel.reshape(KERNEL, KERNEL, -1)).reshape(4, 4, *kernel.shape[2:])


def _check(function: str, x: jax.Array, kernel: jax.Array) -> None:
    if is_explicit(x):
        raise ValueError(
            f"{function}: jax cannot shard its gradient over an axis of type Explicit, which "
            "jax.make_mesh gives. Make the mesh with axis_types=(jax.sharding.AxisType.Auto,)."
        )
    image, window = jnp.shape(x), jnp.shape(kernel)
    if len(image) != 3:
        raise ValueError(
            f"{function}: x must be one image [H, W, C], got shape {image}. jax.vmap adds the "
            "batch."
        )
    if len(window) != 4 or window[:3] != (KERNEL, KERNEL, image[2]):
        raise ValueError(
            f"{function}: the kernel must have shape (4, 4, {image[2]}, O) for an image of shape "
            f"{image}, got {window}. Give a kernel with the image's channels."
        )
