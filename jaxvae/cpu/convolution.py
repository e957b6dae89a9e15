"""Convolutions of any kernel, stride, dilation and padding, and their transpose, fast on CPUs.

XLA's CPU backend computes a convolution fast only if its operands have the usual layout, NHWC and
HWIO. It rewrites others, but not inside loops, and every gradient that jax derives is another one:
in a training step, which is a loop, they take 25 to 72 times as long (below). So on CPUs each
convolution gets the form that is fastest for its sizes, of which all gradients are matrix products
or usual convolutions; on a GPU or TPU it is XLA's own. Both give the same numbers, to rounding, and
the same gradients, forward and reverse.

Milliseconds in a loop for value and both gradients, 16 images [H, W, C] -> O, 3 x 3, stride 1, two
cores with AVX-512, jaxlib 0.10.2:

    [64, 64, 3] -> 32        XLA's own   141    here 5.7
    [64, 64, 32] -> 32             2,500         35
    [16, 16, 128] -> 128           1,300         18
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxvae.cpu.block_convolution import (
    KERNEL,
    STRIDE,
    convolution_by_blocks,
    image_product,
    transposed_convolution_by_blocks,
)
from jaxvae.cpu.row_product import is_explicit

Pair = tuple[Any, Any]
Padding = tuple[tuple[int, int], tuple[int, int]]
"""Rows above and below, columns left and right; negative: rows and columns cut off."""
LAYOUT = ("NHWC", "HWIO", "NHWC")
EXCHANGED = ("NHWC", "HWOI", "NHWC")


class Window(NamedTuple):
    """Positions at which a kernel sees an image."""

    stride: int
    dilation: int
    padding: Padding


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: Padding | None = None,
) -> jax.Array:
    """Convolution of one image, as neural networks define it: without a flip of the kernel.

        y[i, j] = sum_{t, u} x[s i + d t - above, s j + d u - left] kernel[t, u]

    Args:
        x: image [H, W, C].
        kernel: [A, B, C, O].
        stride: s, pixels of x between those of y.
        dilation: d, pixels of x between those that a kernel sees.
        padding: zeros around the image, ((above, below), (left, right)). None: so many that y has
            ceil(H / s) rows, floor((d (A - 1) + 1 - s) / 2) of them above, the rest below; columns
            likewise. For 3 x 3 and stride 2 that is (0, 1) on even sides and (0, 2) on odd ones.

    Returns:
        Image of floor((H + above + below - d (A - 1) - 1) / s) + 1 rows, columns likewise, and O
        channels.

    Raises:
        ValueError: the shapes are different, the window exceeds the padded image, or the image is
            sharded over an `Explicit` axis.

    >>> convolution(jnp.ones((7, 8, 3)), jnp.ones((4, 4, 3, 5)), stride=2).shape
    (4, 4, 5)
    """
    _check("convolution", x, kernel, stride=stride, dilation=dilation)
    window = _usual_window(x, kernel, stride, dilation)
    window = window if padding is None else window._replace(padding=padding)
    _check_sizes("convolution", _positions(x, kernel.shape[:2], window), window.padding)
    _check_cut("convolution", x.shape, window.padding, 1)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: convolution_on_cpu(x, kernel, window),
        default=lambda x, kernel: native_convolution(x, kernel, window),
    )


def transposed_convolution(
    x: jax.Array, kernel: jax.Array, *, stride: int = 2, padding: Padding | None = None
) -> jax.Array:
    """Transposed convolution of one image: that of the image with s - 1 zeros between its pixels.

        y[s i + above - t, s j + left - u] += x[i, j] kernel[t, u]

    Args:
        x: image [H, W, C].
        kernel: [A, B, C, O].
        stride: s, pixels of y between those of x.
        padding: zeros around the spread image, ((above, below), (left, right)). None: as many that
            y has s H rows and s W columns, those of `jax.lax.conv_transpose` with "SAME".

    Returns:
        Image of s (H - 1) + 2 + above + below - A rows, columns likewise, and O channels.

    Raises:
        ValueError: as in `convolution`.

    >>> transposed_convolution(jnp.ones((4, 4, 5)), jnp.ones((4, 4, 5, 3))).shape
    (8, 8, 3)
    """
    _check("transposed_convolution", x, kernel, stride=stride)
    padding = _usual_ends(kernel, stride) if padding is None else padding
    _check_sizes("transposed_convolution", _spread_positions(x, kernel, stride, padding), padding)
    _check_cut("transposed_convolution", x.shape, padding, stride)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: transposed_convolution_on_cpu(x, kernel, stride, padding),
        default=lambda x, kernel: native_transposed_convolution(x, kernel, stride, padding),
    )


def native_convolution(
    x: jax.Array, kernel: jax.Array, window: Window, layout: tuple[str, str, str] = LAYOUT
) -> jax.Array:
    """`convolution` by XLA's own."""
    stride, dilation, padding = window
    return lax.conv_general_dilated(
        x[None],
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=layout,
    )[0]


