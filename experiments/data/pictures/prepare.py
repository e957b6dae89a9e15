"""Read the pictures of a data set by several threads: first their headers, then their pixels."""

import itertools
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from experiments.data import PictureOptions
from experiments.data.pictures.decode import Header, decode_as_shown, read_header
from experiments.flags.path_checks import require_file
from experiments.flags.terminal import one_line
from experiments.record.progress import counted

MOST_THREADS = 16
HEADERS_AT_ONCE = 32
BYTES_AT_ONCE = 2**20
"""Decoded bytes that a thread reads in one go, so that small pictures cost few hand-overs."""
PIECES_PER_THREAD = 2
"""Pieces that are decoded ahead of the one that is needed next: they bound the memory."""
SECONDS_UNSHOWN = 2.0
"""Time after which progress is shown."""
NAMED = 3
"""Most unreadable pictures that a message names."""

Result = TypeVar("Result")


class Unreadable(NamedTuple):
    """The reason why a picture cannot be read."""

    reason: str


class Plan(NamedTuple):
    """What the headers say about the pictures of a data set.

    Attributes:
        channels: Number of channels that all pictures get.
        picture_bytes: Size of the first readable picture once it is decoded.
        unreadable: File -> the reason why its header cannot be read.
    """

    channels: int
    picture_bytes: int
    unreadable: dict[str, str]


