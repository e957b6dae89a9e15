"""Images that the nets accept, and binary images shared by all evaluations."""

import numpy as np

from experiments.benchmark.nets import DATA_SIDE


def check_images(examples: np.ndarray) -> None:
    """Reject examples whose shape or type the nets do not accept.

    Raises:
        ValueError: the examples are not 8-bit images of shape (28, 28, 1).
    """
    shape = (DATA_SIDE, DATA_SIDE, 1)
    if examples.shape[1:] != shape or examples.dtype != np.uint8:
        raise ValueError(
            f"the nets are for 8-bit images of shape {shape}, got {examples.dtype} "
            f"{examples.shape[1:]}. Use --dataset=mnist_small, mnist, fashion_mnist or kmnist."
        )


def binary_images(examples: np.ndarray) -> np.ndarray:
    """Draw every pixel from Bernoulli(value / 255), with a fixed seed: 0 or 255, uint8."""
    uniform = np.random.default_rng(0).random(examples.shape, np.float32)
    return np.where(uniform < examples / np.float32(255), 255, 0).astype(np.uint8)
