"""What a worker measures: a variant that repeats the same work, in segments of set length."""

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

CALIBRATION_SECONDS = 0.3
"""What the pace is taken from."""


Snapshots = Sequence[tuple[int, str]]
"""Numbers of steps, ascending, and the file for the weights after each."""


class Work(NamedTuple):
    """One variant's work, compiled and warm.

    Attributes:
        advance: does a number of calls more, and waits for the result.
        steps_per_call: training steps, or whatever is counted, in one call.
        images_per_step: examples in one of these.
        about: what is worth saying of it, in JSON's types; "compile_seconds", "setting", ...
        train: (file of initial weights, snapshots, seed of all else): trains on from the weights
            and writes those after each number of steps, as [(steps, file), ...]; or None.
        agree: makes one number of those that several processes have, so that all do as many calls.
    """

    advance: Callable[[int], None]
    steps_per_call: int
    images_per_step: int
    about: dict[str, Any]
    train: Callable[[str, Snapshots, int], None] | None = None
    agree: Callable[[float], float] = float


class Timed:
    """Work in timed segments: what a worker keeps and answers from.

    Args:
        work: of the variant.
        segment_seconds: what a segment is to last, about.
        calls: of a segment, whatever they take; None: as many as last so long.
    """

    def __init__(self, work: Work, segment_seconds: float, calls: int | None = None) -> None:
        self._work = work
        self._calls = calls or calls_that_take(segment_seconds, work.advance, agree=work.agree)
        self.about = work.about

    def segment(self) -> dict[str, float]:
        """Run one segment: its steps, images, seconds, and the process' peak memory so far."""
        started = time.perf_counter()
        self._work.advance(self._calls)
        seconds = time.perf_counter() - started
        steps = self._calls * self._work.steps_per_call
        return {
            "steps": steps,
            "images": steps * self._work.images_per_step,
            "seconds": seconds,
            "images_per_second": steps * self._work.images_per_step / seconds,
            "peak_bytes": peak_bytes(),
        }

    def train(self, initial: str, snapshots: Snapshots, seed: int = 0) -> dict[str, float]:
        """Train from initial weights, and write the weights after numbers of steps."""
        if self._work.train is None:
            raise ValueError("this variant cannot start from given weights.")
        started = time.perf_counter()
        self._work.train(initial, snapshots, seed)
        return {"seconds": time.perf_counter() - started}


class Fastest:
    """Variants of one thing, all run in every segment, of which the fastest counts.

    Which one is the fastest may change with what else the machine does.

    Args:
        variants: name -> what is timed; the first one trains, and its `about` is that of all.
    """

    def __init__(self, variants: Mapping[str, Timed]) -> None:
        self._variants = variants
        self._first = next(iter(variants.values()))
        self.about = self._first.about

    def segment(self) -> dict[str, Any]:
        """One segment of each; what the fastest measured, and its name as "setting"."""
        measured = [
            {**variant.segment(), "setting": name} for name, variant in self._variants.items()
        ]
        return max(measured, key=lambda segment: segment["images_per_second"])

    def train(self, initial: str, snapshots: Snapshots, seed: int = 0) -> dict[str, float]:
        """As `Timed.train`."""
        return self._first.train(initial, snapshots, seed)


def calls_that_take(
    seconds: float,
    advance: Callable[[int], None],
    agree: Callable[[float], float] = float,
) -> int:
    """How many calls last about so long, at least 1; by doubling until the clock is sure."""
    calls = 1
    while True:
        started = time.perf_counter()
        advance(calls)
        taken = agree(time.perf_counter() - started)
        if taken >= min(seconds, CALIBRATION_SECONDS):
            return max(1, round(calls * seconds / taken))
        calls *= 2


def with_rows(segment: dict[str, Any], num_samples: int) -> dict[str, Any]:
    """A segment of evaluation with its rows per second: a row is one sample of one image."""
    return segment | {"rows_per_second": segment["images_per_second"] * num_samples}


def peak_bytes() -> int:
    """Most memory that this process has held at once."""
    return peak_bytes_of("self") or _resource_peak()


def peak_bytes_of(process: int | str) -> int | None:
    """Most memory that a running process has held, or None where the system does not say.

    The counter of `resource` starts at what the parent held when it forked; Linux's own does not.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else None


def _resource_peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
