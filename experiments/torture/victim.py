"""The training command as a process to stop and restart, and fingerprints of its results."""

import contextlib
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, Self

from experiments.record.metrics import read_metrics
from jaxvae.checkpoints import Checkpoints

ROOT = Path(__file__).parents[2]
FLAGS = ("--hidden", "16", "--latent-dim=2", "--eval-every=1000", "--log-every=200",
         "--eval-samples=5", "--accelerator=cpu", "--quiet")  # fmt: skip
UNFINISHED = "*.orbax-checkpoint-tmp"
POLL_SECONDS = 0.001


class Outcome(NamedTuple):
    """Outcome of one case: number of tries, number of those survived, and a note."""

    tries: int
    survived: int
    note: str


class Victim:
    """Process of the training command; a context manager that kills the process on exit.

    Args:
        run: folder of the run.
        flags: further flags of the command.

    Attributes:
        process: the process.
        errors: lines of its standard error, available after `end`.
    """

    def __init__(self, run: Path, *flags: str) -> None:
        self.run = run
        command = [sys.executable, "-m", "experiments.train", f"--run={run}", *FLAGS, *flags]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._rows_before = _size(run / "metrics.jsonl")
        self.errors: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.communicate()

    def phase(self) -> str:
        """Current activity of the process, inferred from the files of its run."""
        if any((self.run / "checkpoints").glob(UNFINISHED)):
            return "saving"
        if _size(self.run / "metrics.jsonl") <= self._rows_before:
            return "starting"
        return "training" if not (self.run / "pictures").exists() else "reporting"

    def wait_for(self, phase: str, seconds: float) -> bool:
        """Wait until the process is in a phase; return False if it ends or `seconds` pass first."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            if self.phase() == phase:
                return True
            time.sleep(POLL_SECONDS)
        return False

    def end(self, seconds: float = 600) -> tuple[int, str]:
        """Wait until the process ends; return its exit code and the last line of its errors."""
        _, errors = self.process.communicate(timeout=seconds)
        self.errors = errors.strip().splitlines()
        return self.process.returncode, (self.errors or [""])[-1]


def train(run: Path, *flags: str) -> None:
    """Train to the end.

    Raises:
        RuntimeError: the command failed.
    """
    with Victim(run, *flags) as victim:
        code, line = victim.end()
    if code:
        raise RuntimeError(f"the training command ended with {code}: {line}")


def fingerprint(run: Path) -> dict[str, Any]:
    """Collect all results of a run except times; bit-for-bit equal runs have equal fingerprints."""
    with contextlib.closing(Checkpoints(run / "checkpoints", read_only=True)) as checkpoints:
        digests = {f"checkpoint {step}": checkpoints.about(step)["digests"]
                   for step in checkpoints.steps()}  # fmt: skip
    rows = [{name: value for name, value in row.items() if name != "timing"}
            for row in read_metrics(run / "metrics.jsonl")]  # fmt: skip
    results = json.loads((run / "results.json").read_text())
    numbers = {split: results.get(split) for split in ("validation", "test")}
    pictures = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted((run / "pictures").glob("*.png"))}  # fmt: skip
    return digests | {"metrics.jsonl": rows, "results.json": numbers, "pictures": pictures}


def difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Return the names of the results that differ between two fingerprints; empty if none do."""
    return ", ".join(name for name in sorted(one.keys() | other.keys())
                     if one.get(name) != other.get(name))  # fmt: skip


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
