"""Rows of metrics.jsonl and TensorBoard files; rows of metrics.jsonl are checked when read."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import struct
import time
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


class AppendedFile:
    """A file that grows at its end; bytes that the disk has no room for wait in memory."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""

    def append(self, data: bytes) -> None:
        """Append bytes, after all that still wait.

        Raises:
            OSError: as in `flush`.
        """
        self._unwritten += data
        self.flush()

    def flush(self) -> None:
        """Hand all bytes to the operating system.

        Raises:
            OSError: it did not accept all of them, for example on a full disk.
        """
        while self._unwritten:  # an unbuffered write may accept only a part
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def close(self) -> None:
        """Close the file, after a last attempt to write the bytes that wait."""
        with contextlib.suppress(OSError):
            self.flush()
        self._file.close()


class MetricsFile(AppendedFile):
    """One JSON object a line: `{"step": 100, "split": "train", "elbo": -120.5, "timing": {...}}`.

    All values that depend on clock or machine are under `timing`: without it, equal runs have equal
    rows. Write the rows of a step before its checkpoint: then a run that was killed and resumed has
    the same rows as an uninterrupted run.

    Attributes:
        best_elbo: best ELBO of the validation rows up to `keep_until_step`, else minus infinity.
        seconds: time that the run has taken up to these rows.
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
        elbos = (row.get("elbo") for row in kept if row["split"] == "validation")
        self.best_elbo = max((elbo for elbo in elbos if elbo is not None), default=-math.inf)
        times = ((row.get("timing") or {}).get("seconds") for row in kept)
        self.seconds = max((seconds for seconds in times if seconds is not None), default=0.0)
        super().__init__(path)

    def write(
        self, step: int, split: str, values: Mapping[str, Any], timing: Mapping[str, float]
    ) -> None:
        """Append one row and hand it to the operating system.

        Raises:
            OSError: as in `flush`; the row is written before the next one.
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
        self._last_steps[split] = step
        self.append(row.encode())

    @staticmethod
    def _line(row: Mapping[str, Any]) -> str:
        return json.dumps(plain(row), allow_nan=False) + "\n"


class TensorBoard(AppendedFile):
    """An event file with the rows of `MetricsFile` as scalars `<split>/<name>`.

    It does without the `SummaryWriter` of tensorboardX, whose thread ends at the first write that
    fails: the thread that trains would then wait for it for ever.
    """

    def __init__(self, folder: Path, keep_until_step: int) -> None:
        """Open an event file; TensorBoard hides rows of older files after `keep_until_step`."""
        require_packages("tensorboardX")
        from tensorboardX.proto.event_pb2 import SessionLog

        folder.mkdir(exist_ok=True)
        super().__init__(folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}")
        self._append_event(file_version="brain.Event:2")
        start = SessionLog(status=SessionLog.START)
        self._append_event(step=keep_until_step + 1, session_log=start)

    def write(
        self, step: int, split: str, values: Mapping[str, Any], timing: Mapping[str, float]
    ) -> None:
        """Write one row, as `MetricsFile.write` does."""
        from tensorboardX.proto.summary_pb2 import Summary

        named = {**values, **{f"timing/{key}": timing[key] for key in timing}}
        scalars = [
            Summary.Value(tag=f"{split}/{name}", simple_value=float(value))
            for name, value in named.items()
        ]
        self._append_event(step=step, summary=Summary(value=scalars))

    def _append_event(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        event = Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(event))
        checks = [struct.pack("<I", masked_crc32c(data)) for data in (length, event)]
        self.append(length + checks[0] + event + checks[1])


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
