"""Labels as int32 codes, with the names of the classes if the labels are text or booleans."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.data.integers import as_int32

KINDS = {"b": "booleans", "i": "numbers", "u": "numbers", "f": "numbers", "U": "text", "S": "text"}
"""Kind of a numpy type -> kind of labels, in words."""


class GivenLabels(NamedTuple):
    """Labels as a file has them.

    Attributes:
        values: The array of labels.
        length: Number of examples that it must have a label for.
        what: Name of the labels in messages.
    """

    values: np.ndarray
    length: int
    what: str


class Labels(NamedTuple):
    """Labels of the parts of a data set.

    Attributes:
        codes: Part -> [N] int32.
        names: Name of each code; None if the labels are numbers.
    """

    codes: dict[str, np.ndarray]
    names: tuple[str, ...] | None


def as_labels(given: Mapping[str, GivenLabels]) -> Labels:
    """Convert the labels of all parts: text and booleans get codes that all parts share.

    Raises:
        ValueError: Labels are not [N] or [N, 1], not of these kinds, not whole numbers, do not fit
            32 bits, or are of another kind in each part.
    """
    values = {part: _column(labels) for part, labels in given.items()}
    kinds = {part: KINDS[array.dtype.kind] for part, array in values.items()}
    if len(set(kinds.values())) > 1:
        seen = ", ".join(f"{kind} ({part})" for part, kind in kinds.items())
        raise ValueError(
            f"{next(iter(given.values())).what} must be of one kind in all parts; they are {seen}. "
            "Convert them."
        )
    if "text" in kinds.values():
        return from_text({part: _text(array) for part, array in values.items()})
    codes = {part: _whole(values[part], labels.what) for part, labels in given.items()}
    return Labels(codes, ("False", "True") if "booleans" in kinds.values() else None)


def from_text(values: Mapping[str, np.ndarray]) -> Labels:
    """Number the sorted texts of all parts.

    >>> from_text({"train": np.array(["b", "a"]), "test": np.array(["c"])})
    Labels(codes={'train': array([1, 0], dtype=int32), 'test': array([2], dtype=int32)}, \
names=('a', 'b', 'c'))
    """
    names = np.unique(np.concatenate(list(values.values())))
    codes = {part: np.searchsorted(names, array).astype(np.int32) for part, array in values.items()}
    return Labels(codes, tuple(names.tolist()))


def _column(labels: GivenLabels) -> np.ndarray:
    values, count = labels.values, labels.length
    if values.shape not in ((count,), (count, 1)) or values.dtype.kind not in KINDS:
        raise ValueError(
            f"{labels.what} must be whole numbers, booleans or text [{count}], one for each "
            f"example; they are {values.dtype} {list(values.shape)}. Convert them, or give them "
            "a name that is not one of labels."
        )
    return values.reshape(count)


def _text(values: np.ndarray) -> np.ndarray:
    return np.strings.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values


def _whole(values: np.ndarray, what: str) -> np.ndarray:
    """Convert numbers or booleans to int32."""
    if values.dtype.kind == "b":
        return values.astype(np.int32)
    if values.dtype.kind == "f":
        whole = np.isfinite(values) & (values == np.floor(values))
        if not whole.all():
            raise ValueError(
                f"{what} must be whole numbers; label {whole.argmin()} is {values[whole.argmin()]}."
                " Convert them, or give them a name that is not one of labels."
            )
    return as_int32(values, what)
