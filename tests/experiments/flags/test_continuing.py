"""Continuing a run: flags from its folder, and schedules that have ended."""

import dataclasses
import json
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.flags import command, saved_flags
from experiments.flags.command import UserError
from experiments.flags.config import TrainConfig
from experiments.flags.continuing import ended_schedule, flags_of_run
from experiments.run.loop import training
from experiments.run.optimization import make_optimizer, make_schedules
from experiments.train import train
from jaxvae.checkpoints import load


@pytest.fixture(scope="module")
def cosine(small, tmp_path_factory):
    """Run of 6 steps whose learning rate has fallen to 0."""
    run = tmp_path_factory.mktemp("cosine") / "run"
    config = dataclasses.replace(small, run=run, num_steps=6, eval_every=3, schedule="cosine")
    with training(config, jax.devices()[:1]) as loop:  # without final numbers and pictures
        assert loop.train() == 0
    return config


@pytest.fixture
def copied(cosine, tmp_path):
    shutil.copytree(cosine.run, tmp_path / "run")
    return dataclasses.replace(cosine, run=tmp_path / "run")


def _weights(run):
    return load(run, "latest")[1]


def _saved(run):
    return json.loads((run / "config.json").read_text())


def _main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train", "--num-devices=1", *arguments])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with pytest.raises(SystemExit) as end:
        command.main(TrainConfig, train, flags_of_run)
    return end.value.code


def _rates(config, num_updates):
    """Learning rates of plain SGD, read off its updates for a gradient of 1."""
    optimizer = make_optimizer(dataclasses.replace(config, optimizer="sgd"), config.num_steps)

    def one(state, _):
        update, state = optimizer.update(jnp.ones(()), state)
        return state, -update

    return np.asarray(jax.lax.scan(one, optimizer.init(jnp.zeros(())), None, num_updates)[1])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_learning_rate_falls_to_0_at_decay_steps(schedule):
    config = TrainConfig(schedule=schedule, num_steps=40, decay_steps=80, learning_rate=0.1)
    t = np.arange(100)
    formula = {
        "cosine": 0.05 * (1 + np.cos(np.pi * np.minimum(t / 80, 1))),
        "linear": 0.1 * np.maximum(1 - t / 80, 0),
    }[schedule]
    np.testing.assert_allclose(_rates(config, 100), formula, atol=1e-7)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_schedule_start_restarts_warmup_and_decay(schedule, accumulate):
    first = TrainConfig(
        schedule=schedule,
        num_steps=40,
        decay_steps=40,
        warmup_steps=8,
        learning_rate=0.1,
        accumulate_steps=accumulate,
    )
    anew = dataclasses.replace(first, decay_steps=80, schedule_start=40)
    at_first, later = _rates(first, 40), _rates(anew, 80)
    assert at_first.max() > 0
    np.testing.assert_allclose(later[40:], at_first, atol=1e-7)


def test_schedule_start_of_none_and_0_give_the_same_schedule():
    config = TrainConfig(schedule="cosine", num_steps=30, warmup_steps=5)
    np.testing.assert_array_equal(
        _rates(config, 30), _rates(dataclasses.replace(config, schedule_start=0), 30)
    )


def test_no_other_schedule_ends_at_0():
    config = TrainConfig(
        beta=4.0, beta_warmup_steps=5, beta_schedule="cyclical", capacity=3.0, capacity_steps=5
    )
    schedules = make_schedules(config)
    assert schedules.keys() == {"beta", "capacity"}
    assert float(schedules["beta"](10_000)) == 4
    assert float(schedules["capacity"](10_000)) == 3


@pytest.mark.parametrize(
    ("flags", "step", "num_steps", "warned"),
    [
        ({"schedule": "cosine", "decay_steps": 40}, 40, 80, "from step 40 on.*steps 41 to 80 "),
        ({"schedule": "linear", "decay_steps": 40}, 60, 80, "from step 40 on.*steps 61 to 80 "),
        ({"schedule": "cosine", "decay_steps": 40}, 0, 80, "--decay-steps=80 moves its end"),
        ({"schedule": "cosine", "decay_steps": 40}, 40, 40, None),
        ({"schedule": "cosine", "decay_steps": 80}, 40, 80, None),
        ({"schedule": "cosine", "decay_steps": 100}, 40, 80, None),
        ({"schedule": "constant", "decay_steps": 40}, 40, 80, None),
        ({"schedule": "constant", "warmup_steps": 40}, 40, 80, None),
    ],
)
def test_a_warning_names_the_steps_that_have_no_learning_rate(flags, step, num_steps, warned):
    line = ended_schedule(TrainConfig(**flags), step, num_steps)
    if warned is None:
        assert line is None
    else:
        assert line.startswith("warning: the learning rate is 0")
        assert re.search(warned, line)


