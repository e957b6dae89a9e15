"""Progress of a run on a terminal or in a log, and tables of numbers with their errors."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import time
from collections.abc import Iterable
from typing import Any, Self, cast


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
        """Do nothing: `write` has already flushed, where failures are caught."""

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
        """Show nothing yet.

        Args:
            total_steps: the step at which the run ends.
            first_step: the step at which it starts, above zero when it resumes.
            quiet: show nothing at all.
            seconds_between_rows: shortest time between two lines without a terminal.
        """
        self._total_steps, self._first_step = total_steps, first_step
        self.quiet, self._seconds_between_rows = quiet, seconds_between_rows
        self._output = _Output()
        self._live: Any = None
        self._status = self._validation = ""
        self._row_time = -math.inf
        self._start: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        if not self.quiet and self._output.isatty() and os.environ.get("TERM") != "dumb":
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
        reconstruction: float,
        kl: float,
        images_per_second: float,
        row: bool = False,
    ) -> None:
        """Show the progress of training; `row` forces a line even if the last one is recent."""
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
            self.message(_columns("step", "elbo", "log p(x|z)", "kl", "images/s", "time left"))
        self._row_time = now
        nats = (f"{number:,.2f}" for number in (elbo, reconstruction, kl))
        self.message(_columns(f"{step:,}", *nats, rate, self._time_left(now, step)))

    def evaluation(self, step: int, *, elbo: float, standard_error: float, is_best: bool) -> None:
        """Show a validation ELBO and its standard error, in nats, on a line that stays."""
        value = " +- ".join(filter(None, rounded(elbo, standard_error)))
        best = ", best so far" if is_best else ""
        self.message(f"{_columns(f'{step:,}')}   validation elbo {value} nats{best}")
        self._validation = f"   validation elbo [bold]{value}[/]"
        if self._live:
            self._show_status()

    def message(self, text: str) -> None:
        """Show a line of text that stays, above the bar if there is one."""
        if self._live:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif not self.quiet:
            self._output.write(text + "\n")

    def status(self, text: str) -> None:
        """Show what is being done: below the bar if there is one, else as a line."""
        if self._live:
            from rich.markup import escape

            self._status = escape(text)
            self._show_status()
        else:
            self.message(text)

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
        from rich.text import Text

        # As Text: a message that is printed without markup would redraw a string without it, too.
        text = Text.from_markup(self._status + self._validation)
        self._live.update(Group(self._progress, text))


def _columns(step: str, *cells: str) -> str:
    return f"{step:>9}" + "".join(f" {cell:>11}" for cell in cells)


def duration(seconds: float) -> str:
    """Format a length of time in its two largest units: `42 s`, `12 min 30 s`, `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60:,} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def rounded(value: float | None, standard_error: float | None = None) -> tuple[str, str]:
    """Format a value and its standard error, both rounded at the error's second digit.

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
    """Print the final numbers, aligned.

    Args:
        title: first line: the data and the step that were measured.
        rows: (name, value, standard error or None, unit) of each number.
    """
    cells = [(name, *rounded(value, error), unit) for name, value, error, unit in rows]
    widths = [max((len(cell[column]) for cell in cells), default=0) for column in range(3)]
    output = _Output()
    output.write(f"{title}\n")
    for name, value, error, unit in cells:
        number = f"{value:>{widths[1]}} {'+-' if error else '  '} {error:<{widths[2]}}"
        output.write(f"  {name:<{widths[0]}}  {number}  {unit}\n")
