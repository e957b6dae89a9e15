"""Choice of the number of samples of the final estimate."""

import dataclasses
import json
import time

import numpy as np
import pytest

from experiments.flags.config import TrainConfig
from experiments.run import final_samples
from experiments.run.final_samples import choose_num_samples
from experiments.train import train


def scorer_of(seconds_per_sample):
    """Scorer that takes this time per sample and batch, and longer at its first call."""
    calls = []

    def scorer(examples, num_samples):
        time.sleep(0.3 if not calls else seconds_per_sample * num_samples)
        calls.append((len(examples), num_samples))

    return scorer, calls


@pytest.mark.parametrize(
    ("training_seconds", "chosen"), [(0.0, 10), (9.0, 10), (19.0, 20), (45.0, 50), (90.0, 100)]
)
def test_the_estimate_takes_no_longer_than_training(monkeypatch, training_seconds, chosen):
    """Three batches of 500 and one of 300 at 0.2 s a sample take 0.8 s for each sample."""
    monkeypatch.setattr(final_samples, "SHORT_SECONDS", 1.0)
    monkeypatch.setattr(final_samples.time, "perf_counter", iter([0.0, 2.0]).__next__)
    lines, calls = [], []
    scorer = lambda examples, num_samples: calls.append((len(examples), num_samples))
    splits = [np.zeros(300), np.zeros(1500)]
    assert choose_num_samples(scorer, splits, 500, training_seconds, lines.append) == chosen
    assert calls == [(500, 10), (500, 10)]
    if chosen == 100:
        assert lines == []
    else:
        (line,) = lines
        assert line.startswith(f"{chosen} samples per example: 100 would take about 1 min 20 s")


def test_compiling_does_not_count_and_short_estimates_have_a_hundred_samples(monkeypatch):
    scorer, calls = scorer_of(0.0)
    assert choose_num_samples(scorer, [np.zeros(7)], 500, 0.0, print) == 100
    assert calls == [(7, 10), (7, 10)]
    scorer, calls = scorer_of(0.01)
    monkeypatch.setattr(final_samples, "SHORT_SECONDS", 0.5)
    assert choose_num_samples(scorer, [np.zeros(7)], 500, 0.0, print) in (20, 10)


def test_nothing_to_measure_takes_nothing():
    assert choose_num_samples(None, [], 500, 0.0, print) == 100


def results_of(config):
    return json.loads((config.run / "results.json").read_text())


@pytest.mark.long
def test_results_name_the_number_and_a_second_measurement_takes_it_again(
    small, tmp_path, monkeypatch
):
    config = dataclasses.replace(small, run=tmp_path / "run", num_steps=20, eval_samples=None)
    monkeypatch.setattr("experiments.run.finish.choose_num_samples", lambda *_: 20)
    assert train(config) == 0
    first = results_of(config)
    assert first["eval_samples"] == first["test"]["log_likelihood"]["num_samples"] == 20

    def fail(*_):
        raise AssertionError("the number is known")

    monkeypatch.setattr("experiments.run.finish.choose_num_samples", fail)
    assert train(config) == 0  # measures nothing
    results = results_of(config)
    results["data"]["test"]["digest"] = "0"
    (config.run / "results.json").write_text(json.dumps(results))
    assert train(config) == 0
    again = results_of(config)
    assert again["test"] == first["test"]
    assert again["validation"] == first["validation"]
    explicit = dataclasses.replace(config, eval_samples=20)
    assert train(explicit) == 0
    assert results_of(explicit) == again  # not measured again either
    assert train(dataclasses.replace(config, eval_samples=7)) == 0
    assert results_of(config)["test"]["log_likelihood"]["num_samples"] == 7
    monkeypatch.setattr("experiments.run.finish.choose_num_samples", lambda *_: 50)
    assert train(dataclasses.replace(config, num_steps=25)) == 0
    assert results_of(config)["eval_samples"] == 50


@pytest.mark.long
def test_the_automatic_number_gives_the_results_of_the_explicit_one(small, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.run.finish.choose_num_samples", lambda *_: 10)
    found = []
    for number in (None, 10):
        run = tmp_path / str(number)
        config = dataclasses.replace(small, run=run, num_steps=20, eval_samples=number)
        assert train(config) == 0
        found.append(results_of(config)["test"]["log_likelihood"]["value"])
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_the_number_is_open_by_default():
    assert TrainConfig().eval_samples is None
    with pytest.raises(ValueError, match="--eval-samples must be at least 1, got 0"):
        TrainConfig(eval_samples=0).check()