@pytest.mark.long
def test_more_steps_after_cosine_give_a_warning(copied, capsys):
    before = _weights(copied.run)
    assert train(dataclasses.replace(copied, num_steps=9)) == 0
    said = capsys.readouterr().err
    assert "warning: the learning rate is 0 from step 6 on" in said
    assert "--schedule-start=6 --decay-steps=9 restarts it at step 6" in said
    params = _weights(copied.run)
    assert jax.tree.structure(params) == jax.tree.structure(before)
    assert _saved(copied.run)["decay_steps"] == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    "anew",
    [
        pytest.param({}, id="decay", marks=pytest.mark.long),
        pytest.param({"schedule_start": 6}, id="restart"),
    ],
)
def test_a_planned_continuation_trains_and_resumes_bit_for_bit(copied, anew, tmp_path, capsys):
    stopped = dataclasses.replace(copied, run=tmp_path / "stopped")
    shutil.copytree(copied.run, stopped.run)
    longer = {"num_steps": 12, "decay_steps": 12, **anew}
    before = _weights(copied.run)
    assert train(dataclasses.replace(copied, **longer)) == 0
    assert "warning" not in capsys.readouterr().err
    after = _weights(copied.run)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after)
    assert max(jax.tree.leaves(moved)) > 1e-4
    assert train(dataclasses.replace(stopped, **(longer | {"num_steps": 9}))) == 0
    # The schedule is saved with the run: later commands need not repeat its flags.
    assert train(dataclasses.replace(stopped, num_steps=12)) == 0
    jax.tree.map(np.testing.assert_array_equal, _weights(stopped.run), after)


@pytest.mark.slow
def test_the_same_command_after_the_end_changes_no_weight(copied, capsys):
    before = _weights(copied.run)
    assert train(copied) == 0
    assert "warning" not in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, _weights(copied.run), before)


@pytest.mark.slow
def test_schedule_start_is_at_most_the_current_step_and_before_decay_steps(copied, tmp_path):
    line = "--schedule-start must be at most 6, where the run is, got 7"
    with pytest.raises(UserError, match=line):
        train(dataclasses.replace(copied, num_steps=12, decay_steps=12, schedule_start=7))
    with pytest.raises(UserError, match=r"--decay-steps must be above --schedule-start=6.*got 6"):
        train(dataclasses.replace(copied, num_steps=12, decay_steps=6, schedule_start=6))


@pytest.mark.slow
def test_run_alone_continues_with_the_flags_of_the_run(copied, monkeypatch):
    before, flags = _weights(copied.run), _saved(copied.run)
    assert _main(monkeypatch, f"--run={copied.run}", "--num-steps=9", "--decay-steps=9") == 0
    kept = _saved(copied.run)
    for name, value in flags.items():
        if name not in ("run", "num_steps", "decay_steps", "quiet", "num_devices"):
            assert kept[name] == value, name
    assert kept["num_steps"] == 9
    after = _weights(copied.run)
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)
    )


@pytest.mark.slow
def test_a_given_flag_that_differs_is_rejected_even_at_its_default(copied, monkeypatch, capsys):
    assert _main(monkeypatch, f"--run={copied.run}", "--latent-dim=32", "--quiet") == 2
    assert "--latent-dim is 32 now and 2 there" in capsys.readouterr().err


def _run_with(folder, **flags):
    run = folder / "run"
    run.mkdir()
    values = saved_flags.to_json(dataclasses.replace(TrainConfig(), run=run, **flags))
    (run / "config.json").write_text(json.dumps(values))
    return run


def test_flags_of_the_machine_are_not_taken_from_the_run(tmp_path):
    run = _run_with(
        tmp_path, accelerator="cpu", num_devices=4, compilation_cache="/elsewhere",
        tensorboard=True, quiet=True, latent_dim=7, dataset="npy:x.npy",
    )  # fmt: skip
    flags = flags_of_run([f"--run={run}"])
    assert flags == dataclasses.replace(TrainConfig(), run=run, latent_dim=7, dataset="npy:x.npy")


@pytest.mark.parametrize(
    "arguments", [["--run", "{}"], ["--run={}"], ["--quiet", "--run", "elsewhere", "--run={}"]]
)
def test_run_flag_is_found_in_every_spelling(arguments, tmp_path):
    run = _run_with(tmp_path, latent_dim=7)
    assert flags_of_run([part.format(run) for part in arguments]).latent_dim == 7


@pytest.mark.parametrize("arguments", [[], ["--run"], ["--run=nowhere"], ["--latent-dim=3"]])
def test_a_new_run_gets_the_default_flags(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert flags_of_run(arguments) is None


def test_help_reads_no_folder(tmp_path):
    (tmp_path / "config.json").write_text("not json")
    assert flags_of_run([f"--run={tmp_path}", "--help"]) is None
    with pytest.raises(ValueError, match=r"config.json must be a JSON object"):
        flags_of_run([f"--run={tmp_path}"])


def test_num_steps_replaces_the_saved_num_epochs(tmp_path):
    run = _run_with(tmp_path, num_epochs=3.0)
    assert flags_of_run([f"--run={run}"]).num_epochs == 3
    assert flags_of_run([f"--run={run}", "--num-steps=9"]).num_epochs is None


def test_code_that_only_a_folder_names_is_not_imported(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    run = _run_with(tmp_path, model="evil:make", hidden=None)
    assert _main(monkeypatch, f"--run={run}") == 2
    said = capsys.readouterr().err
    assert "Add --model=evil:make." in said
    assert len(said.splitlines()) == 1
    assert "evil" not in sys.modules
    assert flags_of_run([f"--run={run}", "--model=evil:make"]).model == TrainConfig().model
