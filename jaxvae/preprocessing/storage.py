"""Conversion of arrays to the three types that are stored: uint8, int32 and float32."""

import numpy as np

from jaxvae.preprocessing.support import EXAMPLES_AT_ONCE


def stored(array: np.ndarray, where: str) -> np.ndarray:
    """Convert an array [N, ...] to the types and ranks that are stored.

    Args:
        array: [N, D], [N, H, W] or [N, H, W, C] of bool, integers or floats.
        where: Name of the array in messages.

    Returns:
        [N, D] or [N, H, W, C] of uint8, int32 or float32.

    Raises:
        ValueError: Another shape or type, or values that do not fit the type or are not finite.
    """
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"{where} must be [N, D], [N, H, W] or [N, H, W, C] with no empty axis; its shape is "
            f"{list(array.shape)}. Reshape it."
        )
    match array.dtype.kind:
        case "b":
            kept = array.view(np.uint8)
        case "i" | "u":
            kept = array if array.dtype == np.uint8 else as_int32(array, where)
        case "f":
            kept = _float32(array, where)
        case _:
            raise ValueError(
                f"{where} must be bool, integers or floats; it has type {array.dtype}. Convert it."
            )
    return kept[..., None] if kept.ndim == 3 else kept


def _float32(array: np.ndarray, where: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        kept = array if array.dtype == np.float32 else array.astype(np.float32, subok=False)
    for start in range(0, len(kept), EXAMPLES_AT_ONCE):
        some = kept[start : start + EXAMPLES_AT_ONCE]
        finite = np.isfinite(some.reshape(len(some), -1)).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"{where} must have finite float32 values; example {start + finite.argmin()} has "
                "NaN, an infinity or a value too large. Repair or drop such examples."
            )
    return kept


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
