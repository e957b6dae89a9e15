"""Recorder of a training run: metrics.jsonl, TensorBoard and the screen, on process 0 only."""

import contextlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.record.display import Display
from experiments.record.metrics import MetricsFile, TensorBoard, read_metrics
from jaxvae.checkpoints.hosts import is_first
from jaxvae.checkpoints.manifest import reason_of

METRICS = "metrics.jsonl"
"""Name of the metrics file in a run's folder."""
TENSORBOARD = "tensorboard"
"""Name of the folder of TensorBoard files in a run's folder."""


class Recorder:
    """The records of a run in its folder, continued from a checkpoint, and its display.

    Args:
        folder: folder of the run.
        keep_until_step: the step of the checkpoint; -1 for a new run.
        tensorboard: also write event files.
        display: shows progress; None: nothing is shown.

    Attributes:
        display: as given.
        best_elbo: best ELBO of the validations so far; minus infinity before the first.
        seconds: time that the run has taken up to its last row, in all its starts.
        problem: error of the last `flush`, such as a full disk; None if it wrote everything.
    """

    def __init__(
        self,
        folder: Path,
        keep_until_step: int,
        *,
        tensorboard: bool = False,
        display: Display | None = None,
    ) -> None:
        self.display = Display(0, quiet=True) if display is None else display
        self.best_elbo, self.seconds = -math.inf, 0.0
        self.problem: OSError | None = None
        self._logs: dict[str, MetricsFile | TensorBoard] = {}
        if not is_first():
            return
        metrics = MetricsFile(folder / METRICS, keep_until_step)
        self.best_elbo, self.seconds = metrics.best_elbo, metrics.seconds
        self._logs[METRICS] = metrics
        if tensorboard:
            self._logs[TENSORBOARD] = TensorBoard(folder / TENSORBOARD, keep_until_step)

    def write(
        self, step: int, split: str, values: dict[str, float], timing: dict[str, float]
    ) -> None:
        """Write a row to each log, and show it on the screen if its split is validation.

        A row that cannot be written now is written with the next one, or by `flush`.
        """
        for log in self._logs.values():
            with contextlib.suppress(OSError):
                log.write(step, split, values, timing)
        self.seconds = max(self.seconds, timing.get("seconds", 0.0))
        if split == "validation":
            elbo = values["elbo"]
            is_best = elbo > self.best_elbo
            if is_best:  # never where the ELBO is NaN
                self.best_elbo = elbo
            error = values["standard_error"]
            self.display.evaluation(step, elbo=elbo, standard_error=error, is_best=is_best)

    def progress(self, step: int, values: Mapping[str, Any], images_per_second: float) -> None:
        """Show the progress of training."""
        shown = {name: values[name] for name in ("elbo", "reconstruction", "kl")}
        self.display.update(step, **shown, images_per_second=images_per_second)

    def skipped(self, step: int, examples: list[int], key: list[int]) -> None:
        """Write a skipped step, whose loss or gradient norm was not finite, to metrics.jsonl.

        Args:
            step: number of the step.
            examples: rows of the training split in its batch.
            key: random key of the step; row i of the batch used key i of its split.
        """
        if METRICS in self._logs:
            with contextlib.suppress(OSError):
                self._logs[METRICS].write(step, "skipped", {"examples": examples, "key": key}, {})

    def say(self, line: str) -> None:
        """Show a line, even if the run is quiet."""
        if self.display.quiet and is_first():
            print(line, file=sys.stderr)
        self.display.message(line)

    def flush(self) -> bool:
        """Write the remaining rows; return True if no log lacks any, else set `problem`."""
        self.problem = None
        for name, log in self._logs.items():
            try:
                log.flush()
            except OSError as error:
                reason = reason_of(error)
                self.problem = self.problem or OSError(f"{name} could not be written: {reason}.")
        return self.problem is None

    @staticmethod
    def check(folder: Path) -> None:
        """Check that the records of a folder can be continued, without writing anything.

        Raises:
            ValueError: a row is invalid.
        """
        if (folder / METRICS).exists():
            read_metrics(folder / METRICS)

    def close(self) -> None:
        """Close the files."""
        for log in self._logs.values():
            log.close()
