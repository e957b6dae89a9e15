"""What a checkpoint says of its items, and what is wrong where they are not that."""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvae.contained import read_json

ABOUT = "metadata"
"""File of the values in the folder of an item that is JSON; orbax's own name for it."""
SYSTEM_ERRORS = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "Input/output error",
    "Read-only file system",
)
"""As systems word them."""


class Damaged(ValueError):
    """The files of a checkpoint are not what was saved.

    Args:
        folder: of the checkpoint.
        reason: what is wrong with them.
    """

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(
            f"checkpoint {folder.name} is damaged: {reason}. Move the folder {folder} away to go "
            "on from the checkpoint before it."
        )
        self.reason = reason


class SaveFailed(OSError):
    """A checkpoint could not be written; those before it are whole."""


def digest(tree: Any) -> str:
    """SHA-256 over a tree's paths, types, shapes and bytes.

    >>> digest({"a": np.zeros(2)}) == digest({"a": np.zeros(3)})
    False
    """
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        name = jax.tree_util.keystr(path)
        total.update(f"{name} {array.dtype} {np.shape(leaf)} ".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def digest_of_values(values: dict[str, Any]) -> str:
    """SHA-256 of JSON values.

    >>> digest_of_values({"a": 1, "b": [2]}) == digest_of_values({"b": [2], "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def leaves(tree: Any) -> dict[str, str]:
    """The type and shape of every leaf, by its path."""
    return {
        jax.tree_util.keystr(path): f"{np.dtype(leaf.dtype).name} {list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def num_values(leaves: dict[str, str]) -> int:
    """Count the entries of all arrays, from what `leaves` says of them.

    >>> num_values(leaves({"a": np.zeros((2, 3)), "b": np.zeros(())}))
    7

    Raises:
        ValueError: a text is not one of `leaves`.
    """
    shapes = [re.fullmatch(r"\w+ \[([\d, ]*)\]", text) for text in leaves.values()]
    if not all(shapes):
        raise ValueError(f"the leaves must be texts such as 'float32 [3, 4]', got {leaves}"[:200])
    return sum(math.prod(map(int, re.findall(r"\d+", shape[1]))) for shape in shapes if shape)


def read_about(folder: Path, newest_format: int) -> dict[str, Any]:
    """Read a checkpoint's own description, and check what reading the checkpoint relies on.

    Args:
        folder: of the checkpoint.
        newest_format: of a newer one the fields are unknown, and not checked.

    Raises:
        ValueError: naming what is wrong.
    """
    about = read_json(folder / "about" / ABOUT)
    told = about.pop("digest", None)  # the first release had none
    if told not in (None, digest_of_values(about)):
        raise ValueError("what it says of itself does not have the digest it was saved with")
    if type(about.get("format")) is not int:
        raise ValueError("what it says of itself has no format")
    if about["format"] > newest_format:
        return about
    if not {"digests", "leaves"} <= about.keys():
        raise ValueError("what it says of itself is not whole")
    right = {
        "step": about.get("step", int(folder.name)) == int(folder.name),
        "digests": _is_texts(about["digests"]),
        "leaves": isinstance(about["leaves"], dict)
        and all(map(_is_texts, about["leaves"].values())),
    }
    if wrong := [name for name, holds in right.items() if not holds]:
        raise ValueError(f"what it says of itself has another {wrong[0]} than was saved")
    return about


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def check_leaves(step: int, name: str, saved: dict[str, str], asked: dict[str, str]) -> None:
    """Refuse to restore a step's item into leaves that it does not have.

    Args:
        step, name: of the item.
        saved, asked: what `leaves` said of it when it was saved, and says of the target.

    Raises:
        ValueError: naming the first leaf that differs.
    """
    for path in sorted(saved.keys() | asked.keys()):
        there, here = saved.get(path, "absent"), asked.get(path, "absent")
        if there != here:
            raise ValueError(
                f"checkpoint {step} holds another model or optimizer: {name}{path} is {there} "
                f"there and {here} here. Build both as they were when it was saved."
            )


def reason_of(error: Exception) -> str:
    """What went wrong, as a part of a line; of a system's error only that.

    >>> reason_of(ValueError("Failed to write a file: No space left on device [code 28]"))
    'No space left on device'
    """
    text = " ".join(str(error).split())
    known = [reason for reason in SYSTEM_ERRORS if reason in text]
    return known[0] if known else text[:200].rstrip(".") or type(error).__name__
