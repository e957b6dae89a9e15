"""What all subcommands take."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.flags.config import Accelerator, require
from experiments.flags.packages import require_packages


@dataclass(frozen=True)
class Measurement:
    """Flags of every subcommand."""

    rounds: int = 5
    """Timed segments of every variant, taken in turn. More make median and worst round surer."""
    segment_seconds: float = 1.5
    """Length of a segment, about."""
    dataset: str = "mnist_small"
    """8-bit images of 28 x 28 pixels: mnist_small (ships with the code), mnist, fashion_mnist,
    kmnist, npz:PATH or npy:PATH."""
    manual_dir: str | None = None
    """Folder with a data set's original files, where they cannot be downloaded."""
    output: Path = Path("runs/benchmarks")
    """Folder for the numbers (JSON) and the plot (PNG), named after the subcommand."""
    accelerator: Accelerator = "auto"
    """Where to run. auto: what jax finds. Anything else is verified."""

    def check(self) -> None:
        """Refuse values that mean nothing, and a plot that could not be drawn.

        Raises:
            ValueError: one line, naming the flag or the package.
        """
        require(self.rounds >= 1, "rounds", self.rounds, "at least 1")
        require(self.segment_seconds > 0, "segment_seconds", self.segment_seconds, "positive")
        require_packages("matplotlib")

    def data(self) -> dict[str, Any]:
        """Arguments that say which data."""
        return {"dataset": self.dataset, "manual_dir": self.manual_dir}
