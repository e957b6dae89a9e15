"""Text and JSON files that are replaced whole."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
    write_text(path, json.dumps(plain(value), indent=2, allow_nan=False, default=str) + "\n")


def plain(value: Any) -> Any:
    """The same value in JSON's own types: arrays as lists, numbers that are not finite as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
