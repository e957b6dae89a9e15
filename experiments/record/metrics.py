"""Rows of metrics.jsonl: written while a run trains, and checked when they are read back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.flags.packages import require_packages
from experiments.flags.path_checks import require_file
from experiments.record.files import plain, write_text

ROW = "a JSON object with a step and a split, and an elbo that is a number or null"
"""Form of a line, in words for messages; every other value must be a number or null too."""
RENAMED = {"log_likelihood": "reconstruction"}
"""Name in files of earlier releases -> today's name."""
LISTS = ("examples", "key")
"""Values that are lists of integers: the inputs of a skipped step."""
LONGEST_LINE = 2**24
"""Most bytes of a line; a skipped step of 1,000,000 examples takes half as many."""
LARGEST = 1e300
"""Largest valid number: runs never write a larger one, and plots could overflow."""


class MetricsFile:
    """One JSON object a line: `{"step": 100, "split": "train", "elbo": -120.5, "timing": {...}}`.

    All values that depend on clock or machine are under `timing`: without it, equal runs have equal
    rows. Write the rows of a step before its checkpoint: then a run that was killed and resumed has
    the same rows as an uninterrupted run.
    """

    def __init__(self, path: Path, keep_until_step: int) -> None:
        """Open the file for appending, and drop the rows that were written after a checkpoint.

        Args:
            path: the file; created if it is missing.
            keep_until_step: the step of the checkpoint to resume from; -1 for a new run.
        """
        rows = read_metrics(path) if path.exists() else []
        kept = [row for row in rows if row["step"] <= keep_until_step]
        write_text(path, "".join(map(self._line, kept)))
        self._last_steps = {row["split"]: row["step"] for row in kept}
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""

    def write(
        self, step: int, split: str, values: Mapping[str, Any], timing: Mapping[str, float]
    ) -> None:
        """Append one row and hand it to the operating system.

        Raises:
            OSError: writing failed, for example on a full disk. The row is written before the
                next one.
            ValueError: the step is not after the last one of its split, or a name is reserved.
        """
        last_step = self._last_steps.get(split, -1)
        if step <= last_step:
            raise ValueError(
                f"MetricsFile.write: steps must rise within a split, got step {step} after "
                f"{last_step} for {split!r}. Write one row per step; on resuming, give the "
                "checkpoint's step as keep_until_step."
            )
        if taken := sorted({"step", "split", "timing"} & values.keys()):
            raise ValueError(
                f"MetricsFile.write: values must not be named step, split or timing, got {taken}. "
                "Rename them, or pass them as the arguments of these names."
            )
        row = self._line({"step": step, "split": split, **values, "timing": timing})
        self._unwritten += row.encode()
        self._last_steps[split] = step
        self.flush()

    def flush(self) -> None:
        """Hand all rows to the operating system; rows that it does not accept wait in memory.

        Raises:
            OSError: it did not accept all rows.
        """
        while self._unwritten:  # an unbuffered write may accept only a part
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def close(self) -> None:
        """Close the file, after a last attempt to write the remaining rows."""
        with contextlib.suppress(OSError):
            self.flush()
        self._file.close()

    @staticmethod
    def _line(row: Mapping[str, Any]) -> str:
        return json.dumps(plain(row), allow_nan=False) + "\n"


class TensorBoard:
    """The rows of `MetricsFile` as scalars `<split>/<name>`, through tensorboardX."""

    def __init__(self, folder: Path, keep_until_step: int) -> None:
        """Open an event file; TensorBoard hides rows of older files after `keep_until_step`."""
        require_packages("tensorboardX")
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=keep_until_step + 1)

    def write(
        self, step: int, split: str, values: Mapping[str, float], timing: Mapping[str, float]
    ) -> None:
        """Write one row, as `MetricsFile.write` does."""
        for name, value in {**values, **{f"timing/{key}": timing[key] for key in timing}}.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a metrics file, in order, without a last line that a kill cut short.

    Raises:
        ValueError: another line is invalid, a line is too long, or the path is not a file.
    """
    require_file(path)
    rows: list[dict[str, Any]] = []
    torn: str | None = None
    with path.open("rb") as file:
        while line := file.readline(LONGEST_LINE + 1):
            text = line.decode("utf-8", "replace").removesuffix("\n")
            if torn is None and len(line) <= LONGEST_LINE:
                row = parsed_row(text)
                if row is None:
                    torn = text  # an error unless it is the last line
                else:
                    rows.append(row)
                continue
            raise ValueError(
                f"read_metrics: a line must be {ROW}, line {len(rows) + 1} of {path} is "
                f"{(text if torn is None else torn)[:60]!r}. Delete that line, or start a new "
                "folder."
            )
    return rows


def parsed_row(line: str) -> dict[str, Any] | None:
    """Parse a line; None if it does not have the form of `ROW`."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("split"), str):
        return None
    step = row.get("step")
    right = type(step) is int and 0 <= step < 2**31 and is_number_or_none(row.get("elbo"))
    row = {RENAMED.get(name, name): value for name, value in row.items()}
    values = (item for item in row.items() if item[0] not in ("step", "split", "elbo"))
    return row if right and all(_is_value(name, value) for name, value in values) else None


def is_number_or_none(value: Any) -> bool:
    """Return True for a JSON value that is a finite number or null."""
    return value is None or (type(value) in (int, float) and abs(value) < LARGEST)


def _is_value(name: str, value: Any) -> bool:
    if name == "timing":
        return isinstance(value, dict) and all(map(is_number_or_none, value.values()))
    if name in LISTS:
        return isinstance(value, list) and all(type(item) is int for item in value)
    return is_number_or_none(value)
