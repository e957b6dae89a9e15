"""Which examples train, validate and test: the one place that cuts a data set."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.datasets import Dataset

SPLITS = ("train", "validation", "test")
PERMUTATION_SEED = 0


class Examples(NamedTuple):
    """Some examples [N, *data_shape] and, where there are any, their labels [N]."""

    values: np.ndarray
    labels: np.ndarray | None

    def at(self, rows: slice | np.ndarray) -> "Examples":
        return Examples(self.values[rows], None if self.labels is None else self.labels[rows])


def assemble(
    name: str,
    parts: Mapping[str, Examples],
    *,
    what: str,
    source: str,
    num_validation: int | None,
    default_validation: int | None = None,
) -> Dataset:
    """A data set out of the parts that its source has.

    A single part is permuted, always in the same way, and its last tenth is the test split. The
    validation split is the source's own if num_validation is None, else the last num_validation
    training examples.

    Args:
        name: The name of the data set.
        parts: Named train, test and perhaps validation; or one part of any name.
        what: What the examples are, in words, for `about`.
        source: Where they are from and their licence, for `about`.
        num_validation: As for `experiments.datasets.load`.
        default_validation: What None means where the source has no validation split; None is a
            tenth.
    """
    _require_alike(name, parts)
    if len(parts) == 1:
        (whole,) = parts.values()
        parts = _at_random(name, whole)
        default_validation = len(whole.values) // 10
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
    return Dataset(
        name,
        train.values,
        validation.values,
        test.values,
        f"{what}, {counts} (train, validation, test) {list(train.values.shape[1:])}; {source}",
        {split: labels for split in SPLITS if (labels := cut[split].labels) is not None},
    )


def _at_random(name: str, whole: Examples) -> dict[str, Examples]:
    count = len(whole.values)
    if count < 2:
        raise ValueError(
            f"{name} must have at least two examples, one to train on and one to test on; it has "
            f"{count}. Give more."
        )
    order = np.random.default_rng(PERMUTATION_SEED).permutation(count)
    num_test = max(1, count // 10)
    return {"train": whole.at(order[:-num_test]), "test": whole.at(order[-num_test:])}


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
            f"The splits of {name} must have one shape and type an example; they have {seen}. "
            "Convert them to one."
        )
