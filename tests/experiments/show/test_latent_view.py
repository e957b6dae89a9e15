"""Choice of the latents and examples in the picture of the latents."""

from collections import Counter

import numpy as np
import pytest

from experiments.data import Rows
from experiments.show.latent_view import view_latents
from experiments.show.saved_results import is_shown
from jaxvae.evaluation import Scores


def view(means, kl=None, labels=None, names=None):
    none = dict.fromkeys(
        ("elbo", "reconstruction", "log_likelihood", "kl", "sigma_squared", "log_likelihood_error")
    )
    scores = Scores(posterior_mean=means, kl_per_latent=kl, **none)
    rows = Rows(means, labels, np.arange(len(means)), None, None, "")
    return view_latents(rows, scores, names)


def means(count=50, latents=4):
    """Means whose latent 2 varies most, and latent 1 second."""
    spread = np.array([0.1, 2.0, 3.0, 1.0])[:latents]
    return np.random.default_rng(0).normal(size=(count, latents)) * spread


def test_latents_rank_by_kl_or_else_by_the_variance_of_their_mean():
    found = view(means(), kl=np.tile([5.0, 1.0, np.nan, 9.0], (50, 1)))
    assert (found.latents, found.ranked_by) == ([3, 0], "KL")
    found = view(means())
    assert (found.latents, found.ranked_by) == ([2, 1], "variance of the mean")
    np.testing.assert_array_equal(found.points, means()[:, [2, 1]])
    assert is_shown({"split": "test", "extremes": {}, "latents": found.about()})


def test_one_latent_has_one_axis_and_one_hot_latents_none():
    assert view(means(latents=1)).points.shape == (50, 1)
    assert view(np.ones((50, 3, 10))) is None


@pytest.mark.parametrize("count", [1, 1999, 2001, 5000])
def test_at_most_two_thousand_evenly_spaced_examples_are_shown(count):
    points = view(np.arange(count, dtype=float)[:, None], labels=np.arange(count) // 300).points
    assert len(points) == min(count, 2000)
    assert points[0] == 0
    assert points[-1] == count - 1
    assert count == 1 or np.diff(points[:, 0]).max() <= np.ceil(count / 2000)


def test_classes_are_names_and_the_rarest_share_one():
    labels = np.repeat(np.arange(25), np.arange(25, 0, -1))
    found = view(np.zeros((len(labels), 2)), labels=labels, names=("cat", "dog")).classes
    counts = Counter(found)
    assert len(counts) == 20
    assert counts["cat"] == 25
    assert counts["others"] == sum(range(1, 7))
    assert view(np.zeros((50, 2)), labels=None).classes is None
