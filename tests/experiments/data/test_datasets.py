"""Data sets by name: the one that ships, the cost of imports, and errors."""

import hashlib
import re
import subprocess
import sys

import numpy as np
import pytest

from experiments.data import NAMES, load, mnist_small, shapes
from experiments.data.shapes import CLASSES
from tests.files import ROOT


def test_mnist_small_is_small_and_labelled() -> None:
    dataset = load("mnist_small")
    assert dataset.train.shape == (9_000, 28, 28, 1)
    assert dataset.validation.shape == (1_000, 28, 28, 1)
    assert dataset.test.shape == (2_000, 28, 28, 1)
    assert dataset.train.dtype == np.uint8
    assert {split: len(labels) for split, labels in dataset.labels.items()} == {
        "train": 9_000,
        "validation": 1_000,
        "test": 2_000,
    }
    assert "CC BY-SA 3.0" in dataset.about
    assert mnist_small.FILE.stat().st_size < 2_000_000


@pytest.mark.parametrize("side", [32, pytest.param(64, marks=pytest.mark.slow)])
def test_shapes_are_the_same_images_everywhere(side: int) -> None:
    dataset = load(f"shapes:{side}")
    assert dataset.train.shape == (9_000, side, side, 3)
    assert (dataset.validation.shape[0], dataset.test.shape[0]) == (1_000, 2_000)
    assert dataset.label_names == CLASSES
    digests = {32: "c981eabd09c4f577", 64: "2996d90588b3ba42"}
    assert hashlib.sha256(dataset.train.tobytes()).hexdigest()[:16] == digests[side]


def test_shapes_have_noise_of_known_entropy() -> None:
    """7 values with masses 1, 2, 3, 4, 3, 2, 1 of 16: 2.66 bits, within 4 standard errors."""
    noise = shapes._noise(np.random.PCG64(0), 160_000)
    assert len(np.unique(noise)) == 7
    mass = np.array([1, 2, 3, 4, 3, 2, 1]) / 16
    share = np.bincount(noise + 3, minlength=7) / len(noise)
    assert (np.abs(share - mass) <= 4 * np.sqrt(mass * (1 - mass) / len(noise))).all()
    assert round(-float(mass @ np.log2(mass)), 2) == 2.66


def test_shapes_are_where_their_labels_say() -> None:
    """Of each kind a corner of the square about it, and its centre, in or out."""
    place = np.arange(8, 1024, 16, dtype=np.int32)
    labels = np.arange(5)
    inside = shapes._inside(np.random.PCG64(3), labels, place[None, :], place[:, None])
    for label, covered in zip(labels, inside, strict=True):
        rows, columns = np.nonzero(covered)
        top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
        assert abs((bottom - top) - (right - left)) <= 1
        centre = covered[(top + bottom) // 2, (left + right) // 2]
        corners = covered[top, left], covered[bottom, left]
        assert centre == (label != 4)
        assert corners == {1: (True, True), 3: (False, True)}.get(int(label), (False, False))


def test_shapes_have_two_sizes() -> None:
    with pytest.raises(ValueError, match=r"side must be 32 or 64, got '28'\. Use one"):
        load("shapes:28")


def test_importing_datasets_imports_nothing_heavy() -> None:
    heavy = "{'tensorflow_datasets', 'PIL', 'jax', 'orbax', 'tensorflow'}"
    code = (
        "import sys, experiments.data as d; d.load('mnist_small'); "
        f"print({heavy} & set(sys.modules))"
    )
    seen = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert seen.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "name",
    ["", "mnits", "mnist:", "npz", "npz:", "tfds:", "MNIST", "shapes", "torch:mnist", "mnist:x"],
)
def test_unknown_name_error_lists_the_known_names(name: str) -> None:
    listed = re.escape(", ".join(NAMES))
    with pytest.raises(ValueError, match=f"{listed}; got {name!r}. Use one"):
        load(name, manual_dir="somewhere")


def test_manual_dir_is_rejected_for_other_data_sets() -> None:
    with pytest.raises(ValueError, match=r"manual_dir is for mnist.*'mnist_small'. Leave out"):
        load("mnist_small", manual_dir="somewhere")


@pytest.mark.parametrize("count", [-1, 10_000, 10_001])
def test_num_validation_out_of_range_is_rejected(count: int) -> None:
    with pytest.raises(ValueError, match=f"must be from 0 to 9999.*got {count}. Change"):
        load("mnist_small", num_validation=count)
