"""The images that the nets are for, and binary ones that all evaluate alike."""

import numpy as np

from experiments.benchmark.nets import DATA_SIDE


def check_images(examples: np.ndarray) -> None:
    """Refuse examples that the nets are not for.

    Raises:
        ValueError: it says what came.
    """
    shape = (DATA_SIDE, DATA_SIDE, 1)
    if examples.shape[1:] != shape or examples.dtype != np.uint8:
        raise ValueError(
            f"the nets are for 8-bit images of shape {shape}, got {examples.dtype} "
            f"{examples.shape[1:]}. Use --dataset=mnist_small, mnist, fashion_mnist or kmnist."
        )


def binary_images(examples: np.ndarray) -> np.ndarray:
    """8-bit images with every pixel drawn from Bernoulli(value / 255): 0 or 255, uint8."""
    uniform = np.random.default_rng(0).random(examples.shape, np.float32)
    return np.where(uniform < examples / np.float32(255), 255, 0).astype(np.uint8)
