"""What a run writes down as it goes: metrics.jsonl and TensorBoard, by process 0 alone."""

import math
from pathlib import Path
from typing import Any

from experiments import run_log
from jaxvae.processes import is_first


class Journal:
    """The logs of a run in its folder, gone on with from a checkpoint.

    Args:
        folder: of the run.
        keep_until_step: the step of the checkpoint; -1 for a new run.
        tensorboard: whether to write event files too.

    Attributes:
        best_elbo: of the validations so far; minus infinity before any.
    """

    def __init__(self, folder: Path, keep_until_step: int, *, tensorboard: bool) -> None:
        self.best_elbo = -math.inf
        self._logs: list[Any] = []
        if not is_first():
            return
        path = folder / "metrics.jsonl"
        self._logs.append(run_log.MetricsFile(path, keep_until_step))
        if tensorboard:
            self._logs.append(run_log.TensorBoard(folder / "tensorboard", keep_until_step))
        scores = [row["elbo"] for row in run_log.read_metrics(path) if row["split"] == "validation"]
        self.best_elbo = max((score for score in scores if score is not None), default=-math.inf)

    def write(
        self, step: int, split: str, values: dict[str, float], timing: dict[str, float]
    ) -> None:
        """One row in each log."""
        for log in self._logs:
            log.write(step, split, values, timing)

    def close(self) -> None:
        """Close the files."""
        for log in self._logs:
            log.close()
