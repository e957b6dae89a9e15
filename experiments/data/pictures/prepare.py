"""Decode the pictures of a data set in several threads, a few pictures ahead."""

import itertools
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from experiments.data import PictureOptions
from experiments.data.pictures.decode import decode_as_shown
from experiments.flags.path_checks import require_file
from experiments.flags.terminal import one_line
from experiments.record.progress import counted

MOST_THREADS = 16
MOST_AT_ONCE = 32
BYTES_AT_ONCE = 2**17
"""Bytes of files that a thread reads in one go, so that small pictures cost few hand-overs."""
PIECES_PER_THREAD = 2
"""Pieces that are decoded ahead; few, to bound the memory."""
NAMED = 3
"""Most unreadable pictures that a message names."""

Result = TypeVar("Result")


class Unreadable(NamedTuple):
    """The reason why a picture cannot be read."""

    reason: str


class FoundColour(Exception):
    """Raised at the first picture in colour, if those before it were grey."""


class Rows:
    """Pixels of all readable pictures, in their order: an iterator that decodes a few ahead.

    Args:
        folder: Folder of the pictures.
        files: Their paths, relative to the folder.
        options: How to prepare them.

    Attributes:
        shape: Shape [H, W, C] of every row.
        most: Number of rows if all pictures can be read.
        unreadable: File -> the reason why it cannot be read; complete at the end.
        notes: Note -> number of pictures that it holds for; complete at the end.

    Raises:
        ValueError: No picture can be read; while iterating: a picture cannot be read and is not to
            be skipped, or has another size.
        FoundColour: While iterating, if `options.channels` is None. Start again with 3.
    """

    def __init__(self, folder: Path, files: Sequence[str], options: PictureOptions) -> None:
        self._folder, self._files, self._options = folder, files, options
        self.unreadable: dict[str, str] = {}
        self.notes = Counter[str]()
        self.most = len(files)
        self._rows = self._decoded()
        self._first = next(self._rows)
        self.shape = self._first.shape

    @property
    def size(self) -> int:
        """Bytes of all rows if all pictures can be read."""
        return self.most * math.prod(self.shape)

    def __iter__(self) -> Iterator[np.ndarray]:
        yield self._first
        yield from self._rows

    def _decoded(self) -> Iterator[np.ndarray]:
        options, first = self._options, None
        pictures = _in_order(
            lambda path: decode_as_shown(path, options.channels, options.resize),
            [os.path.join(self._folder, name) for name in self._files],
        )
        with counted("Preparing pictures", self.most, quiet=options.quiet) as progress:
            for done, (name, found) in enumerate(zip(self._files, pictures, strict=True)):
                progress(done)
                if isinstance(found, Unreadable):
                    self.unreadable[name] = found.reason
                    continue
                pixels = found.pixels
                first = first or (name, pixels.shape)
                if pixels.shape[:2] != first[1][:2]:
                    raise _different_sizes(self._folder, *first, name, pixels.shape)
                if pixels.shape[2] > first[1][2]:
                    raise FoundColour
                self.notes.update(found.notes)
                yield np.broadcast_to(pixels, first[1])  # grey among pictures in colour
        self._check_readable()

    def _check_readable(self) -> None:
        """Raise if pictures are unreadable, unless they are to be skipped and others are left."""
        count, skip = len(self.unreadable), self._options.skip_unreadable
        if not count or (skip and count < len(self._files)):
            return
        some = sorted(self.unreadable.items())[:NAMED]
        listed = ", ".join(f"{self._folder / name} ({reason})" for name, reason in some)
        more = f" and {count - NAMED:,} more" if count > NAMED else ""
        remedy = "" if skip else ", or add --skip-unreadable to leave them out"
        raise ValueError(
            f"All images must be readable; {count:,} of {len(self._files):,} are not: "
            f"{listed}{more}. Repair them or move them away{remedy}."
        )


def _different_sizes(
    folder: Path, first: str, one: tuple[int, ...], file: str, other: tuple[int, ...]
) -> ValueError:
    (first, one), (file, other) = sorted([(first, one), (file, other)])
    return ValueError(
        f"All images must have one size; {folder / first} is {one[1]} x {one[0]} and "
        f"{folder / file} is {other[1]} x {other[0]}. Add --resize H W (--resize {one[0]} {one[1]},"
        " for example) to scale and crop all of them."
    )


def _in_order(
    read: Callable[[Path], Result], paths: Sequence[str]
) -> Iterator[Result | Unreadable]:
    """Read files in several threads, a few pieces ahead; yield the results in order."""
    count = min(MOST_THREADS, os.cpu_count() or 1)
    size = os.path.getsize(paths[0]) if os.path.isfile(paths[0]) else 0
    at_once = max(1, min(MOST_AT_ONCE, BYTES_AT_ONCE // max(1, size)))
    remaining = iter(paths)

    def attempt(path: str) -> Result | Unreadable:
        try:
            file = Path(path)
            require_file(file)
            return read(file)
        except Exception as error:  # Pillow raises many types for damaged files
            reason = str(error).replace(f" {path!r}", "")  # messages name the path themselves
            return Unreadable(one_line(reason) or type(error).__name__)

    def read_piece(piece: list[str]) -> list[Result | Unreadable]:
        return [attempt(path) for path in piece]

    pieces: deque[Future[list[Result | Unreadable]]] = deque()
    with ThreadPoolExecutor(count) as threads:
        while True:
            while len(pieces) < PIECES_PER_THREAD * count and (
                piece := list(itertools.islice(remaining, at_once))
            ):
                pieces.append(threads.submit(read_piece, piece))
            if not pieces:
                return
            yield from pieces.popleft().result()
