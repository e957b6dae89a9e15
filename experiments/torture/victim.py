"""The training command as a process that is stopped in every way, and what it leaves behind."""

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
    """Of one case: how often it was tried and survived, and what else to say of it."""

    tries: int
    survived: int
    note: str


class Victim:
    """One process of the command; a context manager that leaves none behind.

    Args:
        run: its folder.
        flags: more of the command's.

    Attributes:
        process: itself.
        errors: the lines of its errors, once `end` has seen it end.
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
        """What it is doing, by what lies in its folder."""
        if any((self.run / "checkpoints").glob(UNFINISHED)):
            return "saving"
        if _size(self.run / "metrics.jsonl") <= self._rows_before:
            return "starting"
        return "training" if not (self.run / "pictures").exists() else "reporting"

    def wait_for(self, phase: str, seconds: float) -> bool:
        """Whether it came to a phase in so many seconds; False too where it ended before."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            if self.phase() == phase:
                return True
            time.sleep(POLL_SECONDS)
        return False

    def end(self, seconds: float = 600) -> tuple[int, str]:
        """Its exit code and the last line of its errors, once it has ended by itself."""
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
    """All that a run leaves behind, but for times: equal runs have equal ones, bit for bit."""
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
    """The names of what differs between two fingerprints; empty where nothing does."""
    return ", ".join(name for name in sorted(one.keys() | other.keys())
                     if one.get(name) != other.get(name))  # fmt: skip


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
