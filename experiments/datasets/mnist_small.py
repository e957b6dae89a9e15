"""mnist_small: 12,000 images of MNIST that come with the source code (see mnist_small.txt)."""

from pathlib import Path

from experiments.datasets import Dataset, arrays
from experiments.datasets.splits import assemble

FILE = Path(__file__).with_name("mnist_small.npz")


def load(num_validation: int | None) -> Dataset:
    """Every sixth training and every fifth test image of MNIST, uint8 [28, 28, 1]."""
    return assemble(
        "mnist_small",
        arrays.read_npz(FILE),
        what="handwritten digits, a sixth of MNIST's training and a fifth of its test images",
        source="Y. LeCun, C. Cortes, C. Burges; CC BY-SA 3.0",
        num_validation=num_validation,
        default_validation=1_000,
    )
