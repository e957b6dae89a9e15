"""Checks that new rows suit a model: the values its conversion takes, and the training range."""

from typing import Any, NamedTuple

import numpy as np

EXAMPLES_AT_ONCE = 4096
FAR = 10
"""Values further outside the training range than this multiple of its width are rejected."""


class Support(NamedTuple):
    """Values that a conversion is defined for.

    Attributes:
        low, high: smallest and largest value.
        whole: True if values must be whole numbers.
    """

    low: float
    high: float
    whole: bool


REALS = Support(-np.inf, np.inf, False)


class Trained(NamedTuple):
    """Training data as stored: their type and range.

    Attributes:
        dtype: name of the stored type, such as "uint8".
        low, high: smallest and largest value.
    """

    dtype: str
    low: float
    high: float

    def far(self, low: float, high: float) -> bool:
        """Return True if values from `low` to `high` are far outside the training range."""
        width = self.high - self.low or max(abs(self.high), 1.0)
        return low < self.low - FAR * width or high > self.high + FAR * width


def check_rows(rows: np.ndarray, support: Support, trained: Trained) -> None:
    """Check that rows are on the scale of the training data.

    Args:
        rows: [N, *data_shape] as stored, of any numeric type.
        support: values that the model's conversion is defined for.
        trained: training data.

    Raises:
        ValueError: a value is not finite, outside the support, or far outside the training range;
            or 8-bit data are given on the scale from 0 to 1. The message gives both ranges.

    >>> check_rows(np.array([[0.5]]), Support(0, 255, True), Trained("uint8", 0, 255))
    Traceback (most recent call last):
    ValueError: the rows must be on the scale of the training data, uint8 from 0 to 255; ...
    """
    if not rows.size:
        return
    low, high = float(rows.min()), float(rows.max())
    seen = f"{trained.dtype} from {trained.low:.6g} to {trained.high:.6g}"
    given = f"{rows.dtype} from {low:.6g} to {high:.6g}"
    if not np.isfinite([low, high]).all():
        remedy = "Repair or drop the rows that are not finite."
    elif low < support.low or high > support.high or trained.far(low, high):
        remedy = "Rescale them."
    elif support.whole and not are_whole(rows):
        remedy = "Give whole numbers, as they were stored."
    elif trained.high > 1 and support.high == 255 and rows.dtype.kind in "bf" and 0 < high <= 1:
        remedy = "Multiply them by 255, or convert them to an integer type if they are right."
    else:
        return
    raise ValueError(
        f"the rows must be on the scale of the training data, {seen}; they are {given}. {remedy}"
    )


def require_support(rows: np.ndarray, support: Support, name: str) -> None:
    """Check that rows of a data set are in the support.

    Raises:
        ValueError: a value is outside the support, or must be a whole number and is not.
    """
    low, high = (float(rows.min()), float(rows.max())) if rows.size else (0.0, 0.0)
    if not (low >= support.low and high <= support.high):
        raise ValueError(
            f"the run's model needs values from {support.low:g} to {support.high:,g}; {name} has "
            f"values from {low:.6g} to {high:.6g}. Rescale them."
        )
    if support.whole and not are_whole(rows):
        raise ValueError(
            f"the run's model needs whole numbers; {name} has fractions. Give its values as the "
            "training data have them."
        )


def are_whole(values: np.ndarray) -> bool:
    """Return True if all values [N, ...] are whole numbers."""
    return values.dtype.kind in "biu" or all(
        (chunk == np.round(chunk)).all()
        for chunk in (
            values[start : start + EXAMPLES_AT_ONCE]
            for start in range(0, len(values), EXAMPLES_AT_ONCE)
        )
    )


def support_from_json(values: Any) -> Support:
    """Read a support from the JSON list [low, high, whole], in which null stands for infinity.

    Raises:
        ValueError: the values do not describe a support.
    """
    match values:
        case [low, high, bool(whole)]:
            low = -np.inf if low is None else low
            high = np.inf if high is None else high
            if all(type(limit) in (int, float) for limit in (low, high)):
                return Support(float(low), float(high), whole)
    raise ValueError(f"a support must be [low, high, whole], got {str(values)[:60]}.")
