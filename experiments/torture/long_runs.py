"""Long run of 200,000 steps, observed from within its process: no resource may grow."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from experiments.machine.compilation_cache import give_back_memory
from experiments.torture.victim import FLAGS, ROOT, Outcome

STEPS = 200_000
SECONDS_BETWEEN_LOOKS = 0.25
GROWTH = 0.03
"""Largest relative growth of a resource from the second quarter of a run to its last."""
ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}
"""Environment that gives glibc one heap. By default each thread has its own, and orbax starts new
threads for every checkpoint, so that the resident size varies by 20 MB and hides smaller growth."""


class Look(NamedTuple):
    """Resources of a run at one moment.

    Attributes:
        resident: resident bytes of the process, after free memory is returned to the system.
        buffers: bytes of arrays on devices.
        threads: threads of the process.
        open_files: open files of the process.
        files: files in the run's folder.
    """

    resident: int
    buffers: int
    threads: int
    open_files: int
    files: int


def long_run(folder: Path, tries: int) -> Outcome:
    """Train for 200,000 steps, `tries` times, and check that no resource grows."""
    survived, note = 0, ""
    for i in range(tries):
        run = folder / str(i)
        command = [sys.executable, "-c", f"from {__name__} import watched; watched()"]
        flags = [f"--run={run}", *FLAGS, f"--num-steps={STEPS}"]
        child = subprocess.run(
            [*command, *flags], cwd=ROOT, env=os.environ | ONE_HEAP, capture_output=True, text=True
        )
        if child.returncode:
            return Outcome(tries, survived, (child.stderr.strip().splitlines() or [""])[-1])
        looks = [Look(*look) for look in json.loads(child.stdout.splitlines()[-1])]
        grown = growth(looks)
        survived += not grown
        note = grown or (
            f"{STEPS:,} steps, {len(looks)} looks: {looks[-1].resident >> 20} MB resident, "
            f"{looks[-1].buffers >> 10} kB on devices, {looks[-1].threads} threads, "
            f"{looks[-1].open_files} open files, {looks[-1].files} files"
        )
    return Outcome(tries, survived, note)


def growth(looks: list[Look]) -> str:
    """Describe the resources that grew from the second quarter of the looks to the last, if any.

    >>> flat = [Look(100, 1, 5, 5, 5)] * 16
    >>> growth(flat), growth(flat[:12] + [Look(200, 1, 5, 5, 5)] * 4)
    ('', 'resident grew from 100 to 200')
    """
    quarter = len(looks) // 4
    if not quarter:
        return f"only {len(looks)} looks"
    parts = looks[quarter : 2 * quarter], looks[-quarter:]
    found = []
    for name in Look._fields:
        before, after = ([getattr(look, name) for look in part] for part in parts)
        measures = (min, statistics.median, max)
        grown = [of(after) > of(before) * (1 + GROWTH) for of in measures]
        if all(grown):  # resources that vary with checkpoints change only one or two measures
            found.append(f"{name} grew from {max(before)} to {max(after)}")
    return ", ".join(found)


def watched() -> None:
    """Run the training command, then print its looks, [[...], ...], as JSON."""
    import tyro

    from experiments.flags.config import TrainConfig
    from experiments.train import train

    config = tyro.cli(TrainConfig)
    looks: list[Look] = []
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(config.folder, looks, ended), daemon=True)
    watcher.start()
    code = train(config)
    ended.set()
    watcher.join()
    print(json.dumps(looks))
    sys.exit(code)


def _watch(run: Path, looks: list[Look], ended: threading.Event) -> None:
    """Take looks from the first row of metrics to the first picture."""
    while not ended.is_set() and not (run / "pictures").exists():
        if (run / "metrics.jsonl").exists():
            with contextlib.suppress(FileNotFoundError):  # orbax may rename a checkpoint meanwhile
                looks.append(_look(run))
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _look(run: Path) -> Look:
    import jax

    give_back_memory()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return Look(
        resident=int(status["VmRSS"].split()[0]) << 10,
        buffers=sum(array.nbytes for array in jax.live_arrays()),
        threads=int(status["Threads"]),
        open_files=len(list(Path("/proc/self/fd").iterdir())),
        files=sum(1 for path in run.rglob("*") if path.is_file()),
    )
