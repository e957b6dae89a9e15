"""Runs of p(x|y): trained, continued, evaluated, encoded, sampled, scored and replayed."""

import csv
import dataclasses
import json
import re
import sys

import jax
import numpy as np
import pytest

from experiments.data import Dataset, Rows
from experiments.data.conditions import categories_of, with_condition
from experiments.encode import EncodeConfig, encode
from experiments.evaluate import EvaluateConfig, evaluate
from experiments.flags.command import UserError
from experiments.replay import ReplayConfig, replay
from experiments.sample import SampleConfig, sample
from experiments.score import ScoreConfig, score
from experiments.train import train
from jaxvae import Condition
from jaxvae.checkpoints import load, load_trained
from jaxvae.checkpoints.categories import read_categories
from tests.conftest import SMALL

NAMES = np.array(["one", "two", "three", "four"])


def images(labels):
    """8 x 8 images whose bright row is 2 * label."""
    found = np.zeros((len(labels), 8, 8), np.uint8)
    found[np.arange(len(labels)), 2 * labels] = 250
    return found


def labels(count):
    return np.random.default_rng(0).integers(0, 4, count)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    path = tmp_path_factory.mktemp("labelled") / "bars.npz"
    np.savez(path, x=images(labels(330)), y=NAMES[labels(330)])
    return dataclasses.replace(
        SMALL,
        dataset=f"npz:{path}",
        condition="label",
        prior="conditional",
        drop_condition=0.1,
        num_steps=100,
    )


@pytest.fixture(scope="module")
def trained(labelled, tmp_path_factory):
    """Flags of a finished conditional run."""
    config = dataclasses.replace(labelled, run=tmp_path_factory.mktemp("conditional") / "run")
    assert train(config) == 0
    return config


def test_categories_are_the_labels_of_the_training_split():
    rows = np.zeros((3, 2), np.float32)
    data = lambda given, names=None: Dataset("d", rows, rows, rows, "", given, label_names=names)
    assert categories_of(data({"train": np.array([7, 3, -1])})) == ["3", "7"]  # -1: not known
    assert categories_of(data({"train": np.array([1, 0, 1])}, ("a", "b"))) == ["a", "b"]
    with pytest.raises(ValueError, match="needs labels, and the training split of d has none"):
        categories_of(data({}))
    with pytest.raises(ValueError, match=r"2 to 10,000 kinds, and the training split of d has 1"):
        categories_of(data({"train": np.zeros(3, int)}))


def test_labels_become_the_codes_of_their_names_and_unknown_ones_are_listed():
    given = lambda codes, names: Rows(
        np.zeros((2, 2)), np.array(codes), np.arange(2), None, None, "", names
    )
    found = with_condition(given([0, 1], ("b", "a")), ["a", "b", "c"], "d")
    assert found.y.tolist() == [1, 0]
    assert found.y.dtype == np.int32
    unknown = with_condition(given([5, -1], None), ["5", "7"], "d")
    assert unknown.y.tolist() == [0, -1]
    message = r"every label of d must be one of a, b; it has x\. Correct"
    with pytest.raises(ValueError, match=message):
        with_condition(given([0, 1], ("x", "a")), ["a", "b"], "d")
    with pytest.raises(ValueError, match=r"conditioned on labels, and d has none\. Add them: a"):
        with_condition(given([0, 1], None)._replace(labels=None), ["a", "b"], "d")


@pytest.mark.parametrize(
    "names", ["ab", ["a"], ["a", "a"], [1, 2], {"a": 1, "b": 2}, ["a", "b", "c"], ["a", 300 * "b"]]
)
def test_categories_that_training_does_not_write_are_rejected(names):
    with pytest.raises(ValueError, match="must be a list of different names, one for each label"):
        read_categories({"categories": names}, Condition.of(2))
    assert read_categories({"categories": ["a", "b"]}, Condition.of(2)) == ["a", "b"]


def test_a_label_that_only_the_test_split_has_is_an_error_before_training(labelled, tmp_path):
    given = {"x_train": images(labels(100)), "y_train": labels(100)}
    np.savez(tmp_path / "d.npz", x_test=images(labels(9)), y_test=np.full(9, 7), **given)
    config = dataclasses.replace(
        labelled, dataset=f"npz:{tmp_path / 'd.npz'}", run=tmp_path / "run"
    )
    with pytest.raises(
        UserError, match=r"label of the test split of .* one of 0, 1, 2, 3; it has 7"
    ):
        train(config)
    assert not (tmp_path / "run" / "checkpoints").exists()


OWN = """
import jaxvae

def make(data_shape, condition):
    return jaxvae.mlp_vae(data_shape=data_shape, latent_dim=2, hidden=(8,), condition=condition)

def plain(data_shape):
    return jaxvae.mlp_vae(data_shape=data_shape, latent_dim=2, hidden=(8,))

def ignores(data_shape, condition):
    return plain(data_shape)
"""


@pytest.mark.parametrize(
    ("function", "flags", "message"),
    [
        ("plain", {}, "--condition must be left out: .* takes no argument 'condition'"),
        ("ignores", {}, "takes no condition. Give --condition=label exactly"),
        ("make", {"condition": "none"}, "--model=own:make must return .* gave: TypeError"),
    ],
)
def test_your_own_model_takes_the_condition_that_the_flags_give(
    function, flags, message, labelled, tmp_path, monkeypatch
):
    config = _own(labelled, tmp_path, monkeypatch, model=f"own:{function}", **flags)
    with pytest.raises(UserError, match=message):
        train(config)


