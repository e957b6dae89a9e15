"""Data sets by name: the one that ships, the cost of imports, and errors."""

import re
import subprocess
import sys

import numpy as np
import pytest

from experiments.data import NAMES, load, mnist_small
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
    "name", ["", "mnits", "mnist:", "npz", "npz:", "tfds:", "MNIST", "torch:mnist", "mnist:x"]
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