class Rows:
    """Pixels of all readable pictures, in their order: an iterator that decodes a few ahead.

    Args:
        folder: Folder of the pictures.
        files: Their paths, relative to the folder.
        plan: What their headers say.
        options: How to prepare them.

    Attributes:
        shape: Shape [H, W, C] of every row.
        most: Number of rows if no further picture turns out to be unreadable.
        unreadable: File -> the reason why it cannot be read; complete at the end.
        notes: Note -> number of pictures that it holds for; complete at the end.

    Raises:
        ValueError: No picture can be read; while iterating: a picture cannot be read and is not to
            be skipped, or has another size.
    """

    def __init__(
        self, folder: Path, files: Sequence[str], plan: Plan, options: PictureOptions
    ) -> None:
        self._folder, self._files, self._options = folder, files, options
        self.unreadable, self.notes = dict(plan.unreadable), Counter[str]()
        self.most = len(files) - len(plan.unreadable)
        self._rows = self._decoded(plan)
        self._first = next(self._rows)
        self.shape = self._first.shape

    @property
    def size(self) -> int:
        """Bytes of all rows, if no further picture turns out to be unreadable."""
        return self.most * math.prod(self.shape)

    def __iter__(self) -> Iterator[np.ndarray]:
        yield self._first
        yield from self._rows

    def _decoded(self, plan: Plan) -> Iterator[np.ndarray]:
        resize = self._options.resize
        names = [name for name in self._files if name not in plan.unreadable]
        paths = (os.path.join(self._folder, name) for name in names)
        first: tuple[str, tuple[int, ...]] | None = None
        at_once = max(1, min(HEADERS_AT_ONCE, BYTES_AT_ONCE // plan.picture_bytes))
        pictures = _in_order(
            lambda path: decode_as_shown(path, plan.channels, resize), paths, at_once
        )
        progress = _counted_if_long("pictures prepared", self.most, quiet=self._options.quiet)
        for name, found in zip(names, progress(pictures), strict=True):
            if isinstance(found, Unreadable):
                self.unreadable[name] = found.reason
                continue
            shape = found.pixels.shape
            first = first or (name, shape)
            if shape != first[1]:
                raise _sizes(self._folder, *first, name, shape)
            self.notes.update(found.notes)
            yield found.pixels
        _check_readable(self._folder, self._files, self.unreadable, self._options)


def plan(folder: Path, files: Sequence[str], options: PictureOptions) -> Plan:
    """Read the headers of all pictures.

    Raises:
        ValueError: Pictures differ in size, or cannot be read, and the options do not allow it.
    """
    unreadable: dict[str, str] = {}
    first: tuple[str, Header] | None = None
    channels = 1
    paths = (os.path.join(folder, name) for name in files)
    headers = _in_order(read_header, paths, HEADERS_AT_ONCE)
    progress = _counted_if_long("headers of pictures read", len(files), quiet=options.quiet)
    for name, found in zip(files, progress(headers), strict=True):
        if isinstance(found, Unreadable):
            unreadable[name] = found.reason
            continue
        channels = max(channels, found.channels)
        first = first or (name, found)
        # Turned pictures may have width and height swapped: `Rows` compares them as shown.
        if options.resize is None and sorted(found[:2]) != sorted(first[1][:2]):
            one, other = first[1][1::-1], found[1::-1]
            raise _sizes(folder, first[0], one, name, other)
    _check_readable(folder, files, unreadable, options, "at least ")
    assert first is not None, "a picture can be read"
    channels = options.channels or channels
    return Plan(channels, first[1].width * first[1].height * channels, unreadable)


def _check_readable(
    folder: Path,
    files: Sequence[str],
    unreadable: dict[str, str],
    options: PictureOptions,
    at_least: str = "",
) -> None:
    if not unreadable or (options.skip_unreadable and len(unreadable) < len(files)):
        return
    some = sorted(unreadable.items())[:NAMED]
    listed = ", ".join(f"{folder / name} ({reason})" for name, reason in some)
    more = f" and {len(unreadable) - NAMED:,} more" if len(unreadable) > NAMED else ""
    skip = "" if options.skip_unreadable else ", or add --skip-unreadable to leave them out"
    raise ValueError(
        f"All images must be readable; {at_least}{len(unreadable):,} of {len(files):,} are not: "
        f"{listed}{more}. Repair them or move them away{skip}."
    )


def _sizes(
    folder: Path, first: str, one: tuple[int, ...], file: str, other: tuple[int, ...]
) -> ValueError:
    (first, one), (file, other) = sorted([(first, one), (file, other)])
    return ValueError(
        f"All images must have one size; {folder / first} is {one[1]} x {one[0]} and "
        f"{folder / file} is {other[1]} x {other[0]}. Add --resize H W (--resize {one[0]} {one[1]},"
        " for example) to scale and crop all of them."
    )


def _in_order(
    read: Callable[[Path], Result], paths: Iterator[str], at_once: int
) -> Iterator[Result | Unreadable]:
    """Read files by several threads, a few pieces ahead; yield the results in order."""
    count = min(MOST_THREADS, os.cpu_count() or 1)

    def attempt(path: str) -> Result | Unreadable:
        try:
            require_file(Path(path))
            return read(Path(path))
        except Exception as error:  # Pillow raises many types for damaged files
            return Unreadable(one_line(str(error)) or type(error).__name__)

    def read_piece(piece: list[str]) -> list[Result | Unreadable]:
        return [attempt(path) for path in piece]

    pieces: deque[Future[list[Result | Unreadable]]] = deque()
    with ThreadPoolExecutor(count) as threads:
        while True:
            while len(pieces) < PIECES_PER_THREAD * count and (
                piece := list(itertools.islice(paths, at_once))
            ):
                pieces.append(threads.submit(read_piece, piece))
            if not pieces:
                return
            yield from pieces.popleft().result()


def _counted_if_long(
    what: str, total: int, *, quiet: bool
) -> Callable[[Iterator[Result]], Iterator[Result]]:
    """Return a function that passes items on, and shows their number once it takes long."""

    def passing(items: Iterator[Result]) -> Iterator[Result]:
        start, show = time.monotonic(), None
        with ExitStack() as stack:
            for done, item in enumerate(items):
                if show is None and time.monotonic() - start > SECONDS_UNSHOWN:
                    show = stack.enter_context(counted(what, total, quiet=quiet))
                if show is not None:
                    show(done)
                yield item

    return passing
