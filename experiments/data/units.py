"""Location and unit of each column of a training split."""

from typing import NamedTuple

import numpy as np

ENTRIES_AT_ONCE = 2**21
"""Numbers that are held in float64 at once: 16 MB."""
SMALLEST, LARGEST = 1e-15, 1e15
"""Units between which float32 holds squares of data and of a sigma of a thousandth of them."""
RESOLVED = 2.0**-21
"""Least unit of a column over its location: two to four steps of float32."""
RARE = 50.0
"""Kurtosis above which a column's values are mostly one value and rarely another, as those of a
pixel at the border are (a Gaussian has 3, an exponential 9): a few rows make its deviation."""


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

    A column that is constant has no unit of its own, and one that rarely varies has one that new
    rows may exceed a thousandfold: they get the median of the others', if that is larger. So all
    units scale with the data. A column that varies by less than float32 resolves at its location
    gets the least unit that it does resolve there.

    Args:
        train: of any real type.
        name: of the data set, for messages.

    Raises:
        ValueError: A column whose unit is beyond what float32 computes with.
    """
    mean, deviation, kurtosis = _moments(train)
    constant = deviation == 0
    rare = ~constant & (kurtosis > RARE)
    unit = np.where(constant, 0, np.maximum(deviation, RESOLVED * np.abs(mean)))
    coarse = unit > deviation
    common = unit[~constant & ~rare] if (~constant & ~rare).any() else unit[rare]
    typical = np.median(common) if len(common) else 1.0
    unit = np.where(constant | rare, np.maximum(unit, typical), unit)
    for column in np.flatnonzero((unit < SMALLEST) | (unit > LARGEST)):
        raise ValueError(
            f"column {column} of {name} has a standard deviation of {unit[column]:.3g}; float32 "
            f"needs one between {SMALLEST:g} and {LARGEST:g}. Give the data in another unit."
        )
    said = [
        (constant, "constant"),
        (rare, "that rarely vary"),
        (coarse, "with a spread that float32 does not resolve"),
    ]
    about = ", ".join(f"{found.sum():,} {what}" for found, what in said if found.any())
    return ColumnUnits(_float32(mean), _float32(unit), about)


def _moments(train: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and kurtosis [C] in float64, in one pass; kurtosis 0 of constants.

        E (x - m)^4 = s_4 - 4 d s_3 + 6 d^2 s_2 - 3 d^4,    s_k = E (x - a)^k,    d = m - a

    a is the first example: its distance to the mean is at most sqrt(N - 1) standard deviations,
    as it is one of them, so that the differences lose at most a factor N (N^2 for the kurtosis) of
    float64's precision; and a constant column gives exactly 0.
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
