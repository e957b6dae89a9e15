"""Choice and drawing of the examples with the lowest and highest scores."""

import numpy as np
import pytest
from PIL import Image

from experiments.data import Rows
from experiments.show.extremes import choose, name_of, show_extremes
from experiments.show.saved_results import KINDS, is_shown
from jaxvae.evaluation import Scores


def scores_of(log_likelihood, reconstruction):
    """Scores of some examples, whose ELBO is minus their log-likelihood."""
    elbo = -np.asarray(log_likelihood)
    none = dict.fromkeys(
        ("kl", "kl_per_latent", "posterior_mean", "sigma_squared", "log_likelihood_error")
    )
    return Scores(elbo, np.asarray(reconstruction), log_likelihood=log_likelihood, **none)


def rows_of(count, labels=None, files=None):
    return Rows(np.zeros((count, 8, 8, 1)), labels, 100 + np.arange(count), files, None, "")


def shown(tmp_path, shape, count=30, **origin):
    """Entries of examples whose value is their number, with reconstructions one higher."""
    values = np.arange(count, dtype=np.float32)
    scores = scores_of(values - 50, -np.abs(values - 7))
    examples = np.broadcast_to(values.reshape(-1, *[1] * len(shape)), (count, *shape))
    names = ("zero", "one")
    return show_extremes(
        rows_of(count, **origin), scores, lambda i: examples[i], lambda i: examples[i] + 1, names,
        tmp_path,
    )  # fmt: skip


def test_the_most_extreme_come_first_and_nan_is_lowest():
    chosen = choose(scores_of(np.array([3.0, np.nan, 1.0, -np.inf]), [0.0, 5.0, 2.0, np.nan]), 3)
    assert chosen["least_likely"].tolist() == [1, 3, 2]
    assert chosen["worst_reconstructions"].tolist() == [3, 0, 2]
    assert chosen["best_reconstructions"].tolist() == [1, 2, 0]


def test_images_are_drawn_with_index_and_score(tmp_path):
    files = np.array([f"a/{i}.png" for i in range(30)])
    entries = shown(tmp_path, (8, 8, 1), labels=np.arange(30) % 3, files=files)
    assert entries["least_likely"][1] == {
        "index": 101, "score": -49.0, "file": "a/1.png", "label": "one",
    }  # fmt: skip
    assert [entry["index"] for entry in entries["best_reconstructions"]][:3] == [107, 108, 106]
    assert entries["worst_reconstructions"][0]["label"] == "2"  # the third label has no name
    sizes = {}
    for kind in KINDS:
        with Image.open(tmp_path / f"{kind}.png") as picture:
            sizes[kind] = picture.size
    assert sizes["worst_reconstructions"] == sizes["best_reconstructions"]
    assert sizes["worst_reconstructions"][0] == sizes["least_likely"][0]
    assert sizes["worst_reconstructions"][1] == sizes["least_likely"][1] + 2 * 66
    assert is_shown({"split": "test", "extremes": entries})


@pytest.mark.parametrize(("shape", "columns"), [((3,), 3), ((40,), 40), ((5, 4, 2), 40)])
def test_other_examples_give_their_values_and_no_picture(tmp_path, shape, columns):
    entries = shown(tmp_path, shape)
    assert list(tmp_path.iterdir()) == []
    assert [len(entries[kind]) for kind in KINDS] == [10, 5, 5]
    first = entries["least_likely"][0]
    assert first == {"index": 100, "score": -50.0, "columns": columns, "x": [0.0] * len(first["x"])}
    assert len(first["x"]) == min(12, columns)
    best = entries["best_reconstructions"][0]
    assert best["x"][0] == 7
    assert best["reconstruction"][0] == 8
    assert is_shown({"split": "test", "extremes": entries})


def test_there_may_be_fewer_examples_than_are_shown(tmp_path):
    assert [len(entries) for entries in shown(tmp_path, (8, 8, 3), count=2).values()] == [2, 2, 2]


def test_a_label_without_a_name_is_its_number():
    assert [name_of(label, ("a", "b")) for label in (-1, 0, 1, 2)] == ["-1", "a", "b", "2"]
    assert name_of(1, None) == "1"
