"""Progress bar for work of known length."""

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def counted(what: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, nothing elsewhere; yield the function that sets the count."""
    if quiet or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich import console, progress

    columns = (
        progress.MofNCompleteColumn(),
        progress.TextColumn(what),
        progress.BarColumn(None),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console.Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
