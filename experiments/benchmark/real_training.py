"""`experiments.train` itself as a variant: metrics, progress, checkpoints, validation, all on."""

import contextlib
import dataclasses
import shutil
import statistics
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from experiments.benchmark import weights
from experiments.benchmark.setting import Setting, make_setting
from experiments.benchmark.timed import Snapshots, Timed, Work
from experiments.record.metrics import read_metrics
from experiments.run.loop import Loop, training

DEFAULT_EVAL_EVERY = 500
"""The command's own: never more rarely than this is it evaluated and saved here."""
PACE_STEPS = 40
NO_END = 10**9
"""Steps of a run that is told anew each time where to stop."""
PERIOD_SECONDS = 10.0
"""Longest evaluation period."""


class ContinuedRun:
    """A training run in a folder, continued by a number of evaluation periods at a time.

    Every period ends as it does in the command, with an evaluation on the validation split and a
    checkpoint; the last one's writing is waited for. Where 500 steps would last more than ten
    seconds, the period is shorter, so that the run pays more for both than the command does.
    """

    def __init__(self, setting: Setting, folder: Path) -> None:
        self._setting = setting
        self.folder = folder
        self.about: dict[str, Any] = {}
        self.eval_every = self._period()
        self._open = contextlib.ExitStack()
        steady = self._new("steady", eval_every=self.eval_every, num_steps=NO_END)
        self._run = self._open.enter_context(steady)
        self._advance_to(self.eval_every)
        self.about["setting"] = f"evaluated and saved every {self.eval_every} steps"

    def close(self) -> None:
        """Close the run's files."""
        self._open.close()

    def advance(self, calls: int) -> None:
        """Train for so many periods."""
        self._advance_to(self._run.step + calls * self.eval_every)

    def train(self, initial: str, snapshots: Snapshots, seed: int) -> None:
        """A run of its own: the raw weights, not their average, after numbers of steps."""
        started_from = weights.named(self._setting.initial_params(seed))
        given = weights.load(initial)
        if any((given[name] != started_from[name]).any() for name in started_from):
            raise ValueError("the command starts from its own seed's weights; give those.")
        with self._new("quality", num_steps=snapshots[-1][0], seed=seed) as loop:
            target, checkpoints = loop.built.state_shapes.params, loop.folder.checkpoints
            for step, path in snapshots:
                loop.train(step)
                checkpoints.wait()
                params = checkpoints.restore(step, {"params": target})["params"]
                weights.save(path, weights.named(params))

    def _new(self, name: str, **flags: Any) -> AbstractContextManager[Loop]:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        config = dataclasses.replace(self._setting.config, run=folder, **flags)
        return training(config, self._setting.devices)

    def _period(self) -> int:
        """Steps between evaluations: the command's 500, or what there is time for."""
        started = time.perf_counter()
        with self._new("pace", num_steps=PACE_STEPS, log_every=1) as loop:
            loop.train()
            set_up = loop.seconds_to_first_step
        self.about["compile_seconds"] = set_up or time.perf_counter() - started
        rows = read_metrics(self.folder / "pace" / "metrics.jsonl")[PACE_STEPS // 2 :]
        rate = statistics.median(row["timing"]["images_per_second"] for row in rows)
        most = PERIOD_SECONDS * rate / self._setting.net.batch_size
        return max(1, min(DEFAULT_EVAL_EVERY, round(most)))

    def _advance_to(self, step: int) -> None:
        self._run.train(step)
        self._run.folder.checkpoints.wait()


def prepare(net: str, segment_seconds: float, folder: str, **where: Any) -> Timed:
    """The command's training as a variant; `where` is that of `make_setting`.

    Args:
        net: a key of `NETS`.
        segment_seconds: of `Timed`.
        folder: for its runs; one of its own.
        where: of `make_setting`.
    """
    setting = make_setting(net, **where)
    run = ContinuedRun(setting, Path(folder))
    work = Work(run.advance, run.eval_every, setting.net.batch_size, run.about, run.train)
    return Timed(work, segment_seconds)
