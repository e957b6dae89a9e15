"""Conditions of a run: the labels of its data as categories of the model."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.data import Dataset, Rows
from jaxvae.models.condition import Conditioned

ABOUT = "categories"
"""Key of the categories' names in what a checkpoint stores."""
MOST_CATEGORIES = 10_000
MOST_NAMED = 20
"""Most categories that a message names."""


def categories_of(data: Dataset) -> list[str]:
    """Names of the categories of --condition=label: the labels of the training split, in order.

    Raises:
        ValueError: the data have no labels, or labels of fewer than two kinds.
    """
    labels = data.labels.get("train")
    if labels is None:
        raise ValueError(
            f"--condition=label needs labels, and {data.name} has none. Add an array y, put the "
            "pictures in a folder for each class, or leave out --condition."
        )
    names = _names(np.unique(labels), data.label_names)
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
    if rows.labels is None:
        raise ValueError(
            f"the run's model is conditioned on labels, and {name} has none. Add them: "
            f"{_listed(categories)}."
        )
    kinds, where = np.unique(rows.labels, return_inverse=True)
    codes = {category: code for code, category in enumerate(categories)}
    names = _names(kinds, rows.label_names)
    unknown = [kind for kind in names if kind not in codes]
    if unknown:
        raise ValueError(
            f"every label of {name} must be one of {_listed(categories)}; it has "
            f"{_listed(unknown)}. Correct them, or leave these rows out."
        )
    of_kinds = np.array([codes[kind] for kind in names], np.int32)
    return Conditioned(rows.examples, of_kinds[where.reshape(-1)])


def read_categories(about: dict[str, Any]) -> list[str] | None:
    """Read the names that a checkpoint stores; None if its model has no condition.

    Raises:
        ValueError: they are not a list of different texts.
    """
    names = about.get(ABOUT)
    if names is None:
        return None
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not texts or not 2 <= len(set(names)) == len(names) <= MOST_CATEGORIES:
        raise ValueError(
            "the checkpoint's categories must be a list of different names. Restore the checkpoint."
        )
    return list(names)


def _names(labels: np.ndarray, label_names: tuple[str, ...] | None) -> list[str]:
    named = label_names is not None
    return [label_names[label] if named else str(label) for label in labels]  # type: ignore[index]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
