"""Make mnist_small.npz: python -m experiments.data.make_mnist_small FOLDER [OUTPUT]."""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np

from experiments.data.idx import OFFICIAL, read_idx, require_official
from experiments.data.mnist_small import FILE

TRAIN_STRIDE = 6
TEST_STRIDE = 5


def make(folder: Path, output: Path) -> None:
    """Write the selection from the four official files in a folder, the same bytes every time."""
    require_official("mnist", OFFICIAL["mnist"], folder)
    selected = {
        "x_train": read_idx(folder / "train-images-idx3-ubyte.gz")[::TRAIN_STRIDE],
        "y_train": read_idx(folder / "train-labels-idx1-ubyte.gz")[::TRAIN_STRIDE],
        "x_test": read_idx(folder / "t10k-images-idx3-ubyte.gz")[::TEST_STRIDE],
        "y_test": read_idx(folder / "t10k-labels-idx1-ubyte.gz")[::TEST_STRIDE],
    }
    # np.savez_compressed would use deflate (a fifth larger) and store the time of day.
    with zipfile.ZipFile(output, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in selected.items():
            contents = io.BytesIO()
            np.save(contents, array)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), contents.getvalue(), zipfile.ZIP_LZMA)


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else FILE)
