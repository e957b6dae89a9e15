"""Safe reading of a folder that somebody else may have made: only files inside it are read."""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MOST_BYTES = 2**24
"""Largest JSON file that is read; its Python objects take about 25 times as much memory."""


def require_contained(folder: Path, names: Iterable[str] = ("",)) -> None:
    """Check that files are inside their folder, with all links resolved.

    A link may point to another place in the folder. The folder itself may be reached by a link,
    since the user has chosen that link.

    Args:
        folder: folder of the files; nothing is checked if it does not exist.
        names: files and folders in it, each checked with all its contents; missing ones are
            skipped. Default: everything.

    Raises:
        ValueError: a link leaves the folder or is broken, or an entry is neither a file nor a
            folder: opening a pipe, for example, can block for ever.
    """
    if not folder.is_dir():
        return
    root = folder.resolve()
    remaining, seen = [root / name for name in names], set[Path]()
    while remaining:
        path = remaining.pop()
        if path.is_symlink():
            path = _target(path, root)
        if path in seen:
            continue
        seen.add(path)
        if path.is_dir():
            with contextlib.suppress(FileNotFoundError):  # another process saves there
                remaining += path.iterdir()
        elif path.exists() and not path.is_file():
            raise ValueError(f"{path} must be a file or a folder, but it is neither. Move it away.")


def _target(link: Path, root: Path) -> Path:
    """Follow a link to a place below `root`."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{link} must be a file or a folder, but it is a link to nothing. Move it away."
        ) from error
    if not target.is_relative_to(root):
        raise ValueError(
            f"{link} is a link to {target}, outside {root}. Links must stay inside the folder: "
            "replace it by a copy of what it points to."
        )
    return target


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Read a JSON object from a UTF-8 file.

    Raises:
        ValueError: the file is too large, is not UTF-8 or not JSON, is nested too deeply, has a
            name twice in an object, or is not an object.
    """
    if path.stat().st_size > most_bytes:
        raise ValueError(f"it has more than {most_bytes:,} bytes")
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError("its outermost value is not an object")
    return values


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"it has {name[:60]!r} twice")
        values[name] = value
    return values
