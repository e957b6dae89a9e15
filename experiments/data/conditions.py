"""Conditions of a run: the labels of its data as categories of the model."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.data import Dataset, Rows
from jaxvae.checkpoints.categories import LONGEST_NAME, MOST_CATEGORIES
from jaxvae.models.condition import Conditioned

ABSENT = -1
"""Number that stands for an unknown label, in data and for the model."""
MOST_NAMED = 20
"""Most categories that a message names."""


def categories_of(data: Dataset) -> list[str]:
    """Names of the categories of --condition=label: the labels of the training split, in order.

    Raises:
        ValueError: the data have no labels, labels of fewer than two kinds, or long ones.
    """
    labels = data.labels.get("train")
    if labels is None:
        raise ValueError(
            f"--condition=label needs labels, and the training split of {data.name} has none. Add "
            "an array y for every part, put the pictures in a folder for each class, or leave it "
            "out."
        )
    names = _names(_known(labels, data.label_names), data.label_names)
    longest = max(names, key=len, default="")
    if len(longest) > LONGEST_NAME:
        raise ValueError(
            f"a label must have at most {LONGEST_NAME} characters, got {longest[:40]!r}... Shorten "
            "it."
        )
    if not 2 <= len(names) <= MOST_CATEGORIES:
        raise ValueError(
            f"--condition=label needs labels of 2 to {MOST_CATEGORIES:,} kinds, and the training "
            f"split of {data.name} has {len(names):,}. Leave it out, or use other labels."
        )
    return names


def with_condition(rows: Rows, categories: Sequence[str] | None, name: str) -> Any:
    """The examples of some rows as the model takes them: with their labels if it has categories.

    Args:
        rows: the rows.
        categories: names of the model's categories; None: it has no condition.
        name: name of the rows' data, for messages.

    Raises:
        ValueError: a label is missing or is none of the categories, which are listed.
    """
    if categories is None:
        return rows.examples
    if rows.labels is None and len(rows.examples):
        raise ValueError(
            f"the run's model is conditioned on labels, and {name} has none. Add them: "
            f"{_listed(categories)}."
        )
    codes = {category: code for code, category in enumerate(categories)}
    labels = np.zeros(0, np.int32) if rows.labels is None else rows.labels
    kinds = _known(labels, rows.label_names)
    names = _names(kinds, rows.label_names)
    unknown = [kind for kind in names if kind not in codes]
    if unknown:
        raise ValueError(
            f"every label of {name} must be one of {_listed(categories)}; it has "
            f"{_listed(unknown)}. Correct them, or leave these rows out."
        )
    found = np.full(len(labels), ABSENT, np.int32)
    for kind, name_of_kind in zip(kinds, names, strict=True):
        found[labels == kind] = codes[name_of_kind]
    return Conditioned(rows.examples, found)


def _known(labels: np.ndarray, label_names: tuple[str, ...] | None) -> np.ndarray:
    """The different labels; of numbers, -1 is none but stands for an unknown label."""
    kinds = np.unique(labels)
    return kinds if label_names is not None else kinds[kinds != ABSENT]


def _names(labels: np.ndarray, label_names: tuple[str, ...] | None) -> list[str]:
    named = label_names is not None
    return [label_names[label] if named else str(label) for label in labels]  # type: ignore[index]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
