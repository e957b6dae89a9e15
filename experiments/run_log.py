"""What a run writes down and what it shows: metrics, JSON files, progress, the final table."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, cast

from experiments.metrics_row import read_metrics as read_metrics
from experiments.packages import require_packages


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one step: readers and crashes find the old text or the new, no part."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        # "x": never through a link that lies there. A file's name may hold bytes that are no text.
        with part.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, all or nothing; NaN and infinity become null."""
    write_text(path, json.dumps(_plain(value), indent=2, allow_nan=False, default=str) + "\n")


def _plain(value: Any) -> Any:
    """The same value in JSON's own types: arrays as lists, numbers that are not finite as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


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
        self, step: int, split: str, values: Mapping[str, float], timing: Mapping[str, float]
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
        return json.dumps(_plain(row), allow_nan=False) + "\n"


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


class _Output:
    """Standard output that never raises: once its reader is gone, text is dropped."""

    def __init__(self) -> None:
        self._stream = sys.stdout or io.StringIO()
        self.encoding = getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return not self._stream.closed and self._stream.isatty()

    def write(self, text: str) -> None:
        try:
            self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
            self._stream.flush()
        except (OSError, ValueError):
            self._discard()

    def flush(self) -> None:
        """Nothing: `write` has flushed already, where a failure is caught."""

    def _discard(self) -> None:
        # The descriptor, not only this object: Python flushes it once more at exit, and would fail.
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as null:
            os.dup2(null.fileno(), self._stream.fileno())


class Display:
    """Progress of a training run: a live bar on a terminal, a few aligned lines anywhere else.

    Use it as a context manager. A standard output that breaks mid-run never stops the run.
    """

    def __init__(
        self,
        total_steps: int,
        first_step: int = 0,
        *,
        quiet: bool = False,
        seconds_between_rows: float = 10.0,
    ) -> None:
        """Shows nothing yet.

        Args:
            total_steps: the step at which the run ends.
            first_step: the step from which it starts, above zero when it resumes.
            quiet: show nothing at all.
            seconds_between_rows: the least time between two lines where there is no terminal.
        """
        self._total_steps, self._first_step = total_steps, first_step
        self._quiet, self._seconds_between_rows = quiet, seconds_between_rows
        self._output = _Output()
        self._live: Any = None
        self._status = self._validation = ""
        self._row_time = -math.inf
        self._start: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        if not self._quiet and self._output.isatty() and os.environ.get("TERM") != "dumb":
            self._start_live()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def update(
        self,
        step: int,
        *,
        elbo: float,
        log_likelihood: float,
        kl: float,
        images_per_second: float,
        row: bool = False,
    ) -> None:
        """Shows where training stands; `row` asks for a line even if the last one is fresh."""
        rate = f"{images_per_second:,.0f}"
        if self._live:
            self._progress.update(self._task, completed=step)
            self._status = f"elbo [bold]{elbo:,.2f}[/]   kl {kl:,.2f}   images/s {rate}"
            self._show_status()
            return
        now = time.monotonic()
        self._start = self._start or (now, step)
        fresh = now - self._row_time < self._seconds_between_rows
        if fresh and not row and step < self._total_steps:
            return
        if self._row_time == -math.inf:
            self.message(_columns("step", "elbo", "log-lik", "kl", "images/s", "time left"))
        self._row_time = now
        nats = (f"{number:,.2f}" for number in (elbo, log_likelihood, kl))
        self.message(_columns(f"{step:,}", *nats, rate, self._time_left(now, step)))

    def evaluation(self, step: int, *, elbo: float, standard_error: float, is_best: bool) -> None:
        """Shows a validation elbo and its standard error, in nats, on a line that stays."""
        value = " +- ".join(filter(None, rounded(elbo, standard_error)))
        best = ", best so far" if is_best else ""
        self.message(f"{_columns(f'{step:,}')}   validation elbo {value} nats{best}")
        self._validation = f"   validation elbo [bold]{value}[/]"
        if self._live:
            self._show_status()

    def message(self, text: str) -> None:
        """Shows a line of text that stays, above the bar if there is one."""
        if self._live:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif not self._quiet:
            self._output.write(text + "\n")

    def _time_left(self, now: float, step: int) -> str:
        start, start_step = self._start or (now, step)
        if step == start_step:
            return "-"
        return duration((now - start) / (step - start_step) * (self._total_steps - step))

    def _start_live(self) -> None:
        from rich import console, live, progress

        left = progress.TimeRemainingColumn()
        columns = ("step", progress.MofNCompleteColumn(), progress.BarColumn(None), left, "left")
        screen = console.Console(file=cast(Any, self._output))
        self._progress = progress.Progress(*columns, console=screen, expand=True)
        self._task = self._progress.add_task(
            "", total=self._total_steps, completed=self._first_step
        )
        self._live = live.Live(console=screen, refresh_per_second=4)
        self._live.start()
        self._status = "compiling the first step"
        self._show_status()

    def _show_status(self) -> None:
        from rich.console import Group

        self._live.update(Group(self._progress, self._status + self._validation))


def _columns(step: str, *cells: str) -> str:
    return f"{step:>9}" + "".join(f"{cell:>12}" for cell in cells)


def duration(seconds: float) -> str:
    """A length of time in its two largest units: `42 s`, `12 min 30 s`, `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60:,} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def rounded(value: float | None, standard_error: float | None = None) -> tuple[str, str]:
    """A value and its standard error as text, both cut at the error's second digit.

    >>> rounded(-95.12345, 0.4321)
    ('-95.12', '0.43')
    >>> rounded(0.0123456, 0.0)
    ('0.012346', '0')
    """
    if value is None or not math.isfinite(value):
        return "nan", ""
    if standard_error is None or not math.isfinite(standard_error):
        return (f"{value:,}" if isinstance(value, int) else f"{value:,.5g}"), ""
    if standard_error <= 1e-9 * abs(value):  # a number that is the same for every example
        return f"{value:,.5g}", "0"
    places, largest = math.floor(math.log10(standard_error)), max(abs(value), standard_error)
    if not 1e-4 <= largest < 1e12:
        digits = max(0, math.floor(math.log10(largest)) - places + 1)
        return f"{value:.{digits}e}", f"{standard_error:.1e}"
    return f"{value:,.{max(0, 1 - places)}f}", f"{standard_error:,.{max(0, 1 - places)}f}"


def table(title: str, rows: Iterable[tuple[str, float | None, float | None, str]]) -> None:
    """Prints the final numbers, aligned.

    Args:
        title: what was measured, on which data.
        rows: (name, value, standard error or None, unit) of each number.
    """
    cells = [(name, *rounded(value, error), unit) for name, value, error, unit in rows]
    widths = [max((len(cell[column]) for cell in cells), default=0) for column in range(3)]
    output = _Output()
    output.write(f"{title}\n")
    for name, value, error, unit in cells:
        number = f"{value:>{widths[1]}} {'+-' if error else '  '} {error:<{widths[2]}}"
        output.write(f"  {name:<{widths[0]}}  {number}  {unit}\n")
