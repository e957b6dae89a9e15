"""Conversion to int32, the stored type of counts and labels."""

import numpy as np


def as_int32(array: np.ndarray, where: str) -> np.ndarray:
    """Convert whole numbers to int32.

    Args:
        array: Whole numbers of any type.
        where: Name of the array in messages.

    Raises:
        ValueError: A number does not fit 32 bits.
    """
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    limits = np.iinfo(np.int32)
    if low < limits.min or high > limits.max:
        raise ValueError(
            f"{where} must have integers that fit 32 bits; it has values from {low} to {high}. "
            "Rescale them or store floats."
        )
    # Without subok, converted memory-mapped arrays would still say that they are np.memmap.
    return array if array.dtype == np.int32 else array.astype(np.int32, subok=False)