def native_transposed_convolution(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    """`transposed_convolution` by XLA's own."""
    return lax.conv_general_dilated(
        x[None],
        kernel,
        (1, 1),
        padding,
        lhs_dilation=(stride, stride),
        dimension_numbers=LAYOUT,
    )[0]


def convolution_on_cpu(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """`convolution` in the form whose value and gradients are fast on CPUs, inside loops too."""
    if kernel.shape[:2] == (KERNEL, KERNEL) and window == _usual_window(x, kernel, STRIDE, 1):
        return convolution_by_blocks(x, kernel)
    cut = [(min(before, 0), min(after, 0)) for before, after in window.padding]
    rows, columns = ((max(before, 0), max(after, 0)) for before, after in window.padding)
    window = window._replace(padding=(rows, columns))
    x = _padded(x, cut) if any(map(any, cut)) else x
    *taps, channels, outputs = kernel.shape
    if window.stride > 1:
        return _by_windows(x, kernel, window)
    # The two one-product forms write all taps of the fewer of channels and outputs. They are faster
    # up to about twice the image's own values, and for kernels up to 2 x 2 (measured).
    size = math.prod(taps) * min(channels, outputs)
    if math.prod(taps) > 4 and size > 2 * (channels + outputs):
        return _usual_layout(window)(x, kernel)
    return (_by_windows if channels <= outputs else _by_outputs)(x, kernel, window)


def _by_windows(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Convolution as one product; a row of its left factor is what the kernel sees at once."""
    s, d, padding = window
    rows, columns, _, outputs = kernel.shape
    height, width = _positions(x, kernel.shape[:2], window)
    every = product(range(rows), range(columns))
    if s == 1:
        seen = [_shifted(x, taps, window, (height, width)) for taps in every]
    else:
        padded = _padded(x, padding)
        ends = s * (height - 1) + 1, s * (width - 1) + 1
        seen = [padded[d * t : d * t + ends[0] : s, d * u : d * u + ends[1] : s] for t, u in every]
    windows = seen[0] if len(seen) == 1 else jnp.concatenate(seen, axis=2)
    return image_product(windows, kernel.reshape(-1, outputs))


def _by_outputs(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Convolution with stride 1 as one product with all entries of the kernel, shifted and added.

    It writes fewer numbers than `_by_windows` if there are fewer outputs than channels.
    """
    rows, columns, channels, outputs = kernel.shape
    positions = _positions(x, kernel.shape[:2], window)
    products = image_product(x, kernel.transpose(2, 0, 1, 3).reshape(channels, -1))
    # Unlike slices, lax.split has a gradient that is one concatenation.
    shares = lax.split(products, [outputs] * (rows * columns), axis=2)
    every = product(range(rows), range(columns))
    parts = [
        _shifted(share, taps, window, positions) for share, taps in zip(shares, every, strict=True)
    ]
    return sum(parts[1:], start=parts[0])


def _by_rows(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Convolution with stride 1 as a sum of products, one for each row of the kernel.

    Its gradient with respect to the kernel is the fastest that was found: for 4 images
    [64, 64, 32] and 32 outputs it takes 4.5 ms, as one product 5.6, as nine 6.1, as XLA's
    convolution of transposed arrays 7.2.
    """
    d = window.dilation
    rows, columns, _, outputs = kernel.shape
    height, width = _positions(x, kernel.shape[:2], window)
    padded = _padded(x, window.padding)
    windows = jnp.concatenate([padded[:, d * u : d * u + width] for u in range(columns)], axis=2)
    parts = [
        image_product(windows[d * t : d * t + height], kernel[t].reshape(-1, outputs))
        for t in range(rows)
    ]
    return sum(parts[1:], start=parts[0])


def _usual_layout(window: Window) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """XLA's own convolution with stride 1, with gradients that are usual convolutions and products.

    For the gradient of a convolution with respect to x, jax keeps the kernel and names its axes in
    another order: an unusual layout. So the tangent here is a convolution whose kernel has its
    axes exchanged and named accordingly; jax names them once more, and its gradient is usual.
    """

    @jax.custom_jvp
    def function(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return native_convolution(x, kernel, window)

    def tangent(primals: Pair, tangents: Pair) -> Pair:
        (x, kernel), (of_x, of_kernel) = primals, tangents
        parts = []
        if type(of_x) is not SymbolicZero:  # images of a first layer are data, without a tangent
            exchanged = lax.optimization_barrier(kernel.swapaxes(2, 3))
            parts.append(native_convolution(of_x, exchanged, window, EXCHANGED))
        if type(of_kernel) is not SymbolicZero:
            parts.append(_by_rows(x, of_kernel, window))
        return function(x, kernel), sum(parts[1:], start=parts[0])

    function.defjvp(tangent, symbolic_zeros=True)
    return function


def _shifted(
    x: jax.Array, taps: tuple[int, int], window: Window, positions: Sequence[int]
) -> jax.Array:
    """The part of x that one entry of a kernel sees with stride 1; its gradient is a slice."""
    starts = [
        before - window.dilation * tap
        for (before, _), tap in zip(window.padding, taps, strict=True)
    ]
    sides = zip(starts, positions, x.shape[:2], strict=True)
    return _padded(x, [(start, number - start - side) for start, number, side in sides])


def _padded(x: jax.Array, padding: Iterable[tuple[int, int]]) -> jax.Array:
    return lax.pad(x, jnp.zeros((), x.dtype), [(*ends, 0) for ends in (*padding, (0, 0))])


def transposed_convolution_on_cpu(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    """Transposed convolution as a convolution with stride 1 to s x s blocks of pixels.

    Along each side, y is extended at its start by `cut` pixels, which are cut off at the end: then
    all s pixels of block q see the image from pixel q - start on. The pixel s q + r is

        sum_j x[q + j - start] kernel[s - 1 - r + s j]
    """
    s, outputs = stride, kernel.shape[-1]
    usual = s == STRIDE and padding == _usual_ends(kernel, s)
    if kernel.shape[:2] == (KERNEL, KERNEL) and usual:
        return transposed_convolution_by_blocks(x, kernel)
    sizes = _spread_positions(x, kernel, s, padding)
    cuts = [(s - 1 - before) % s for before, _ in padding]
    starts = [(cut + before - (s - 1)) // s for cut, (before, _) in zip(cuts, padding, strict=True)]
    blocks = [-(-(size + cut) // s) for size, cut in zip(sizes, cuts, strict=True)]
    taps = [-(-side // s) for side in kernel.shape[:2]]
    whole = [(0, s * tap - side) for tap, side in zip(taps, kernel.shape[:2], strict=True)]
    parts = jnp.pad(kernel, (*whole, (0, 0), (0, 0)))
    parts = parts.reshape(taps[0], s, taps[1], s, *kernel.shape[2:])[:, ::-1, :, ::-1]
    parts = parts.transpose(0, 2, 4, 1, 3, 5).reshape(*taps, kernel.shape[2], s * s * outputs)
    rows, columns = (
        (start, number + tap - 1 - start - side)
        for start, number, tap, side in zip(starts, blocks, taps, x.shape[:2], strict=True)
    )
    y = convolution_on_cpu(x, parts, Window(1, 1, (rows, columns))).reshape(*blocks, s, s, outputs)
    y = y.swapaxes(1, 2).reshape(blocks[0] * s, blocks[1] * s, outputs)
    return y[cuts[0] : cuts[0] + sizes[0], cuts[1] : cuts[1] + sizes[1]]


def _positions(x: jax.Array, taps: tuple[int, ...], window: Window) -> list[int]:
    """Rows and columns of a convolution's output."""
    return [
        (side + sum(ends) - window.dilation * (tap - 1) - 1) // window.stride + 1
        for side, tap, ends in zip(x.shape[:2], taps, window.padding, strict=True)
    ]


def _spread_positions(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> list[int]:
    """Rows and columns of a transposed convolution's output."""
    return [
        stride * (side - 1) + 2 + sum(ends) - taps
        for side, taps, ends in zip(x.shape[:2], kernel.shape[:2], padding, strict=True)
    ]


def _usual_window(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> Window:
    """The window of `convolution` without `padding`."""
    sides = zip(x.shape[:2], kernel.shape[:2], strict=True)
    rows, columns = (_same(side, taps, stride, dilation) for side, taps in sides)
    return Window(stride, dilation, (rows, columns))


def _usual_ends(kernel: jax.Array, stride: int) -> Padding:
    """The padding of `transposed_convolution` without `padding`."""
    rows, columns = (_multiplied(taps, stride) for taps in kernel.shape[:2])
    return rows, columns


def _same(side: int, taps: int, stride: int, dilation: int) -> tuple[int, int]:
    """Zeros before and after a side, such that ceil(side / stride) positions remain."""
    extent = dilation * (taps - 1) + 1
    before = max(extent - stride, 0) // 2
    return before, (-(-side // stride) - 1) * stride + extent - side - before


def _multiplied(taps: int, stride: int) -> tuple[int, int]:
    """Zeros before and after a spread side, such that stride * side positions remain."""
    total = taps + stride - 2
    before = taps - 1 if stride > taps - 1 else -(-total // 2)
    return before, total - before


def _check(function: str, x: jax.Array, kernel: jax.Array, **steps: int) -> None:
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
    if len(window) != 4 or window[2] != image[2]:
        raise ValueError(
            f"{function}: the kernel must have shape (A, B, {image[2]}, O) for an image of shape "
            f"{image}, got {window}. Give a kernel with the image's channels."
        )
    for name, step in steps.items():
        if step < 1:
            raise ValueError(f"{function}: {name} must be at least 1, got {step}.")


def _check_sizes(function: str, sizes: list[int], padding: Padding) -> None:
    if min(sizes) < 1:
        raise ValueError(
            f"{function}: the image with its padding must not be smaller than the kernel's window; "
            f"padding={padding} leaves {sizes[0]} x {sizes[1]} positions. Pad more, or use a "
            "smaller window."
        )


def _check_cut(function: str, shape: tuple[int, ...], padding: Padding, stride: int) -> None:
    """Check that negative padding leaves a pixel of an image, spread with this stride."""
    for side, ends in zip(shape[:2], padding, strict=True):
        if stride * (side - 1) + 1 + sum(min(end, 0) for end in ends) < 1:
            raise ValueError(
                f"{function}: padding={padding} cuts off all of an image of shape {shape}. Cut "
                "off less."
            )
