"""What a checkpoint says of its items, and what is wrong where they are not that."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from jaxvae.checkpoints.contained import read_json

ABOUT = "metadata"
"""File of the values in the folder of an item that is JSON; orbax's own name for it."""
REMEDIES = {
    "No space left on device": "Make room",
    "Disk quota exceeded": "Make room, or ask for a larger quota",
    "File too large": "Make room for larger files (ulimit -f)",
    "Input/output error": "Check the disk",
    "Read-only file system": "Make the file system writable",
    "Permission denied": "Make the folder writable",
}
"""Errors as systems word them -> what to do about a file that could not be written."""
MAY_PASS = frozenset(list(REMEDIES)[:4])
"""Those that somebody else may cure while a program runs."""


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


class Unusable(ValueError):
    """No checkpoint can be saved in a folder and read again: training there would be lost."""


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


def read_description(folder: Path, newest_format: int) -> dict[str, Any]:
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


def check_savable(items: dict[str, Any]) -> None:
    """Check that a checkpoint can hold items: orbax saves no empty item and no empty array.

    Args:
        items: name -> pytree of anything that has a shape and dtype, or of Python's numbers.

    Raises:
        ValueError: naming the item or leaf.
    """
    for name, tree in items.items():
        held: dict[str, str] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            where = f"{name}{jax.tree_util.keystr(path)}"
            dtype = getattr(leaf, "dtype", None) or np.asarray(leaf).dtype
            number = jax.dtypes.issubdtype(dtype, np.number)
            if not (number or jax.dtypes.issubdtype(dtype, np.bool_)) or 0 in np.shape(leaf):
                raise ValueError(
                    f"{where} must be an array of numbers, got {type(leaf).__name__} of type "
                    f"{dtype} and shape {list(np.shape(leaf))}. Leave it out."
                )
            # orbax writes the names of a leaf with dots between them.
            written = jax.tree_util.keystr(path, simple=True, separator=".")
            if written in held:
                raise ValueError(
                    f"{where} and {held[written]} have one name in a checkpoint, {written}. "
                    "Rename one of them."
                )
            held[written] = where
        if not held:
            raise ValueError(f"{name} must have an array of numbers, it has none.")


def check_leaves(step: int, name: str, saved: dict[str, str], asked: dict[str, str]) -> None:
    """Refuse to restore a step's item into leaves that it does not have.

    Args:
        step, name: of the item.
        saved, asked: what `leaves` said of it when it was saved, and says of the target.

    Raises:
        ValueError: naming the first leaf that differs.
    """
    different = {
        path: (saved.get(path, "absent"), asked.get(path, "absent"))
        for path in sorted(saved.keys() | asked.keys())
        if saved.get(path) != asked.get(path)
    }
    other = {path: both for path, both in different.items() if not _differ_in_width(*both)}
    for path, (there, here) in (other or different).items():
        leaf = f"{name}{path} is {there} there and {here} here"
        if other:
            raise ValueError(
                f"checkpoint {step} holds another model or optimizer: {leaf}. Build both as they "
                "were when it was saved."
            )
        was = int("64" in there)
        raise ValueError(
            f"checkpoint {step} was saved with JAX_ENABLE_X64={was}, and this program runs with "
            f"JAX_ENABLE_X64={1 - was}: {leaf}. Set JAX_ENABLE_X64={was}."
        )


def _differ_in_width(one: str, other: str) -> bool:
    """Whether two leaves, as `leaves` describes them, differ in 32 and 64 bits alone."""
    narrow = [leaf.replace("64 [", "32 [") for leaf in (one, other)]
    return one != other and narrow[0] == narrow[1]


def reason_of(error: Exception, names: Mapping[str, str] = MappingProxyType({})) -> str:
    """What went wrong, as a part of a line; of a system's error only that.

    Args:
        error: as it was raised.
        names: text in it -> what to say instead.

    >>> reason_of(ValueError("Failed to write a file: No space left on device [code 28]"))
    'No space left on device'
    """
    text = " ".join(str(error).split())
    for name, other in names.items():
        text = text.replace(name, other)
    known = [reason for reason in REMEDIES if reason in text]
    text = text.partition(" [tensorstore_spec=")[0]  # pages of JSON follow
    return known[0] if known else text[:200].rstrip(".") or type(error).__name__


def remedy(error: Exception) -> str:
    """The advice for an error in writing files, as the start of a sentence; empty where none fits.

    >>> remedy(ValueError("Failed to write a file: No space left on device [code 28]"))
    'Make room'
    """
    return REMEDIES.get(reason_of(error), "")
