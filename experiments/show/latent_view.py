"""The two most active latents of a model, for a picture of where its examples lie."""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from experiments.data import Rows
from experiments.show.extremes import name_of
from jaxvae.evaluation import Scores
from jaxvae.preprocessing.statistics import evenly

MOST_EXAMPLES = 2000
"""Most examples in the picture; of more, evenly spaced ones are taken."""
MOST_CLASSES = 20
"""Most labels with a colour of their own; the others, which are rarer, share one."""


class LatentView(NamedTuple):
    """Posterior means of some examples in the most active latents.

    Attributes:
        points: [N, 2], or [N, 1] for a model of one latent.
        latents: indices of these latents, the most active first; those of a feature map [h, w, c]
            are counted row by row.
        ranked_by: measure of activity, in words.
        classes: name of each example's label, or None; rare labels are named "others".
    """

    points: np.ndarray
    latents: list[int]
    ranked_by: str
    classes: list[str] | None

    def about(self) -> dict[str, Any]:
        """Describe the view for results.json."""
        return {
            "latents": self.latents,
            "ranked_by": self.ranked_by,
            "num_examples": len(self.points),
            "labelled": self.classes is not None,
        }


def view_latents(
    rows: Rows, scores: Scores, label_names: tuple[str, ...] | None
) -> LatentView | None:
    """Choose latents and examples for a picture; None for one-hot latents, which have no axes."""
    means = np.asarray(scores.posterior_mean)
    if means.ndim not in (2, 4):  # a vector or a feature map of latents
        return None
    if scores.kl_per_latent is None:
        activity, ranked_by = means.astype(np.float64).var(axis=0), "variance of the mean"
    else:
        activity, ranked_by = np.asarray(scores.kl_per_latent).mean(axis=0), "KL"
    latents = np.argsort(-np.nan_to_num(activity.ravel()), kind="stable")[:2]
    shown = evenly(len(means), MOST_EXAMPLES)
    classes = None
    if rows.labels is not None:
        classes = _classes(rows.labels[shown], label_names)
    points = means[shown].reshape(len(shown), -1)[:, latents]
    return LatentView(points, latents.tolist(), ranked_by, classes)


def _classes(labels: np.ndarray, label_names: tuple[str, ...] | None) -> list[str]:
    names = [name_of(int(label), label_names) for label in labels]
    counts = Counter(names)
    if len(counts) <= MOST_CLASSES:
        return names
    common = {name for name, _ in counts.most_common(MOST_CLASSES - 1)}
    return [name if name in common else "others" for name in names]
