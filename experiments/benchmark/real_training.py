"""Variant that is `experiments.train` itself, with metrics, checkpoints and validation on."""

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
"""Default of the command, and most steps between evaluations and checkpoints here."""
PACE_STEPS = 40
"""Steps of the run that measures the pace; its second half counts."""
NO_END = 10**9
"""Length of a run that `Loop.train` stops earlier, at the step given to it."""
PERIOD_SECONDS = 10.0
"""Longest evaluation period."""


class ContinuedRun:
    """A training run in a folder, continued by a number of evaluation periods at a time.

    Every period ends as in the command: with an evaluation on the validation split, and with a
    checkpoint. `advance` waits until the last checkpoint is written. If 500 steps would last more
    than ten seconds, the period is shorter, with as many fewer validation examples: so evaluation
    takes the same share of the time as in the command, and checkpoints take more.
    """

    def __init__(self, setting: Setting, folder: Path) -> None:
        self._setting = setting
        self.folder = folder
        self.about: dict[str, Any] = {}
        self.eval_every = self._period()
        self._open = contextlib.ExitStack()
        share = self.eval_every / DEFAULT_EVAL_EVERY
        examples = max(1, round(share * len(setting.dataset.validation)))
        steady = self._new(
            "steady", eval_every=self.eval_every, num_validation=examples, num_steps=NO_END
        )
        self._run = self._open.enter_context(steady)
        self._advance_to(self.eval_every)
        self.about["setting"] = f"evaluated and saved every {self.eval_every} steps"

    def close(self) -> None:
        """Close the run's files."""
        self._open.close()

    def advance(self, calls: int) -> None:
        """Train for `calls` evaluation periods."""
        self._advance_to(self._run.step + calls * self.eval_every)

    def train(self, initial: str, snapshots: Snapshots, seed: int) -> None:
        """Train another run, and write its raw weights, not their average, at each snapshot.

        Raises:
            ValueError: the initial weights are not those of the seed.
        """
        started_from = weights.named(self._setting.initial_params(seed))
        given = weights.load(initial)
        if any((given[name] != started_from[name]).any() for name in started_from):
            raise ValueError("the command starts from its own seed's weights; pass those.")
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
        """Steps between evaluations: the command's 500, or fewer for at most PERIOD_SECONDS."""
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
    """Prepare the command's training as a variant.

    Args:
        net: a key of `NETS`.
        segment_seconds: approximate length of a segment.
        folder: folder for the runs of this variant only.
        where: arguments of `make_setting`.
    """
    setting = make_setting(net, **where)
    run = ContinuedRun(setting, Path(folder))
    work = Work(run.advance, run.eval_every, setting.net.batch_size, run.about, run.train)
    return Timed(work, segment_seconds)
