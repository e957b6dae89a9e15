"""Flags that subcommands share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmark.nets import NETS
from experiments.flags.config import Accelerator, require
from experiments.flags.packages import require_packages


@dataclass(frozen=True)
class Output:
    """Flags shared by every subcommand."""

    rounds: int = 5
    """Timed segments per variant, interleaved. More make median and worst round more certain."""
    output: Path = Path("runs/benchmarks")
    """Folder for the numbers (JSON) and the plot (PNG); the subcommand names both files."""

    def check(self) -> None:
        """Reject invalid values, and check that matplotlib is installed for the plot.

        Raises:
            ValueError: invalid flag or missing package; the message is one line that names it.
        """
        require(self.rounds >= 1, "rounds", self.rounds, "at least 1")
        require_packages("matplotlib")


@dataclass(frozen=True)
class Measurement(Output):
    """Flags shared by every subcommand that runs a model."""

    segment_seconds: float = 1.5
    """Approximate length of a segment."""
    dataset: str | None = None
    """Data set of 8-bit 28 x 28 images: mnist_small (the default; ships with the code), mnist,
    fashion_mnist, kmnist, npz:PATH or npy:PATH. Net e of peers takes 64 x 64 x 3: shapes:64."""
    manual_dir: str | None = None
    """Folder with the original files of a data set that cannot be downloaded."""
    accelerator: Accelerator = "auto"
    """Platform to run on. auto: what jax finds. Any other value must match what jax finds."""

    def check(self) -> None:
        """Reject invalid values.

        Raises:
            ValueError: invalid flag or missing package; the message is one line that names it.
        """
        super().check()
        require(self.segment_seconds > 0, "segment_seconds", self.segment_seconds, "positive")

    def data(self, net: str) -> dict[str, Any]:
        """Arguments that select a net and its data set."""
        dataset = self.dataset or NETS[net].dataset
        return {"net": net, "dataset": dataset, "manual_dir": self.manual_dir}
