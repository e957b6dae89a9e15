"""Resizing of images: Pillow's filter, the centre cut, and constants."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxvae.preprocessing import resize
from jaxvae.preprocessing.images import cover


def picture(height=147, width=211):
    """Smooth colour noise [H, W, 3] uint8."""
    noise = np.random.default_rng(0).integers(0, 256, (17, 23, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.slow
@pytest.mark.parametrize("target", [(32, 32), (20, 50), (64, 10), (200, 200)])
def test_resize_is_pillows(target):
    """Pillow rounds to 8 bits after each of two passes."""
    image = picture()
    expected = ImageOps.fit(Image.fromarray(image), target[::-1], Image.Resampling.BICUBIC)
    errors = np.abs(np.asarray(resize(jnp.asarray(image), target)) - np.asarray(expected))
    assert errors.max() <= 4
    assert errors.mean() < 0.3


def test_an_image_of_the_target_size_stays_as_it_is():
    image = picture(16, 24)
    np.testing.assert_array_equal(resize(jnp.asarray(image), (16, 24)), image)


def test_real_values_are_not_rounded():
    image = jnp.linspace(-1.0, 1.0, 64).reshape(8, 8, 1)
    small = np.asarray(resize(image, (4, 4)))
    assert small.shape == (4, 4, 1)
    assert (small != np.round(small)).any()


def test_the_box_is_the_largest_centred_one():
    top, left, height, width = cover((90, 120), (30, 30))
    assert (top, left, height, width) == (0, 15, 90, 90)
