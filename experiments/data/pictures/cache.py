"""Prepared pixels on disk: a memory-mapped .npy file, and a JSON file that describes it.

The names of both files hold a digest of the options and of all names, sizes and times of the
pictures: processes that prepare the same pictures at once replace a file by an equal one. A file is
written under a temporary name and renamed when it is complete.
"""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy_format
from PIL import __version__ as pillow_version

from experiments.data import PictureOptions
from experiments.data.pictures.find import fingerprint
from experiments.data.pictures.prepare import Rows
from experiments.flags.path_checks import require_folder
from jaxvae.checkpoints.contained import read_json

FORMAT = 1
"""Number of this layout and of the preparation: raise it if the same pictures get other pixels."""
SLUG_CHARACTERS = 40
PART = ".part"
ABANDONED_SECONDS = 60
"""Age above which a temporary file without a lock is removed; a younger one may be locked soon."""


class Prepared(NamedTuple):
    """Pixels of the readable pictures.

    Attributes:
        values: [N, H, W, C] uint8, in memory or memory-mapped.
        unreadable: File that was left out -> the reason.
        notes: Note on a conversion -> number of pictures that it holds for.
        changed: True if the folder was prepared before and has changed since.
    """

    values: np.ndarray
    unreadable: dict[str, str]
    notes: dict[str, int]
    changed: bool = False


class Entry:
    """Place in a cache folder for the pixels of some pictures.

    Args:
        pictures: Folder of the pictures.
        files: Their paths, relative to the folder, in the order of the rows.
        options: How they are prepared; `options.cache` is the cache folder.
        order: Name of the order of the files.

    Attributes:
        folder: The cache folder.
    """

    def __init__(
        self, pictures: Path, files: Sequence[str], options: PictureOptions, order: str
    ) -> None:
        assert options.cache is not None, "the caller has a cache"
        self.folder = options.cache
        self._files = files
        self._about = {
            "format": FORMAT,
            "resize": options.resize and list(options.resize),
            "skip_unreadable": options.skip_unreadable,
            "channels": options.channels,
            "order": order,
        }
        how = json.dumps(self._about, sort_keys=True)
        self._about |= {"pillow": pillow_version, "pictures": os.path.realpath(pictures)}
        slug = re.sub(r"[^A-Za-z0-9]+", "-", pictures.name)[:SLUG_CHARACTERS].strip("-") or "_"
        self._source = f"{slug}-{_hash(how + os.path.realpath(pictures), 8)}"
        self._digest = _hash(f"{how} {pillow_version} {fingerprint(pictures, files)}", 24)

    def read(self) -> Prepared | None:
        """Memory-map the pixels; None if they are missing or incomplete."""
        # Under any name of the source: the folder of pictures may have been moved.
        for path in self.folder.glob(f"*-{self._digest}.json"):
            with contextlib.suppress(Exception):  # numpy raises many types for damaged files
                about = read_json(path)
                unreadable = {str(name): str(why) for name, why in about["unreadable"].items()}
                values = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
                right = values.dtype == np.uint8 and list(values.shape) == about["shape"]
                whole = len(values) + len(unreadable) == len(self._files)
                if right and whole and unreadable.keys() <= set(self._files):
                    notes = {str(note): int(count) for note, count in about["notes"].items()}
                    return Prepared(values, unreadable, notes)
        return None

    def _outdated(self) -> list[Path]:
        """Return the files of the same folder and options, from before the folder changed."""
        own = f"{self._source}-{self._digest}"
        return [path for path in self.folder.glob(f"{self._source}-*") if path.stem != own]

    def is_writable(self) -> bool:
        """Return True if the folder exists or can be created, and can be written."""
        try:
            require_folder(self.folder, "the cache")
        except ValueError:
            return False
        return True

    def write(self, rows: Rows) -> Prepared:
        """Write the pixels while they are decoded, then their description, and map them.

        Raises:
            ValueError: The disk is full or cannot be written; nothing is left there.
        """
        outdated = self._outdated()
        path = self.folder / f"{self._source}-{self._digest}.npy"
        with self._explained(rows), _made(self.folder):
            if shutil.disk_usage(self.folder).free < rows.size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            _remove_abandoned(self.folder)
            shape = _write_npy(path, rows)
            about = {"shape": shape, "notes": rows.notes, "unreadable": rows.unreadable}
            with _replacing(path.with_suffix(".json")) as file:
                file.write(json.dumps(self._about | about, indent=2).encode())
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        for old in outdated:
            old.unlink(missing_ok=True)
        return Prepared(values, rows.unreadable, dict(rows.notes), changed=bool(outdated))

    @contextlib.contextmanager
    def _explained(self, rows: Rows) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(
                f"{self.folder} must have room for the prepared pictures, "
                f"{math.ceil(rows.size / 1e6):,} MB; writing there gave: "
                f"{error.strerror or error}. Free some space, or choose another place with "
                "--data-dir."
            ) from error


def in_memory(rows: Rows) -> Prepared:
    """Decode all pictures into one array in memory."""
    values = np.empty((rows.most, *rows.shape), np.uint8)
    count = 0
    for pixels in rows:
        values[count] = pixels
        count += 1
    return Prepared(values[:count], rows.unreadable, dict(rows.notes))


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file, of this thread alone, that becomes `path` if the block succeeds."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PART}")
    try:
        with part.open("xb") as file:
            _lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)  # closed: Windows renames no open file
    finally:
        part.unlink(missing_ok=True)


def _write_npy(path: Path, rows: Rows) -> list[int]:
    """Write the rows as an .npy file while they are decoded; return its shape."""
    # Written, not memory-mapped: mapped pages would count as memory of this process.
    with _replacing(path) as file:
        file.write(_header(rows.most, rows.shape))
        count = 0
        for pixels in rows:
            file.write(np.ascontiguousarray(pixels).data)
            count += 1
        file.seek(0)
        file.write(_header(count, rows.shape))
    return [count, *rows.shape]


def _header(count: int, shape: tuple[int, ...]) -> bytes:
    """Header of an .npy file; numpy pads it, so that its length is the same for every count."""
    file = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    npy_format.write_array_header_1_0(file, about)
    return file.getvalue()


def _lock(file: IO[bytes]) -> bool:
    """Try to lock a file until it is closed; False if it is locked or cannot be."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of processes that were killed: nobody holds their locks."""
    for part in folder.glob(f".*{PART}"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > ABANDONED_SECONDS:
                with part.open("rb") as file:
                    if _lock(file):
                        part.unlink()


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder, with its parents; if the block raises, remove those that are empty."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: another process has written there
            for place in missing:
                place.rmdir()
        raise


def _hash(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:digits]
