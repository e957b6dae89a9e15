"""Accidents other than a kill: other devices, damaged files, a full disk, NaN, a second start."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from experiments.record.metrics import read_metrics
from experiments.torture.victim import ROOT, Outcome, Victim, difference, fingerprint, train
from jaxvae.checkpoints import Checkpoints

STEPS = 4000
DEVICES = (8, 2, 1, 4)
"""Numbers of devices; a run uses each for a quarter of its steps."""
STEPS_MOVED, FLAGS_MOVED = 40, ("--batch-size=64", "--eval-every=5", "--log-every=1")
ROOM = 60_000
"""Largest file, in bytes, that fits on the full disk; a checkpoint has a larger one."""
SECONDS_TO_TRAIN = 120.0


def other_hardware(folder: Path, tries: int) -> Outcome:
    """Move a run from 8 devices to 2, 1 and 4: with the flag its results are bit for bit equal."""
    survived, note = 0, ""
    exact = ("--deterministic-reduction", *FLAGS_MOVED)
    kinds = {"mlp": exact, "conv": (*exact, "--model=conv")}
    for i in range(tries):
        kind = list(kinds)[i % 2]
        whole, moved = (folder / f"{name}-{i}" for name in ("whole", "moved"))
        train(whole, *kinds[kind], f"--num-steps={STEPS_MOVED}")
        _move(moved, *kinds[kind])
        different = difference(fingerprint(whole), fingerprint(moved))
        survived += not different
        note += f"{kind}: {different} differ; " if different else ""
    train(folder / "one", *FLAGS_MOVED, f"--num-steps={STEPS_MOVED}")
    _move(folder / "four", *FLAGS_MOVED)
    elbos = [
        np.array([row["elbo"] for row in read_metrics(run / "metrics.jsonl")])
        for run in (folder / "one", folder / "four")
    ]
    most = np.abs(elbos[1] / elbos[0] - 1).max()
    return Outcome(
        tries,
        survived,
        f"{note}without the flag the bound of {STEPS_MOVED} steps is {most:.0e} off",
    )


def _move(run: Path, *flags: str) -> None:
    for i, num_devices in enumerate(DEVICES):
        until = STEPS_MOVED * (i + 1) // len(DEVICES)
        train(run, *flags, f"--num-steps={until}", f"--num-devices={num_devices}")


def _emptied(files: list[Path]) -> None:
    for file in files:
        file.write_bytes(b"")


def _cut(files: list[Path]) -> None:
    largest = max(files, key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def _flipped(files: list[Path]) -> None:
    largest = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def _half_deleted(files: list[Path]) -> None:
    for file in files[::2]:
        file.unlink()


DAMAGES: dict[str, Callable[[list[Path]], None]] = {
    "emptied": _emptied,
    "cut": _cut,
    "a bit flipped": _flipped,
    "half deleted": _half_deleted,
}


def damaged_checkpoint(folder: Path, tries: int) -> Outcome:
    """Damage the newest checkpoint: the run sets it aside and ends as if it had been intact."""
    whole, steps = folder / "whole", f"--num-steps={STEPS}"
    train(whole, steps)
    survived, lost = 0, []
    for i in range(tries):
        damage = list(DAMAGES)[i % len(DAMAGES)]
        run = folder / str(i)
        train(run, f"--num-steps={STEPS // 2}")
        newest = run / "checkpoints" / str(STEPS // 2)
        DAMAGES[damage](sorted(path for path in newest.rglob("*") if path.is_file()))
        train(run, steps)
        aside = (run / "checkpoints-damaged" / newest.name).is_dir()
        different = difference(fingerprint(whole), fingerprint(run))
        if aside and not different:
            survived += 1
        else:
            lost.append(f"{damage}: {different or 'not set aside'}")
    return Outcome(tries, survived, "; ".join(lost) or ", ".join(list(DAMAGES)[:tries]))


@contextlib.contextmanager
def no_file_above(num_bytes: int) -> Iterator[None]:
    """Limit the size of files that this process and its children write."""
    import resource  # not available on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full_disk(folder: Path, tries: int) -> Outcome:
    """Fill the disk: a run warns and ends with code 1, and with space resumes as if never full."""
    larger = ("--hidden", "64", "64", f"--num-steps={STEPS}")
    whole = folder / "whole"
    train(whole, *larger)
    survived, note = 0, ""
    for i in range(tries):
        run = folder / str(i)
        train(run, *larger[:-1], f"--num-steps={STEPS // 2}")
        with no_file_above(ROOM), Victim(run, *larger) as victim:
            code, line = victim.end()
        with contextlib.closing(Checkpoints(run / "checkpoints", read_only=True)) as checkpoints:
            kept = checkpoints.latest_step() == STEPS // 2
        said = len(victim.errors) == 2 and "Make room" in line
        train(run, *larger)
        different = difference(fingerprint(whole), fingerprint(run))
        if code == 1 and kept and said and not different:
            survived += 1
        else:
            note = f"ended with {code}, {different or 'nothing'} differs: {line}"
    return Outcome(tries, survived, note or "one warning, one error")


def second_start(folder: Path, tries: int) -> Outcome:
    """Start a second training in a run's folder: rejected until the first process is killed."""
    survived, slowest, note = 0, 0.0, ""
    endless = "--num-steps=100000000"
    for i in range(tries):
        run = folder / str(i)
        with Victim(run, endless) as first:
            first.wait_for("training", SECONDS_TO_TRAIN)
            started = time.monotonic()
            with Victim(run, endless) as second:
                code, line = second.end()
            slowest = max(slowest, time.monotonic() - started)
            first.process.send_signal(signal.SIGKILL)
            first.process.wait()
        named = f"process {first.process.pid} " in line
        with Victim(run, endless) as third:
            goes_on = third.wait_for("training", SECONDS_TO_TRAIN)
        survived += code == 2 and named and goes_on
        if code != 2 or not named:
            note = f"; it ended with {code}: {line}"
        elif not goes_on:
            note = "; the third did not train"
    return Outcome(tries, survived, f"rejected within {slowest:.1f} s{note}")


FAULTS = {
    "rate": (("--optimizer=sgd", "--learning-rate=1e38"), "not finite"),
    "scale": (("--likelihood=gaussian", "--sigma=1e-25"), "reconstruction -inf"),
}
"""Name -> flags that make numbers non-finite, and words that the replay prints about them."""


def not_finite(folder: Path, tries: int) -> Outcome:
    """Make numbers non-finite: the run stops with one line, and the replay names the first one."""
    survived, note = 0, ""
    for i in range(tries):
        fault = list(FAULTS)[i % len(FAULTS)]
        flags, says = FAULTS[fault]
        run = folder / str(i)
        with Victim(run, *flags, "--max-skipped=3") as victim:
            code, line = victim.end()
        skipped = [row for row in read_metrics(run / "metrics.jsonl") if row["split"] == "skipped"]
        step = str(skipped[0]["step"]) if skipped else "1"
        replayed = subprocess.run(
            [sys.executable, "-m", "experiments.replay", str(run), step],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        named = "was not finite" in line and says in replayed.stdout
        survived += code == 1 and len(victim.errors) == 1 and named
        if code != 1 or not named:
            note += f"{fault}: ended with {code}: {line}; "
    return Outcome(tries, survived, note or ", ".join(list(FAULTS)[:tries]))
