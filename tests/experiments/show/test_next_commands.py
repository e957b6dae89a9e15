"""Commands that a report proposes."""

import importlib
import shlex
from pathlib import Path

import pytest
import tyro

from experiments.show.next_commands import next_commands

FLAGS = {
    "evaluate": "EvaluateConfig",
    "sample": "SampleConfig",
    "score": "ScoreConfig",
    "encode": "EncodeConfig",
    "replay": "ReplayConfig",
    "train": "TrainConfig",
}
RUN = Path("runs/a run's")
ROWS = [
    {"step": 20, "split": "train"},
    {"step": 7, "split": "skipped"},
    {"step": 9, "split": "skipped"},
    {"step": 60, "split": "validation"},
]


def commands(config=None, results=None, rows=ROWS):
    """Name of each command -> its parsed flags."""
    results = {"steps": 60} if results is None else results
    found = {}
    for _, command in next_commands(RUN, config or {}, results, rows):
        python, m, module, *arguments = shlex.split(command)
        assert (python, m) == ("python", "-m")
        name = module.removeprefix("experiments.")
        flags = getattr(importlib.import_module(module), FLAGS[name])
        found[name] = tyro.cli(flags, args=arguments, config=(tyro.conf.OmitArgPrefixes,))
        assert found[name].run == RUN
    return found


def test_all_commands_are_accepted_and_name_the_run():
    found = commands()
    assert list(found) == ["evaluate", "sample", "score", "encode", "train", "replay"]
    assert found["train"].num_steps == 120
    assert found["train"].decay_steps is None
    assert found["replay"].step == 7


def test_a_falling_schedule_gets_a_new_end():
    assert commands({"schedule": "cosine"})["train"].decay_steps == 120


def test_a_run_of_an_own_model_names_it():
    assert {flags.model for flags in commands({"model": "my.models:make"}).values()} == {
        "my.models:make"
    }
    assert commands({"model": "conv"})["evaluate"].model is None


@pytest.mark.parametrize("rows", [ROWS, []])
def test_without_results_the_run_continues(rows):
    found = commands(results={}, rows=rows)
    assert found["train"].num_steps == 5000  # the default: those of the run are not in the command
    assert list(found) == ["train", "replay"][: 2 if rows else 1]


def test_without_skipped_steps_nothing_is_replayed():
    assert "replay" not in commands(rows=ROWS[:1])
