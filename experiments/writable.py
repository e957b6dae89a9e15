"""Whether a folder can be written, asked before any work, and without a trace in it."""

import os
from pathlib import Path


def require_writable(folder: Path, flag: str) -> None:
    """Refuse to work for what could not be written in the end.

    Args:
        folder: there, or to be made.
        flag: what gives another one.

    Raises:
        ValueError: it, or the nearest folder above it that is there, cannot be written.
    """
    there = folder.absolute()
    while not os.path.exists(there):
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is read-only" if there.is_dir() else "is no folder"
        raise ValueError(
            f"{folder} must be a folder that can be written; {there} {why}. Give another with "
            f"--{flag}."
        )
