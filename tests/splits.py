"""For the tests of data sets: all splits as one array, and rows that can be told apart."""

import numpy as np

from experiments.data import Dataset


def whole(dataset: Dataset) -> np.ndarray:
    """All examples: train, validation, test."""
    return np.concatenate([dataset.train, dataset.validation, dataset.test])


def numbered(count: int) -> np.ndarray:
    """[N, 2] float32, each row with its own number."""
    return np.arange(2 * count, dtype=np.float32).reshape(count, 2)
