"""Progress of work that takes more than a moment: what is being done, and how far it is."""

import contextlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator

from experiments.record.display import duration

FIRST_SECONDS = 1.0
"""Time after which work is announced; shorter work is not worth a line."""
SECONDS_BETWEEN = 10.0
"""Time between two lines about the same work."""


def to_stderr(line: str) -> None:
    """Print a line to standard error; a standard error that is gone stops nothing."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def without_announcements(text: str) -> str:
    """Remove the lines of `announced` from a text: on a slow machine there are more of them.

    >>> without_announcements("Starting JAX ...\\nRows: 7 of 10, compiling\\nerror: no.\\n")
    'error: no.\\n'
    """
    announcement = re.compile(r".* (\.\.\.|so far)$|.*: [\d,]+ of [\d,]+(, .*)?$")
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not announcement.match(line.rstrip()))


@contextlib.contextmanager
def announced(
    what: str,
    how_far: Callable[[], str] = lambda: "",
    *,
    quiet: bool = False,
    say: Callable[[str], None] = to_stderr,
) -> Iterator[None]:
    """Say what is being done once it takes `FIRST_SECONDS`, and how far it is from then on.

    A thread speaks, so the work itself may be one long call, such as a compilation.

    Args:
        what: the work, as "Compiling the step".
        how_far: returns the part that is done, in words; "" shows the time so far.
        quiet: say nothing.
        say: shows a line.
    """
    if quiet:
        yield
        return
    started, done = time.monotonic(), threading.Event()

    def speak() -> None:
        wait = FIRST_SECONDS
        while not done.wait(wait):
            part = how_far()
            if not part and wait == SECONDS_BETWEEN:
                part = f"{duration(time.monotonic() - started)} so far"
            say(f"{what}: {part}" if part else f"{what} ...")
            wait = SECONDS_BETWEEN

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        done.set()
        speaker.join()


@contextlib.contextmanager
def counted(
    what: str,
    total: int,
    *,
    first: str = "",
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
) -> Iterator[Callable[[int], None]]:
    """Show how many of some things are done; yield the function that sets the number.

    Args:
        what: the things, as "test examples".
        total: their number.
        first: what is done before the first of them, such as "compiling".
        quiet: show nothing.
        say: shows a line; None: a bar on a terminal, lines on standard error elsewhere.
    """
    if say is None and not quiet and sys.stderr.isatty():
        with _bar(what, total, first) as set_bar:
            yield set_bar
        return
    started, done = time.monotonic(), 0

    def how_far() -> str:
        of = f"{done:,} of {total:,}"
        if not done:
            return f"{of}, {first}" if first else of
        left = (time.monotonic() - started) / done * (total - done)
        return f"{of}, {duration(left)} left"

    def progress(number: int) -> None:
        nonlocal done
        done = number

    with announced(what, how_far, quiet=quiet, say=say or to_stderr):
        yield progress


@contextlib.contextmanager
def _bar(what: str, total: int, first: str) -> Iterator[Callable[[int], None]]:
    from rich import console, progress

    columns = (
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.description}"),
        progress.BarColumn(None),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console.Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"{what}, {first}" if first else what, total=total)
        yield lambda done: bar.update(task, completed=done, description=what)
