"""mnist_small: 12,000 images of MNIST that ship with the source code (see mnist_small.txt)."""

from pathlib import Path

from experiments.data import arrays
from experiments.data.splits import Source

FILE = Path(__file__).with_name("mnist_small.npz")


def read_source() -> Source:
    """Read every sixth training and every fifth test image of MNIST, uint8 [28, 28, 1]."""
    return Source(
        "mnist_small",
        arrays.read_npz(FILE).parts,
        what="handwritten digits, a sixth of MNIST's training and a fifth of its test images",
        origin="Y. LeCun, C. Cortes, C. Burges; CC BY-SA 3.0",
        default_validation=1_000,
    )
