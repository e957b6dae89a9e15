"""Output of a subcommand: a table on the screen, and all numbers in a JSON file."""

import dataclasses
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmark.flags import Output
from experiments.benchmark.rounds import Summary
from experiments.record import files


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns: the first left-aligned, the others right-aligned."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    print(f"\n{title}")
    for line in lines:
        first = f"{line[0]:<{widths[0]}}"
        others = (f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        print("  ".join((first, *others)).rstrip())


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with `digits` significant digits, without an exponent; a dash for None.

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
    """Format median, quartiles and worst round as cells of a table."""
    return [number(summary.median), f"{number(summary.low)}..{number(summary.high)}",
            number(summary.worst)]  # fmt: skip


def megabytes(num_bytes: float) -> str:
    """Format a size in MB."""
    return f"{num_bytes / 1e6:,.0f}"


def write(config: Output, name: str, question: str, machine: dict[str, Any], results: Any) -> Path:
    """Write the numbers of a subcommand to OUTPUT/NAME.json; return the path of the file.

    Args:
        config: flags of the subcommand.
        name: name of the subcommand.
        question: question that the subcommand answers.
        machine: description by `setting.Machine`.
        results: all results in JSON types, every round included.
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
    """Print the paths of the files that were written."""
    print(f"\nwritten: {' and '.join(str(path) for path in paths)}")


def _processor() -> str:
    """Return the name of the processor, or its architecture if the system does not name it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
