"""What a subcommand leaves: a table on the screen, and all numbers in a JSON file."""

import dataclasses
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmark.flags import Measurement
from experiments.benchmark.rounds import Summary
from experiments.record import files


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, the first to the left and the others to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    print(f"\n{title}")
    for line in lines:
        first = f"{line[0]:<{widths[0]}}"
        others = (f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        print("  ".join((first, *others)).rstrip())


def number(value: float | None, digits: int = 3) -> str:
    """A number to so many significant digits, without an exponent; a dash for none.

    >>> number(12345.6), number(0.012345), number(None)
    ('12,300', '0.0123', '-')
    """
    if value is None:
        return "-"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    magnitude = len(str(int(abs(rounded)))) if abs(rounded) >= 1 else 0
    if magnitude:
        return f"{rounded:,.{max(0, digits - magnitude)}f}"
    return f"{rounded:.{digits}g}"


def cells(summary: Summary) -> list[str]:
    """Median, quartiles and worst round, as text."""
    return [number(summary.median), f"{number(summary.low)}..{number(summary.high)}",
            number(summary.worst)]  # fmt: skip


def megabytes(num_bytes: float) -> str:
    """A size as text, in MB."""
    return f"{num_bytes / 1e6:,.0f}"


def write(
    config: Measurement, name: str, question: str, machine: dict[str, Any], results: Any
) -> Path:
    """Write the numbers of a subcommand to OUTPUT/NAME.json; returns the file's path.

    Args:
        config: the flags.
        name: of the subcommand.
        question: that it answers.
        machine: what `setting.Machine` says.
        results: in JSON's types, all rounds included.
    """
    config.output.mkdir(parents=True, exist_ok=True)
    path = config.output / f"{name}.json"
    about = {
        "benchmark": name,
        "question": question,
        "settings": dataclasses.asdict(config),
        "machine": machine | {"processor": _processor(), "cpu_count": os.cpu_count()},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    files.write_json(path, about | {"results": results})
    return path


def say_where(*paths: Path) -> None:
    """Print the files that were written."""
    print(f"\nwritten: {' and '.join(str(path) for path in paths)}")


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
