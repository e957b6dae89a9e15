"""Splitting of data sets into train, validation and test; no other module does it."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.data import Dataset, Rows

SPLITS = ("train", "validation", "test")
PERMUTATION_SEED = 0


class Examples(NamedTuple):
    """Some examples of a source.

    Attributes:
        values: [N, *data_shape].
        labels: [N] int32, or None.
        files: [N] str, relative paths of their files, or None.
        indices: [N] int64, positions in the part of the source; None means 0 to N - 1.
        label_names: Name of the class of each label; None if the labels are numbers.
    """

    values: np.ndarray
    labels: np.ndarray | None
    files: np.ndarray | None = None
    indices: np.ndarray | None = None
    label_names: tuple[str, ...] | None = None

    def at(self, rows: slice | np.ndarray) -> "Examples":
        labels, files, indices = (
            None if array is None else array[rows]
            for array in (self.labels, self.files, self.indices)
        )
        return Examples(self.values[rows], labels, files, indices, self.label_names)

    def numbered(self) -> "Examples":
        if self.indices is not None:
            return self
        return self._replace(indices=np.arange(len(self.values)))


class Source(NamedTuple):
    """A data set as read from its source, before it is split.

    Attributes:
        name: Name as given to `experiments.data.load`.
        parts: Parts named train, test and perhaps validation; or one part of any name.
        what: Kind of the examples, in words, for `about`.
        origin: Source of the examples and their licence, for `about`.
        default_validation: Size of the validation split if the source has none and no size is
            requested; None means a tenth.
        whole: Examples of all parts in their order, if the source has them as one array.
        order: Order in which a single part is split; None means `random_order`. A part whose
            `indices` are given is in that order already.
    """

    name: str
    parts: Mapping[str, Examples]
    what: str
    origin: str
    default_validation: int | None = None
    whole: np.ndarray | None = None
    order: np.ndarray | None = None


def random_order(count: int) -> np.ndarray:
    """Fixed permutation by which a single part of this many examples is split."""
    return np.random.default_rng(PERMUTATION_SEED).permutation(count)


def select_rows(source: Source, split: str | None) -> Rows:
    """Return all rows of a source in their order, or those of one of its parts.

    Args:
        source: The source, whose parts are in the order train, validation, test.
        split: Name of a part; None: all parts.

    Raises:
        ValueError: There is no such part, or the parts differ in shape or type.
    """
    parts, whole = source.parts, source.whole
    if split is not None:
        whole = None
        if split not in parts:
            raise ValueError(
                f"{source.name} has no part {split}; it has {', '.join(parts)}. Leave out --split "
                "to take all rows, or name a part that it has."
            )
        parts = {split: parts[split]}
    _require_alike(source.name, parts)
    pieces = list(parts.values())
    counts = [len(piece.values) for piece in pieces]
    unlabelled = [part for part, piece in parts.items() if piece.labels is None]
    dropped = f"; labels left out, as {', '.join(unlabelled)} has none"
    some_labels = 0 < len(unlabelled) < len(parts)
    in_parts = " + ".join(f"{count:,} {part}" for part, count in zip(parts, counts, strict=True))
    total = f"{sum(counts):,} row{'s' * (sum(counts) != 1)}"
    labels = _joined_if_all([piece.labels for piece in pieces])
    return Rows(
        examples=_joined([piece.values for piece in pieces]) if whole is None else whole,
        labels=labels,
        indices=np.concatenate([np.arange(count) for count in counts]),
        files=_joined_if_all([piece.files for piece in pieces]),
        parts=np.repeat(list(parts), counts) if len(parts) > 1 else None,
        about=f"{source.what}, {total}{f' ({in_parts})' * (len(parts) > 1)}; {source.origin}"
        + (dropped if some_labels else ""),
        label_names=None if labels is None else pieces[0].label_names,
    )


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    """Concatenate the arrays; a single one is not copied, so it may be larger than memory."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _joined_if_all(arrays: list[np.ndarray | None]) -> np.ndarray | None:
    present = [array for array in arrays if array is not None]
    return _joined(present) if len(present) == len(arrays) else None


def assemble(source: Source, num_validation: int | None) -> Dataset:
    """Assemble a data set from the parts of its source.

    A single part is permuted, always in the same way, and its last tenth becomes the test split.
    The validation split is the source's own if num_validation is None, else the last
    num_validation training examples.

    Args:
        source: The source.
        num_validation: As for `experiments.data.load`.

    Raises:
        ValueError: The parts cannot be split, or differ in shape or type.
    """
    name, default_validation = source.name, source.default_validation
    _require_alike(name, source.parts)
    parts = {part: examples.numbered() for part, examples in source.parts.items()}
    if len(parts) == 1:
        default_validation = len(next(iter(parts.values())).values) // 10
        parts = _at_random(source)
    if not {"train", "test"} <= parts.keys():
        raise ValueError(
            f"{name} must have both train and test, or one part to be split 80/10/10; it has "
            f"{', '.join(parts) or 'none'}. Add what is missing."
        )
    cut = dict(parts)
    if num_validation is not None or "validation" not in parts:
        default = len(parts["train"].values) // 10
        default = default if default_validation is None else default_validation
        count = default if num_validation is None else num_validation
        cut["train"], cut["validation"] = _last(name, parts["train"], count)
    train, validation, test = (cut[split] for split in SPLITS)
    counts = f"{len(train.values):,} + {len(validation.values):,} + {len(test.values):,} examples"
    labels, indices, files = (
        {split: array for split in SPLITS if (array := getattr(cut[split], field)) is not None}
        for field in ("labels", "indices", "files")
    )
    return Dataset(
        name,
        train.values,
        validation.values,
        test.values,
        f"{source.what}, {counts} (train, validation, test) {list(train.values.shape[1:])}; "
        f"{source.origin}",
        labels,
        indices,
        files,
        next((part.label_names for part in cut.values() if part.label_names), None),
    )


def _at_random(source: Source) -> dict[str, Examples]:
    (whole,) = source.parts.values()
    count = len(whole.values)
    if count < 2:
        raise ValueError(
            f"{source.name} must have at least two examples, one to train on and one to test on; "
            f"it has {count}. Give more."
        )
    if whole.indices is None:
        whole = whole.numbered().at(random_order(count) if source.order is None else source.order)
    # Slices, so that data on disk stay there.
    train = count - max(1, count // 10)
    return {"train": whole.at(slice(train)), "test": whole.at(slice(train, None))}


def _last(name: str, train: Examples, count: int) -> tuple[Examples, Examples]:
    total = len(train.values)
    if not 0 <= count < total:
        raise ValueError(
            f"num_validation must be from 0 to {total - 1}, so that {name} keeps a training "
            f"example; got {count}. Change --num-validation."
        )
    return train.at(slice(total - count)), train.at(slice(total - count, None))


def _require_alike(name: str, parts: Mapping[str, Examples]) -> None:
    kinds = {key: (part.values.shape[1:], part.values.dtype) for key, part in parts.items()}
    if len(set(kinds.values())) > 1:
        seen = ", ".join(f"{key} {list(shape)} {dtype}" for key, (shape, dtype) in kinds.items())
        raise ValueError(
            f"The splits of {name} must have examples of the same shape and type; they have {seen}."
            " Convert them."
        )