@pytest.mark.slow
def test_your_own_conditional_model_trains(labelled, tmp_path, monkeypatch):
    assert train(_own(labelled, tmp_path, monkeypatch, model="own:make", num_steps=5)) == 0


def _own(labelled, folder, monkeypatch, **flags):
    (folder / "own.py").write_text(OWN)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    defaults = {"hidden": None, "latent_dim": 32, "prior": "standard", "drop_condition": 0.0}
    return dataclasses.replace(labelled, run=folder / "run", **(defaults | flags))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"condition": "none"}, "--drop-condition goes with --condition=label"),
        ({"condition": "none", "drop_condition": 0.0}, "--prior=conditional needs --condition"),
        ({"drop_condition": 1.0}, r"--drop-condition must be in \[0, 1\), got 1"),
        ({"regularizer": "mmd", "regularizer_weight": 1.0}, "--regularizer compares .* one prior"),
    ],
)
def test_flags_that_do_not_go_together_are_rejected(labelled, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(labelled, run=tmp_path / "run", **flags))


def test_data_without_labels_are_rejected(small, tmp_path):
    with pytest.raises(UserError, match=r"the training split of npz:\S+ has none"):
        train(dataclasses.replace(small, run=tmp_path / "run", condition="label"))


def params_of(run):
    return jax.tree.leaves(load(run, "latest")[1])


@pytest.mark.slow
def test_a_stopped_run_and_one_on_four_devices_end_alike(trained, tmp_path):
    flags = {"run": tmp_path / "stopped", "num_steps": 40}
    assert train(dataclasses.replace(trained, **flags)) == 0
    assert train(dataclasses.replace(trained, run=tmp_path / "stopped")) == 0
    for one, other in zip(params_of(trained.run), params_of(tmp_path / "stopped"), strict=True):
        np.testing.assert_array_equal(one, other)
    assert train(dataclasses.replace(trained, run=tmp_path / "four", num_devices=4)) == 0
    for one, other in zip(params_of(trained.run), params_of(tmp_path / "four"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_right_labels_are_likelier_than_wrong_ones(trained, tmp_path, capsys):
    """The label names the row, so a wrong one costs more than a nat, in each class."""
    y = labels(40)
    means = []
    for shift in (0, 1):
        path = tmp_path / f"rows{shift}.npz"
        np.savez(path, x=images(y), y=NAMES[(y + shift) % 4])
        output = tmp_path / f"out{shift}"
        evaluate(EvaluateConfig(trained.run, dataset=f"npz:{path}", num_samples=20, output=output))
        (numbers,) = [json.loads(path.read_text()) for path in output.glob("*.json")]
        classes = numbers["all"]["classes"]
        assert set(classes) == set(NAMES)
        assert sum(entry["examples"] for entry in classes.values()) == 40
        means.append(numbers["all"]["log_likelihood"]["value"])
    assert means[0] > means[1] + 1
    assert re.search(r"log p\(x\|y\) of .*\n.*(one|two|three|four) +-\d", capsys.readouterr().out)


@pytest.mark.slow
def test_codes_samples_and_scores_are_of_the_labels(trained, tmp_path):
    encode(EncodeConfig(trained.run, output=tmp_path / "codes.npz"))
    with np.load(tmp_path / "codes.npz") as codes:
        assert codes["mean"].shape == (len(codes["labels"]), 2)
    sample(SampleConfig(trained.run, num_samples=40, num_examples=4, output=tmp_path / "samples"))
    with np.load(tmp_path / "samples" / "classes.npz") as drawn:
        assert sorted(drawn["classes"].tolist()) == sorted(np.repeat(NAMES, 10).tolist())
        classes = drawn["classes"]
    with np.load(tmp_path / "samples" / "samples.npz") as drawn:
        rows = drawn["samples"][..., 0].mean(2).argmax(1)
    expected = np.array([2 * NAMES.tolist().index(name) for name in classes])
    assert np.mean(rows == expected) > 0.9
    score(ScoreConfig(trained.run, output=tmp_path / "scores.csv", num_samples=5))
    with (tmp_path / "scores.csv").open() as file:
        assert {row["label"] for row in csv.DictReader(file)} == set(NAMES)


@pytest.mark.slow
def test_a_label_is_given_to_a_loaded_run(trained):
    two = load_trained(trained.run, given="two")
    drawn = two.sample(jax.random.key(0), 20)
    assert np.mean(drawn[..., 0].mean(2).argmax(1) == 2) > 0.9
    message = "for the labels 'four, one, three, two': given=None is none of them"
    with pytest.raises(ValueError, match=message):
        load_trained(trained.run)


@pytest.mark.slow
def test_a_replayed_step_of_a_conditional_run_is_the_runs(trained, capsys):
    replay(ReplayConfig(trained.run, 30))
    assert "bit for bit what the run logged" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_without_labels_takes_none(whole_run):
    with pytest.raises(ValueError, match=r"without labels. Leave out given='two'"):
        load_trained(whole_run.run, given="two")
