"""Convolutions of kernel 4 x 4 and stride 2, and their transpose, as products of blocks of pixels.

They rearrange the image into 2 x 2 blocks and use one matrix product. As a case of the forms in
`jaxvae.cpu.convolution` net d of the benchmark takes 8 to 20 % longer.
"""

from itertools import product

import jax
import jax.numpy as jnp
from jax import lax

KERNEL, STRIDE = 4, 2
CORNERS = tuple(product((0, 1), (0, 1)))
"""Rows and columns, relative to the first, of the four blocks that a kernel covers."""


def convolution_by_blocks(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution of an image [H, W, C] and a kernel [4, 4, C, O], with one pixel of padding.

    Odd sides have one pixel more. Each window, four neighbouring 2 x 2 blocks, is a row of the
    product.
    """
    height, width, channels = x.shape
    blocks = _to_blocks(jnp.pad(x, ((1, 1 + height % 2), (1, 1 + width % 2), (0, 0))))
    height, width = blocks.shape[0] - 1, blocks.shape[1] - 1
    corners = [blocks[i : i + height, j : j + width] for i, j in CORNERS]
    windows = jnp.stack(corners, axis=2).reshape(height, width, -1)
    return image_product(windows, _by_corner(kernel).reshape(16 * channels, -1))


def transposed_convolution_by_blocks(x: jax.Array, kernel: jax.Array) -> jax.Array:
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
        blocks = image_product(corners.reshape(height + 1, width + 1, -1), matrix)
    else:
        products = image_product(x, taps.transpose(2, 0, 1, 3).reshape(channels, 16 * outputs))
        # Unlike slices, lax.split has a gradient that is one concatenation.
        shares = lax.split(products, [4 * outputs] * 4, axis=2)
        first, *others = [
            lax.pad(share, zero, shift) for share, shift in zip(shares, shifts, strict=True)
        ]
        blocks = sum(others, start=first)
    return _from_blocks(blocks)[1:-1, 1:-1]


def image_product(rows: jax.Array, matrix: jax.Array) -> jax.Array:
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
