"""Helpers for tests of data sets: all splits as one array, and distinguishable rows."""

import numpy as np

from experiments.data import Dataset


def whole(dataset: Dataset) -> np.ndarray:
    """Concatenate all examples: train, validation, test."""
    return np.concatenate([dataset.train, dataset.validation, dataset.test])


def numbered(count: int) -> np.ndarray:
    """Make distinct rows: [N, 2] float32."""
    return np.arange(2 * count, dtype=np.float32).reshape(count, 2)
