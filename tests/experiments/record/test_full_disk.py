"""Runs on a full disk: nothing is lost, and writing resumes when there is space."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.record.metrics import MetricsFile, read_metrics
from experiments.run.saving import Saving
from experiments.torture.accidents import no_file_above
from experiments.train import train
from jaxvae.checkpoints import Checkpoints, SaveFailed, load
from jaxvae.training.state import TrainState
from tests.files import ROOT

# Tasks that orbax leaves behind after a failed save are garbage collected later.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
LARGE = {"w": np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)}


def test_rows_that_do_not_fit_are_written_later_in_order(tmp_path):
    file, path = MetricsFile(tmp_path / "m.jsonl", -1), tmp_path / "m.jsonl"
    failed = 0
    with no_file_above(200):
        for step in range(1, 10):
            try:
                file.write(step, "train", {"elbo": -1.0}, {})
            except OSError:
                failed += 1
    assert failed > 3
    assert path.stat().st_size == 200
    file.write(10, "train", {"elbo": -2.0}, {})
    file.close()
    assert [row["step"] for row in read_metrics(path)] == list(range(1, 11))


def test_a_failed_save_keeps_the_previous_checkpoint_and_the_next_is_complete(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"params": LARGE}, {}, -1.0)
    checkpoints.wait()
    with no_file_above(100_000):
        checkpoints.save(2, {"params": LARGE}, {}, -0.5)
        with pytest.raises(SaveFailed, match=f"could not be saved in {tmp_path}: File too large"):
            checkpoints.wait()
        assert (checkpoints.latest_step(), checkpoints.best_step()) == (1, 1)
        checkpoints.save(3, {"params": LARGE}, {}, -0.5)
        problem = checkpoints.save(4, {"params": {"w": np.zeros(3)}}, {}, -2.0)
        assert isinstance(problem, SaveFailed)
    checkpoints.save(5, {"params": LARGE}, {}, -3.0)
    checkpoints.wait()
    assert (checkpoints.latest_step(), checkpoints.best_step()) == (5, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "4", "5"}
    np.testing.assert_array_equal(checkpoints.restore(5, {"params": LARGE})["params"]["w"],
                                  LARGE["w"])  # fmt: skip
    checkpoints.close()


@pytest.mark.slow
def test_a_run_on_a_full_disk_continues_and_ends_like_any_other(whole_run, small, tmp_path, capsys):
    """Space is back before the end: the run warns once, and no row or checkpoint is missing."""
    run = tmp_path / "run"
    config = dataclasses.replace(small, run=run, quiet=False)
    with no_file_above(3_000):
        code = train(dataclasses.replace(config, num_steps=30))
    assert code == 1
    text = capsys.readouterr().out
    assert text.count("warning: ") == 1
    assert "error: a checkpoint could not be saved in " in text
    assert "The last one is of step 0, not 30" in text
    assert "Make room for larger files (ulimit -f); rerun the same command to resume" in text
    assert train(config) == 0
    rows = [read_metrics(folder / "metrics.jsonl") for folder in (run, whole_run.run)]
    without = [[{k: v for k, v in row.items() if k != "timing"} for row in each] for each in rows]
    assert without[0] == without[1]
    ours, theirs = load(run, "latest")[1], load(whole_run.run, "latest")[1]
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


LEAVING_A_TASK = """
import asyncio, gc, sys
from dataclasses import dataclass
from experiments.flags import command

@dataclass
class Nothing:
    pass

def save(flags):
    async def write():
        raise ValueError("of one array")
    async def all_arrays():
        asyncio.create_task(write())
        await asyncio.sleep(0)
    asyncio.run(all_arrays())
    gc.collect()
    return 1

sys.argv = ["save"]
command.main(Nothing, save)
"""


def test_tasks_that_orbax_leaves_behind_after_a_failed_save_are_not_shown():
    """orbax awaits the first array that fails, and leaves the others behind."""
    ended = subprocess.run(
        [sys.executable, "-c", LEAVING_A_TASK],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.slow
def test_results_that_do_not_fit_are_written_when_the_command_is_rerun(small, tmp_path, capsys):
    config = dataclasses.replace(small, run=tmp_path / "run", num_steps=10)
    with no_file_above(60_000):  # enough for the checkpoint of so small a net, not for a report
        assert train(config) == 1
    assert "the trained model is saved, its results are not" in capsys.readouterr().err
    assert train(config) == 0
    results = json.loads((config.run / "results.json").read_text())
    assert results["steps"] == 10
    assert (config.run / "report.html").exists()


def test_two_failures_at_the_end_of_a_run_give_one_line():
    """Both the last save, whose result nobody has read yet, and a row fail."""
    said = []

    class Full:
        problem = OSError("no room for a row.")

        def flush(self):
            return False

        def say(self, line):
            said.append(line)

    class Failed:
        failed = True

        def latest_step(self):
            if self.failed:
                raise SaveFailed("not asked about yet")
            return 3

        def wait(self):
            self.failed = False
            raise SaveFailed("no room for a checkpoint.")

    assert not Saving(Failed(), Full()).finish(5)
    (line,) = said
    assert line.startswith("error: no room for a checkpoint. The last one is of step 3, not 5.")


def test_a_checkpoint_is_not_saved_before_its_rows():
    """A run that resumes from a checkpoint does not write the rows before it again."""
    saved, said = [], []

    class Full:
        problem = OSError("no room.")

        def flush(self):
            return False

        def say(self, line):
            said.append(line)

    class Saved:
        def save(self, *arguments):
            saved.append(arguments)

    saving = Saving(Saved(), Full())
    state = TrainState(np.int32(1), {}, (), None, np.float32(0), np.int32(0), np.int32(0))
    assert saving.save(state, {"step": 1}, None)
    assert saving.save(state, {"step": 2}, None)
    assert saved == []
    assert said == ["warning: no room. Training continues and tries again at every evaluation."]
