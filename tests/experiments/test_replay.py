"""Replay: a recomputed step equals the step of the run, and injected faults are named."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments.run.dispatch
from experiments.flags.command import UserError
from experiments.record.metrics import read_metrics
from experiments.replay import ReplayConfig, replay
from experiments.run.loop import training
from experiments.train import train
from jaxvae.testing import first_not_finite
from jaxvae.training.batches import Batches


def _files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 55])
def test_a_replayed_step_equals_the_run_bit_for_bit(whole_run, step, capsys):
    """Replays start at step 0 or at a checkpoint, here the best one, and do not change the run."""
    before = _files(whole_run.run)
    replay(ReplayConfig(whole_run.run, step))
    text = capsys.readouterr().out
    assert "bit for bit what the run logged" in text
    assert "all examples' terms and gradients are finite" in text
    assert _files(whole_run.run) == before


def test_a_different_number_is_reported(whole_run, tmp_path, capsys):
    """The comparison above can fail."""
    copy = tmp_path / "copy"
    shutil.copytree(whole_run.run, copy)
    rows = read_metrics(copy / "metrics.jsonl")
    changed = [row | {"kl": row["kl"] + 1e-5} if row["step"] == 30 else row for row in rows]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    replay(ReplayConfig(copy, 30))
    text = capsys.readouterr().out
    assert "not what the run logged" in text
    assert re.search(r"packages differ: kl was [^;]*$", text, re.MULTILINE)  # and nothing else


def _skipped(run):
    return [row for row in read_metrics(run / "metrics.jsonl") if row["split"] == "skipped"]


class WithNaN(Batches):
    """Batches with a NaN pixel, as if the check of the data had missed it."""

    def __init__(self, examples, *rest):
        examples = examples.copy()
        examples[17, 3, 4] = np.nan
        super().__init__(examples, *rest)


@pytest.mark.slow
def test_a_pixel_that_is_not_finite_is_named(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiments.run.dispatch, "Batches", WithNaN)
    values = np.random.default_rng(0).uniform(size=(330, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "grey.npz", images=values)
    options = {"likelihood": "gaussian", "num_steps": 12, "dataset": f"npz:{tmp_path}/grey.npz"}
    config = dataclasses.replace(small, run=tmp_path / "run", **options)
    with training(config, jax.devices()[:1]) as loop:
        assert loop.train() == 0
    (event,) = _skipped(config.run)
    assert 17 in event["examples"]
    assert len(event["key"]) == 2
    replay(ReplayConfig(config.run, event["step"]))
    text = capsys.readouterr().out
    row = event["examples"].index(17)
    assert f"example 17 of the training split (row {row} of the batch) has nan at [3, 4" in text


@pytest.mark.slow
def test_an_update_that_explodes_is_found_in_the_parameters(small, tmp_path, capsys):
    config = dataclasses.replace(
        small, run=tmp_path / "run", learning_rate=1e38, max_skipped=3, optimizer="sgd"
    )
    assert train(config) == 1
    first = _skipped(config.run)[0]["step"]
    replay(ReplayConfig(config.run, first))
    text = capsys.readouterr().out
    assert "not finite" in text
    assert "coder/params/Dense" in text


@pytest.mark.slow
def test_a_scale_too_small_is_found_in_the_likelihood(small, tmp_path, capsys):
    options = {"likelihood": "gaussian", "sigma": 1e-25, "max_skipped": 3}
    config = dataclasses.replace(small, run=tmp_path / "run", **options)
    assert train(config) == 1
    replay(ReplayConfig(config.run, 1))
    text = capsys.readouterr().out
    assert "reconstruction -inf" in text
    assert "gave inf from" in text


@pytest.mark.parametrize(
    ("run", "step", "message"),
    [(Path("nowhere"), 3, "no run at nowhere"), (None, 0, "--step must be at least 1, got 0"),
     (None, 61, "--step must be one that the run has come to .60., got 61")],
)  # fmt: skip
def test_steps_and_runs_that_cannot_be_replayed_are_rejected(whole_run, run, step, message):
    with pytest.raises(UserError, match=message):
        replay(ReplayConfig(run or whole_run.run, step))


@pytest.mark.slow
def test_a_step_after_the_last_one_that_was_logged_can_be_replayed(small, tmp_path, capsys):
    config = dataclasses.replace(small, run=tmp_path / "run", num_steps=5, log_every=4)
    assert train(config) == 0
    replay(ReplayConfig(config.run, 5))
    assert "step 5, recomputed from step 0" in capsys.readouterr().out


def _log(x):
    return jnp.log(x)


@pytest.mark.parametrize(
    ("function", "argument", "expected"),
    [
        (lambda x: jnp.sum(_log(x) * 2), [1.0, 0.0], ["log gave inf from [0, 1]"]),
        (lambda x: jax.jit(_log)(x), -1.0, ["log gave nan from [-1, -1]"]),
        (lambda x: jax.lax.cond(x > 0, jnp.sqrt, _log, x), -1.0, ["log gave nan from [-1, -1]"]),
        (jax.grad(jnp.sqrt), 0.0, ["div gave inf"]),
        (lambda x: jnp.where(x > 0, _log(x), 0.0), -1.0, []),
        (lambda x: jax.nn.softplus(x), 1000.0, []),
    ],
)
def test_the_first_operation_that_is_not_finite_is_found(function, argument, expected):
    found = [str(one) for one in first_not_finite(function, jnp.asarray(argument))]
    assert len(found) == len(expected)
    for text, part in zip(found, expected, strict=True):
        assert part in text
