"""Images that the nets accept, and binary images shared by all evaluations."""

import numpy as np

from experiments.benchmark.nets import NETS


def check_images(examples: np.ndarray, net: str) -> None:
    """Reject examples whose shape or type a net does not accept.

    Raises:
        ValueError: the examples are not 8-bit images of the net's shape.
    """
    shape, small = (
        NETS[net].data_shape,
        "mnist_small, mnist, fashion_mnist, kmnist, npz:PATH or npy:PATH",
    )
    if examples.shape[1:] != shape or examples.dtype != np.uint8:
        known = small if shape[0] == 28 else NETS[net].dataset
        raise ValueError(
            f"net {net} is for 8-bit images of shape {shape}, got {examples.dtype} "
            f"{examples.shape[1:]}. Use --dataset={known}."
        )


def binary_images(examples: np.ndarray) -> np.ndarray:
    """Draw every pixel from Bernoulli(value / 255), with a fixed seed: 0 or 255, uint8."""
    uniform = np.random.default_rng(0).random(examples.shape, np.float32)
    return np.where(uniform < examples / np.float32(255), 255, 0).astype(np.uint8)
