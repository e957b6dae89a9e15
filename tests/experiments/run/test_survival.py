"""Continuing a run: after damage, on other devices, and with one process at a time."""

import contextlib
import dataclasses
import shutil

import jax
import numpy as np
import pytest

from experiments.flags.command import UserError
from experiments.record.metrics import read_metrics
from experiments.run.lock import RunLock
from experiments.run.loop import training
from experiments.torture import victim
from experiments.train import train
from jaxvae.checkpoints import Checkpoints, load


def _advance(config, num_steps, num_devices=1):
    config = dataclasses.replace(config, num_steps=num_steps, num_devices=num_devices)
    with training(config, jax.devices()[:num_devices]) as loop:
        assert loop.train() == 0


def _rows(run, split="train"):
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["split"] == split]
    return [{name: value for name, value in row.items() if name != "timing"} for row in rows]


def _same_parameters(one, other):
    jax.tree.map(np.testing.assert_array_equal, load(one, "latest")[1], load(other, "latest")[1])


@pytest.fixture
def copied(whole_run, tmp_path):
    """Flags of a copy of the finished run, with checkpoints 25, 50 and 60."""
    shutil.copytree(whole_run.run, tmp_path / "run")
    return dataclasses.replace(whole_run, run=tmp_path / "run")


def test_a_damaged_newest_checkpoint_costs_steps_and_nothing_else(whole_run, copied, capsys):
    config = dataclasses.replace(copied, quiet=False)
    files = [path for path in (config.run / "checkpoints" / "60").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    capsys.readouterr()
    _advance(config, 60)
    text = capsys.readouterr().out
    assert "Checkpoint 60 is damaged: " in text
    assert "Continuing from step 50." in text
    assert (config.run / "checkpoints-damaged" / "60").is_dir()
    assert _rows(config.run) == _rows(whole_run.run)
    _same_parameters(config.run, whole_run.run)


def test_a_run_with_only_damaged_checkpoints_is_not_changed(copied):
    config = copied
    for path in (config.run / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size > 100:
            path.write_bytes(b"")
    before = {path: path.stat().st_mtime_ns for path in config.run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        train(config)
    after = {path: path.stat().st_mtime_ns for path in config.run.rglob("*") if path.is_file()}
    before.pop(config.run / ".lock")
    after.pop(config.run / ".lock")
    assert after == before


def test_a_damaged_best_checkpoint_is_named_before_the_report(copied):
    config = copied
    (config.run / "results.json").unlink()  # as if the run had not been measured yet
    with contextlib.closing(Checkpoints(config.run / "checkpoints", read_only=True)) as saved:
        best = saved.best_step()
    for path in (config.run / "checkpoints" / str(best) / "average").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(UserError, match=rf"checkpoint {best} is damaged: .* Move the folder"):
        train(config)


def test_a_second_training_in_the_folder_is_rejected(small, tmp_path):
    config = dataclasses.replace(small, run=tmp_path / "run", num_steps=5)
    with training(config, jax.devices()[:1]):
        before = {path: path.stat().st_mtime_ns for path in config.run.rglob("*")}
        with pytest.raises(UserError, match="is in use by process"):
            train(config)
        assert {path: path.stat().st_mtime_ns for path in config.run.rglob("*")} == before
    RunLock(config.run).close()  # the folder is free again


EVERYWHERE = ((10, 8), (20, 2), (30, 1), (40, 4))


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "moves"),
    [
        ((), ((20, 2), (40, 1))),
        pytest.param((), EVERYWHERE, marks=pytest.mark.long),
        pytest.param(("--model=conv", "--hidden", "4"), EVERYWHERE, marks=pytest.mark.long),
    ],
    ids=["mlp", "mlp everywhere", "conv everywhere"],
)
def test_deterministic_reduction_does_not_depend_on_devices(
    model, moves, data, tmp_path, monkeypatch
):
    """Started on some devices and continued on others, a run equals that of one device."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # as a user compiles it
    flags = (f"--dataset={data}", "--deterministic-reduction", "--batch-size=24", "--eval-every=5",
             "--log-every=5", *model)  # fmt: skip
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    victim.train(whole, *flags, "--num-steps=40")
    for num_steps, num_devices in moves:
        victim.train(moved, *flags, f"--num-steps={num_steps}", f"--num-devices={num_devices}")
    assert victim.difference(victim.fingerprint(moved), victim.fingerprint(whole)) == ""
    assert _rows(whole, "validation")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deterministic_reduction": True, "batch_size": 20}, "--batch-size must be a multiple of "
         "--virtual-shards=8, got 20"),
        ({"virtual_shards": 4}, "--virtual-shards has no effect without --deterministic-reduction"),
        ({"deterministic_reduction": True, "regularizer": "mmd", "batch_size": 24},
         "--regularizer=mmd needs the whole batch"),
        ({"deterministic_reduction": True, "batch_size": 24, "num_devices": 3},
         "virtual_shards must be a multiple of the number of devices \\(3\\)"),
    ],
)  # fmt: skip
def test_flags_that_exclude_a_deterministic_reduction_are_rejected(
    changes, message, small, tmp_path
):
    config = dataclasses.replace(small, run=tmp_path / "run", **changes)
    with pytest.raises(UserError, match=message):
        train(config)
    assert not config.run.exists()
