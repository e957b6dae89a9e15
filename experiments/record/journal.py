"""What a run writes down as it goes: metrics.jsonl and TensorBoard, by process 0 alone."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.record import metrics
from jaxvae.checkpoints.hosts import is_first
from jaxvae.checkpoints.manifest import reason_of

METRICS = "metrics.jsonl"
"""In a run's folder."""


class Journal:
    """The logs of a run in its folder, gone on with from a checkpoint.

    Args:
        folder: of the run.
        keep_until_step: the step of the checkpoint; -1 for a new run.
        tensorboard: whether to write event files too.

    Attributes:
        best_elbo: of the validations so far; minus infinity before any.
        problem: why the last write failed, a full disk say; None: it did not.
    """

    def __init__(self, folder: Path, keep_until_step: int, *, tensorboard: bool) -> None:
        self.best_elbo = -math.inf
        self.problem: OSError | None = None
        self._logs: list[Any] = []
        if not is_first():
            return
        path = folder / METRICS
        self._logs.append(metrics.MetricsFile(path, keep_until_step))
        if tensorboard:
            self._logs.append(metrics.TensorBoard(folder / "tensorboard", keep_until_step))
        rows = metrics.read_metrics(path)
        scores = (row.get("elbo") for row in rows if row["split"] == "validation")
        self.best_elbo = max((score for score in scores if score is not None), default=-math.inf)

    def write(
        self, step: int, split: str, values: dict[str, float], timing: dict[str, float]
    ) -> None:
        """One row in each log. What cannot be written now is, with the next row or `flush`."""
        with self._noting():
            for log in self._logs:
                log.write(step, split, values, timing)

    def skipped(self, step: int, examples: list[int], key: list[int]) -> None:
        """A step that changed nothing, since its loss or gradient was not finite, in metrics.jsonl.

        Args:
            step: which.
            examples: rows of the training split.
            key: of the step; row i of the batch had key i of its split.
        """
        with self._noting():
            for log in self._logs[:1]:
                log.write(step, "skipped", {"examples": examples, "key": key}, {})

    def flush(self) -> bool:
        """Whether all rows of metrics.jsonl are written."""
        with self._noting():
            for log in self._logs[:1]:
                log.flush()
        return self.problem is None

    @staticmethod
    def check(folder: Path) -> None:
        """Refuse, before anything is written, logs that cannot be gone on with.

        Raises:
            ValueError: a row that is none.
        """
        if (folder / METRICS).exists():
            metrics.read_metrics(folder / METRICS)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        self.problem = None
        try:
            yield
        except OSError as error:
            self.problem = OSError(f"{METRICS} could not be written: {reason_of(error)}.")

    def close(self) -> None:
        """Close the files."""
        for log in self._logs:
            log.close()
