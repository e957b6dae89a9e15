"""Examples that a model finds least likely, or reconstructs worst and best: entries and pictures.

They are chosen by the scores of the final evaluation, so that nothing is computed twice.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data import Rows
from experiments.show import pictures
from experiments.show.saved_results import KINDS
from jaxvae.evaluation import Scores

COUNT = 10
"""Number of examples of each kind."""
MOST_COLUMNS = 12
"""Most values of an example that is no image in an entry."""
COUNT_OF_PAIRS = 5
"""Number of reconstructions that are no images: their table has two rows for each."""


def choose(scores: Scores, count: int = COUNT) -> dict[str, np.ndarray]:
    """Choose the rows of each of `saved_results.KINDS`, the most extreme first.

    Examples rank by the estimate of log p(x), reconstructions by log p(x|z) at one draw of z.
    NaN counts as the lowest score.
    """
    rising, by_reconstruction = _order(scores.log_likelihood), _order(scores.reconstruction)
    chosen = rising, by_reconstruction, by_reconstruction[::-1]
    return {kind: order[:count] for kind, order in zip(KINDS, chosen, strict=True)}


def _order(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return np.argsort(np.where(np.isnan(values), -np.inf, values), kind="stable")


def _five_digits(score: float) -> str:
    """Write a score with trailing zeros, but no trailing point.

    >>> _five_digits(-17292.3), _five_digits(-83.0)
    ('-17,292', '-83.000')
    """
    return f"{score:#,.5g}".removesuffix(".")


def show_extremes(
    rows: Rows,
    scores: Scores,
    prepared: Callable[[np.ndarray], np.ndarray],
    decode: Callable[[np.ndarray], np.ndarray],
    label_names: tuple[str, ...] | None,
    folder: Path,
) -> dict[str, Any]:
    """Write pictures of images, and return entries of each of `saved_results.KINDS` as JSON values.

    Args:
        rows: the rows that were scored.
        scores: their scores.
        prepared: row numbers -> x, as scored.
        decode: row numbers -> means of p(x|z) at the posterior means.
        label_names: names of the labels, if they have any.
        folder: folder for the pictures.
    """
    chosen = choose(scores)
    numbers = np.concatenate(list(chosen.values()))
    xs, means = prepared(numbers), decode(numbers)
    limits = float(xs.min()), float(xs.max())
    entries: dict[str, Any] = {}
    for kind, found in chosen.items():
        x, xs = np.split(xs, [len(found)])
        mean, means = np.split(means, [len(found)])
        alone = kind == "least_likely"
        values = scores.log_likelihood if alone else scores.reconstruction
        of_kind = [_entry(rows, i, values[i], label_names) for i in found]
        drawn = [x] if alone else [x, mean]
        if pictures.is_image(x):
            captions = [f"#{entry['index']}\n{_five_digits(entry['score'])}" for entry in of_kind]
            picture = pictures.captioned(drawn, captions, limits=limits)
            pictures.save_png(folder / f"{kind}.png", picture)
        else:
            of_kind = of_kind if alone else of_kind[:COUNT_OF_PAIRS]
            for i, entry in enumerate(of_kind):
                entry |= _values(x[i], None if alone else mean[i])
        entries[kind] = of_kind
    return entries


def _values(x: np.ndarray, mean: np.ndarray | None) -> dict[str, Any]:
    """First values of an example that is no image, and of its reconstruction."""
    shown = {"x": x} if mean is None else {"x": x, "reconstruction": mean}
    first = {name: array.ravel()[:MOST_COLUMNS].tolist() for name, array in shown.items()}
    return {"columns": int(x.size), **first}


def _entry(
    rows: Rows, row: int, score: float, label_names: tuple[str, ...] | None
) -> dict[str, Any]:
    """Describe a row: where it comes from, its label and its score."""
    entry: dict[str, Any] = {"index": int(rows.indices[row]), "score": float(score)}
    if rows.files is not None:
        entry["file"] = str(rows.files[row])
    if rows.labels is not None:
        entry["label"] = name_of(int(rows.labels[row]), label_names)
    return entry


def name_of(label: int, label_names: tuple[str, ...] | None) -> str:
    """Name of a label: its number if it has no name."""
    if label_names is None or not 0 <= label < len(label_names):
        return str(label)
    return label_names[label]
