"""Resizing of images as a pure function."""

import jax
import jax.numpy as jnp
import numpy as np


def cover(size: tuple[float, float], target: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the largest centred box of an image with the target's aspect ratio.

    Args:
        size, target: height and width.

    Returns:
        Top, left, height and width of the box, in pixels of the image.

    >>> cover((100, 300), (10, 20))
    (0.0, 50.0, 100.0, 200.0)
    """
    height, width = size
    scale = min(height / target[0], width / target[1])
    box_height, box_width = target[0] * scale, target[1] * scale
    return (height - box_height) / 2, (width - box_width) / 2, box_height, box_width


def resize(image: jax.Array, target: tuple[int, int]) -> jax.Array:
    """Scale an image to cover the target size, cut to its centre: [H, W, C] -> [h, w, C].

    The filter is Keys' cubic with antialiasing, as Pillow's BICUBIC, which rounds to 8 bits after
    each of two passes: results differ from Pillow's by a grey level or two.

    Args:
        image: values of any numeric type.
        target: height h and width w.

    Returns:
        [h, w, C] float32; for uint8 rounded and limited to 0 to 255.

    >>> resize(jnp.full((30, 40, 3), 7, jnp.uint8), (8, 8))[0, 0].tolist()
    [7.0, 7.0, 7.0]
    """
    top, left, height, width = cover((image.shape[0], image.shape[1]), target)
    scale = np.array([target[0] / height, target[1] / width], np.float32)
    scaled = jax.image.scale_and_translate(
        image.astype(jnp.float32),
        (*target, image.shape[2]),
        (0, 1),
        scale,
        -scale * np.array([top, left], np.float32),
        method="cubic",
        antialias=True,
    )
    return jnp.clip(jnp.round(scaled), 0, 255) if image.dtype == jnp.uint8 else scaled
