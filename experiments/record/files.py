"""Atomic replacement of text and JSON files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: readers, also after a crash, find the old text or the new."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        # "x" never writes through a link that exists. Texts with file names may not be valid UTF-8.
        with part.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; NaN and infinity become null."""
    write_text(path, json.dumps(plain(value), indent=2, allow_nan=False, default=str) + "\n")


def plain(value: Any) -> Any:
    """Convert a value to JSON types: arrays become lists, NaN and infinity become None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
