"""The lines of metrics.jsonl: written as a run goes on, read back as anybody may have left them."""

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
"""What a line must be, in words; every other value must be a number or null, too."""
RENAMED = {"log_likelihood": "reconstruction"}
"""Names that runs of earlier releases wrote, and what they are called now."""
LISTS = ("examples", "key")
"""Values that are lists of integers: what a skipped step was computed from."""
LONGEST_LINE = 2**24
"""Bytes; a skipped step of 1,000,000 examples has half as many."""
LARGEST = 1e300
"""No number that a run writes is larger; one that is may overflow where it is drawn."""


class MetricsFile:
    """One JSON object a line: `{"step": 100, "split": "train", "elbo": -120.5, "timing": {...}}`.

    All that depends on clock or machine lies under `timing`: without it, equal runs have equal
    rows. Write a step's rows before its checkpoint; then the file of a run that was killed and
    resumed is that of one that never stopped.
    """

    def __init__(self, path: Path, keep_until_step: int) -> None:
        """Opens the file to append, without the rows that were written after a checkpoint.

        Args:
            path: the file; made if it is not there.
            keep_until_step: the step of the checkpoint to go on from; -1 for a new run.
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
        """Appends one row and hands it to the operating system.

        Raises:
            OSError: a full disk, say. The row is kept and goes before the next one.
        """
        last_step = self._last_steps.get(split, -1)
        if step <= last_step:
            raise ValueError(
                f"MetricsFile.write: steps must rise within a split, {split!r} came with step "
                f"{step} after {last_step}. Write one row a step; on resuming, give the "
                "checkpoint's step as keep_until_step."
            )
        if taken := sorted({"step", "split", "timing"} & values.keys()):
            raise ValueError(
                f"MetricsFile.write: values must not be named step, split or timing, {taken} came. "
                "Rename them, or pass them as the arguments of these names."
            )
        row = self._line({"step": step, "split": split, **values, "timing": timing})
        self._unwritten += row.encode()
        self._last_steps[split] = step
        self.flush()

    def flush(self) -> None:
        """Hands all rows to the operating system; what it does not take is kept.

        Raises:
            OSError: it does not take all.
        """
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def close(self) -> None:
        """Closes the file, after a last try to write what is left."""
        with contextlib.suppress(OSError):
            self.flush()
        self._file.close()

    @staticmethod
    def _line(row: Mapping[str, Any]) -> str:
        return json.dumps(plain(row), allow_nan=False) + "\n"


class TensorBoard:
    """The rows of `MetricsFile` as scalars `<split>/<name>`, through tensorboardX."""

    def __init__(self, folder: Path, keep_until_step: int) -> None:
        """Opens an event file; TensorBoard hides what older ones hold after `keep_until_step`."""
        require_packages("tensorboardX")
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=keep_until_step + 1)

    def write(
        self, step: int, split: str, values: Mapping[str, float], timing: Mapping[str, float]
    ) -> None:
        """Writes one row, as `MetricsFile.write` does."""
        for name, value in {**values, **{f"timing/{key}": timing[key] for key in timing}}.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a metrics file, in order, without a last line that a kill cut short.

    Raises:
        ValueError: if any other line is no row, a line is too long, or what is there is no file.
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
                    torn = text  # which the last line may be
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
    """Parse a line; None where it is no `ROW`."""
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
    """Tell whether a value of JSON is a finite number or null."""
    return value is None or (type(value) in (int, float) and abs(value) < LARGEST)


def _is_value(name: str, value: Any) -> bool:
    if name == "timing":
        return isinstance(value, dict) and all(map(is_number_or_none, value.values()))
    if name in LISTS:
        return isinstance(value, list) and all(type(item) is int for item in value)
    return is_number_or_none(value)
