"""Timed work: a worker repeats the same work of a variant in segments of a set length."""

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

CALIBRATION_SECONDS = 0.3
"""Shortest measurement from which the pace is computed."""


Snapshots = Sequence[tuple[int, str]]
"""Pairs of a number of steps, ascending, and the file for the weights after that many steps."""


class Work(NamedTuple):
    """One variant's work, compiled and warmed up.

    Attributes:
        advance: function that makes a number of further calls, and waits for the result.
        steps_per_call: training steps, or other units, in one call.
        images_per_step: examples per step.
        about: description in JSON types: "compile_seconds", "setting", ...
        train: function of (file of initial weights, snapshots, seed) that trains from these weights
            and writes the weights of every snapshot; None if the variant cannot.
        agree: function that turns the numbers of several processes into one, so that all processes
            make the same number of calls.
    """

    advance: Callable[[int], None]
    steps_per_call: int
    images_per_step: int
    about: dict[str, Any]
    train: Callable[[str, Snapshots, int], None] | None = None
    agree: Callable[[float], float] = float


class Timed:
    """Work in timed segments; a worker holds this object and calls its methods.

    Args:
        work: work of the variant.
        segment_seconds: approximate length of a segment.
        calls: calls per segment, however long they take; None: as many as fit into
            `segment_seconds`.
    """

    def __init__(self, work: Work, segment_seconds: float, calls: int | None = None) -> None:
        self._work = work
        self._calls = calls or calls_that_take(segment_seconds, work.advance, agree=work.agree)
        self.about = work.about

    def segment(self) -> dict[str, float]:
        """Run one segment; return steps, images, seconds, and peak memory of the process so far."""
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
        """Train from initial weights, and write the weights of every snapshot."""
        if self._work.train is None:
            raise ValueError("this variant cannot start from given weights.")
        started = time.perf_counter()
        self._work.train(initial, snapshots, seed)
        return {"seconds": time.perf_counter() - started}


class Fastest:
    """Several settings of one variant: every segment runs them all, and the fastest counts.

    The fastest setting may change with other load on the machine.

    Args:
        variants: name -> timed work; the first one trains, and provides `about`.
    """

    def __init__(self, variants: Mapping[str, Timed]) -> None:
        self._variants = variants
        self._first = next(iter(variants.values()))
        self.about = self._first.about

    def segment(self) -> dict[str, Any]:
        """Run one segment of each; return the fastest one's numbers, and its name as "setting"."""
        measured = [
            {**variant.segment(), "setting": name} for name, variant in self._variants.items()
        ]
        return max(measured, key=lambda segment: segment["images_per_second"])

    def train(self, initial: str, snapshots: Snapshots, seed: int = 0) -> dict[str, float]:
        """Train the first setting, as `Timed.train` does."""
        return self._first.train(initial, snapshots, seed)


def calls_that_take(
    seconds: float,
    advance: Callable[[int], None],
    agree: Callable[[float], float] = float,
) -> int:
    """Number of calls (at least 1) that take about `seconds`.

    Doubles the calls until they last long enough to be timed reliably.
    """
    calls = 1
    while True:
        started = time.perf_counter()
        advance(calls)
        taken = agree(time.perf_counter() - started)
        if taken >= min(seconds, CALIBRATION_SECONDS):
            return max(1, round(calls * seconds / taken))
        calls *= 2


def with_rows(segment: dict[str, Any], num_samples: int) -> dict[str, Any]:
    """Add rows per second to a segment of evaluation; a row is one sample of one image."""
    return segment | {"rows_per_second": segment["images_per_second"] * num_samples}


def peak_bytes() -> int:
    """Peak memory of this process, in bytes."""
    return peak_bytes_of("self") or _resource_peak()


def peak_bytes_of(process: int | str) -> int | None:
    """Peak memory of a running process in bytes, or None if the system does not report it.

    `resource` counts from the parent's memory at the fork; /proc on Linux does not.
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
