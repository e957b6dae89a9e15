"""Location and unit of each column of a training split, for standardized models."""

from typing import NamedTuple

import numpy as np

ENTRIES_AT_ONCE = 2**21
"""Numbers converted to float64 at once: 16 MB."""
SMALLEST, LARGEST = 1e-15, 1e15
"""Range of units for which float32 can represent the squares of the data, and that of a sigma of a
thousandth of the unit."""
RESOLVED = 2.0**-21
"""Smallest ratio of a column's unit to its location: four to eight steps of float32."""
RARE = 50.0
"""Kurtosis above which a column is mostly constant, like a pixel at the border (a Gaussian has 3,
an exponential 9): a few rows then determine its standard deviation."""


class ColumnUnits(NamedTuple):
    """Mean and standard deviation of each entry of the last axis, as lists of float32 values.

    Attributes:
        loc, unit: [C].
        about: Note on unusual columns, in words, or "".
    """

    loc: list[float]
    unit: list[float]
    about: str


def units_of(train: np.ndarray, name: str) -> ColumnUnits:
    """Compute the units of a training split [N, ..., C], in pieces, as it may be on disk.

    The unit is the standard deviation, with two exceptions. Columns that are constant or rarely
    vary get the median unit of the other columns, if that is larger: new rows may exceed their own
    deviation a thousandfold. Columns whose deviation float32 cannot resolve at their location get
    the smallest unit that it resolves there. All units scale with the data.

    Args:
        train: training split, of any real type.
        name: name of the data set, for messages.

    Raises:
        ValueError: The unit of a column is outside the range that float32 can compute with.
    """
    mean, deviation, kurtosis = _moments(train)
    constant = deviation == 0
    rare = ~constant & (kurtosis > RARE)
    unit = np.where(constant, 0, np.maximum(deviation, RESOLVED * np.abs(mean)))
    coarse = unit > deviation
    common = unit[~constant & ~rare] if (~constant & ~rare).any() else unit[rare]
    typical = np.median(common) if len(common) else 1.0
    unit = np.where(constant | rare, np.maximum(unit, typical), unit)
    outside = np.flatnonzero((unit < SMALLEST) | (unit > LARGEST))
    if len(outside):
        column = outside[0]
        raise ValueError(
            f"column {column} of {name} has a standard deviation of {unit[column]:.3g}; float32 "
            f"needs one between {SMALLEST:g} and {LARGEST:g}. Give the data in another unit."
        )
    # Phrases that follow a number of columns.
    notes = [
        (constant, "constant"),
        (rare, "that rarely vary"),
        (coarse, "with a spread that float32 does not resolve"),
    ]
    about = ", ".join(f"{found.sum():,} {what}" for found, what in notes if found.any())
    return ColumnUnits(_float32(mean), _float32(unit), about)


def _moments(train: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and kurtosis (0 if constant) [C], in float64 and in one pass.

        E (x - m)^4 = s_4 - 4 d s_3 + 6 d^2 s_2 - 3 d^4,    s_k = E (x - a)^k,    d = m - a

    a is the first example. As it is one of the N, it is at most sqrt(N - 1) standard deviations
    from the mean, so the differences lose at most a factor N (N^2 for the kurtosis) of float64's
    precision. A constant column gives exactly 0.
    """
    size = train.shape[-1]
    first = train[0].reshape(-1, size)[0].astype(np.float64)
    sums = np.zeros((4, size))
    at_once = max(1, ENTRIES_AT_ONCE // train[0].size)
    for start in range(0, len(train), at_once):
        rows = train[start : start + at_once].reshape(-1, size).astype(np.float64) - first
        sums += [(rows**power).sum(0) for power in (1, 2, 3, 4)]
    s1, s2, s3, s4 = sums / (train.size // size)
    variance = np.maximum(s2 - s1**2, 0)
    fourth = s4 - 4 * s1 * s3 + 6 * s1**2 * s2 - 3 * s1**4
    kurtosis = fourth / np.where(variance > 0, variance, 1) ** 2
    return first + s1, np.sqrt(variance), np.where(variance > 0, kurtosis, 0)


def _float32(values: np.ndarray) -> list[float]:
    return values.astype(np.float32).tolist()
