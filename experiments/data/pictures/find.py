"""Find the pictures below a folder, their splits and their classes, without opening them.

If the folder has folders named train and test, and perhaps validation, these are the splits. If
every picture of a part lies in exactly one level of subfolders, the subfolders are its classes.
"""

import functools
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from experiments.data.array_names import SPLIT_WORDS
from experiments.data.labels import Labels, from_text
from experiments.data.pictures.decode import formats

WHOLE = "all"
"""Part of pictures that belong to no split."""
NAMES_SHOWN = 5


class Found(NamedTuple):
    """Pictures below a folder.

    Attributes:
        folder: The folder.
        parts: Part -> its pictures, as sorted paths relative to the folder, separated by "/".
        left_out: Description of what was left out, in words.
    """

    folder: Path
    parts: dict[str, list[str]]
    left_out: list[str]

    @property
    def files(self) -> list[str]:
        """Pictures of all parts, in their order."""
        return [name for names in self.parts.values() for name in names]


def find(folder: Path) -> Found:
    """Find the pictures of every part.

    Raises:
        ValueError: A part has no pictures, or a folder cannot be read.
    """
    named = _split_folders(folder)
    seen: set[str] = set()
    others: Counter[str] = Counter()
    if len(named) < 2:
        named = {}
        parts = {WHOLE: _below(folder, "", seen, others)}
    else:
        parts = {split: _below(folder, f"{name}/", seen, others) for split, name in named.items()}
    for part, names in parts.items():
        if not names:
            place = folder / named.get(part, "")
            raise ValueError(
                f"{place} must have images (.png, .jpg or another suffix that Pillow decodes) that "
                "no other split has; it has no such image. Add some, or correct the path."
            )
    return Found(folder, parts, _left_out(folder, list(named.values()), others))


def _split_folders(folder: Path) -> dict[str, str]:
    """Map splits to the names of their folders, which are those of splits among named arrays.

    Raises:
        ValueError: a split has two folders.
    """
    found = {}
    for split, words in SPLIT_WORDS.items():
        names = [word for word in words if (folder / word).is_dir()]
        if len(names) > 1:
            raise ValueError(
                f"{folder} must have one folder for each split; {' and '.join(names)} are the same "
                "split. Rename or merge them."
            )
        if names:
            found[split] = names[0]
    return found


def classes(found: Found) -> Labels:
    """Label pictures by their subfolders; without labels if there are no such subfolders."""
    names = {
        part: np.array([name.split("/")[-2] for name in names])
        for part, names in found.parts.items()
        if all(name.count("/") == (1 if part == WHOLE else 2) for name in names)
    }
    if len({name for some in names.values() for name in some.tolist()}) < 2:
        return Labels({}, None)
    return from_text(names)


def fingerprint(folder: Path, files: Sequence[str]) -> str:
    """Hash the names, sizes and times of files below a folder, in hexadecimal digits."""
    total = hashlib.sha256()
    for name in files:
        try:
            status = os.stat(os.path.join(folder, name))
            about = f"{status.st_size} {status.st_mtime_ns} {stat.S_IFMT(status.st_mode)}"
        except OSError as error:
            about = str(error.errno)
        total.update(f"{name}\0{about}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def total_bytes(folder: Path, files: Sequence[str]) -> int:
    """Return the size of all files below a folder together."""
    paths = (os.path.join(folder, name) for name in files)
    return sum(os.path.getsize(path) for path in paths if os.path.isfile(path))


def _below(folder: Path, start: str, seen: set[str], others: Counter[str]) -> list[str]:
    """Find pictures below folder/start; skip folders in `seen`, links to them included."""
    names = []
    top = os.path.join(folder, start) if start else str(folder)
    for here, folders, files in os.walk(top, onerror=_unreadable_folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.path.relpath(here, folder).replace(os.sep, "/")
        for name in files:
            kind = _kind(name)
            if kind is None:
                names.append(name if inside == "." else f"{inside}/{name}")
            else:
                others[kind] += 1
    return sorted(names, key=lambda name: name.split("/"))


def _kind(name: str) -> str | None:
    """Kind of a file that is not a picture, for counting; None for a picture."""
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith("."):
        return "hidden"
    if suffix in _suffixes():
        return None
    if not suffix:
        return "without a suffix"
    return suffix if re.fullmatch(r"\.\w{1,10}", suffix) else "others"


@functools.cache
def _suffixes() -> frozenset[str]:
    """Suffixes of the formats that are decoded; Pillow opens MPO files as JPEG."""
    from PIL import Image

    known = {*formats(), "MPO"}
    return frozenset(
        suffix for suffix, name in Image.registered_extensions().items() if name in known
    )


def _left_out(folder: Path, named: list[str], others: Counter[str]) -> list[str]:
    """Describe files that are not pictures, and entries beside the folders of the splits."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common())
    plural = "s" * (others.total() != 1)
    lines = [f"{others.total():,} file{plural} left out: {kinds}"] if others else []
    if not named:
        return lines
    beside = sorted(
        repr(path.name)
        for path in folder.iterdir()
        if path.name not in named and not path.name.startswith(".")
    )
    more = f" and {len(beside) - NAMES_SHOWN:,} more" if len(beside) > NAMES_SHOWN else ""
    if beside:
        shown = ", ".join(beside[:NAMES_SHOWN])
        lines.append(f"left out, as beside {', '.join(named)}: {shown}{more}")
    return lines


def _unreadable_folder(error: OSError) -> NoReturn:
    raise ValueError(
        f"All folders below folder:PATH must be readable; {error.filename} gave: {error.strerror}."
        " Change its permissions or move it away."
    )
