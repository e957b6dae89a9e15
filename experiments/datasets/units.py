"""Location and unit of each column of a training split."""

from typing import NamedTuple

import numpy as np

ENTRIES_AT_ONCE = 2**21
"""Numbers that are held in float64 at once: 16 MB."""
SMALLEST, LARGEST = 1e-15, 1e15
"""Units between which float32 holds squares of data and of a sigma of a thousandth of them."""
RESOLVED = 2.0**-21
"""Least unit of a column over its location: two to four steps of float32."""


class ColumnUnits(NamedTuple):
    """Mean and standard deviation of each entry of the last axis, as lists of float32 values.

    Attributes:
        loc, unit: [C].
        about: What is unusual of some columns, in words, or "".
    """

    loc: list[float]
    unit: list[float]
    about: str


def units_of(train: np.ndarray, name: str) -> ColumnUnits:
    """The units of a training split [N, ..., C], read in pieces, as it may lie on disk.

    A column that is constant has no unit of its own; it gets the median of the others', so that
    all units scale with the data. A column that varies by less than float32 resolves at its
    location gets the least unit that it does resolve there.

    Args:
        train: of any real type.
        name: of the data set, for messages.

    Raises:
        ValueError: A column whose unit is beyond what float32 computes with.
    """
    mean, deviation = _moments(train)
    varies = deviation > 0
    unit = np.where(varies, np.maximum(deviation, RESOLVED * np.abs(mean)), 0)
    coarse = int((varies & (unit > deviation)).sum())
    unit[~varies] = np.median(unit[varies]) if varies.any() else 1.0
    for column in np.flatnonzero((unit < SMALLEST) | (unit > LARGEST)):
        raise ValueError(
            f"column {column} of {name} has a standard deviation of {unit[column]:.3g}; float32 "
            f"needs one between {SMALLEST:g} and {LARGEST:g}. Give the data in another unit."
        )
    constant = int((~varies).sum())
    said = [(constant, "constant"), (coarse, "with a spread that float32 does not resolve")]
    about = " and ".join(f"{count:,} {what}" for count, what in said if count)
    return ColumnUnits(_float32(mean), _float32(unit), about)


def _moments(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [C] in float64, in one pass.

    Numbers are taken from those of the first example. Its distance to the mean is at most
    sqrt(N - 1) standard deviations, as it is one of them, so that the difference of the sums
    loses at most a factor N of float64's precision; and a constant column gives exactly 0.
    """
    size = train.shape[-1]
    first = train[0].reshape(-1, size)[0].astype(np.float64)
    total, squares = np.zeros(size), np.zeros(size)
    at_once = max(1, ENTRIES_AT_ONCE // train[0].size)
    for start in range(0, len(train), at_once):
        rows = train[start : start + at_once].reshape(-1, size).astype(np.float64) - first
        total += rows.sum(0)
        squares += np.square(rows).sum(0)
    count = train.size // size
    shift = total / count
    variance = np.maximum(squares / count - np.square(shift), 0)
    return first + shift, np.sqrt(variance)


def _float32(values: np.ndarray) -> list[float]:
    return values.astype(np.float32).tolist()
