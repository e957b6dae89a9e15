"""Description of a checkpoint's items, checks against it, and the errors of checkpoints."""

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
"""orbax's name of the file with the values, in the folder of a JSON item."""
REMEDIES = {
    "No space left on device": "Make room",
    "Disk quota exceeded": "Make room, or ask for a larger quota",
    "File too large": "Make room for larger files (ulimit -f)",
    "Input/output error": "Check the disk",
    "Read-only file system": "Make the file system writable",
    "Permission denied": "Make the folder writable",
}
"""Texts of system errors in writing a file -> what to do."""
MAY_PASS = frozenset(list(REMEDIES)[:4])
"""Errors of `REMEDIES` that somebody may fix while the program runs."""


class Damaged(ValueError):
    """The files of a checkpoint differ from what was saved, or cannot be read.

    Args:
        folder: folder of the checkpoint.
        reason: what is wrong with its files.
    """

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(
            f"checkpoint {folder.name} is damaged: {reason}. Move the folder {folder} away to "
            "resume from the checkpoint before it."
        )
        self.reason = reason


class SaveFailed(OSError):
    """A checkpoint could not be written; the earlier ones are undamaged."""


class Unusable(ValueError):
    """Checkpoints saved in a folder cannot be read back, so training there would be lost."""


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
    """Type and shape of every leaf, by its path."""
    return {
        jax.tree_util.keystr(path): f"{np.dtype(leaf.dtype).name} {list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def num_values(leaves: dict[str, str]) -> int:
    """Count the entries of all arrays, from their types and shapes as returned by `leaves`.

    >>> num_values(leaves({"a": np.zeros((2, 3)), "b": np.zeros(())}))
    7

    Raises:
        ValueError: a text is not in the format of `leaves`.
    """
    shapes = [re.fullmatch(r"\w+ \[([\d, ]*)\]", text) for text in leaves.values()]
    if not all(shapes):
        raise ValueError(f"the leaves must be texts such as 'float32 [3, 4]', got {leaves}"[:200])
    return sum(math.prod(map(int, re.findall(r"\d+", shape[1]))) for shape in shapes if shape)


def read_description(folder: Path, newest_format: int) -> dict[str, Any]:
    """Read a checkpoint's description, and check the fields that reading the checkpoint needs.

    Args:
        folder: folder of the checkpoint.
        newest_format: newest known format; the fields of newer ones are not checked.

    Raises:
        ValueError: the description is invalid; the message says why.
    """
    about = read_json(folder / "about" / ABOUT)
    told = about.pop("digest", None)  # the first release saved no digest
    if told not in (None, digest_of_values(about)):
        raise ValueError("its description does not have the digest it was saved with")
    if type(about.get("format")) is not int:
        raise ValueError("its description has no format")
    if about["format"] > newest_format:
        return about
    if not {"digests", "leaves"} <= about.keys():
        raise ValueError("its description lacks the digests or the leaves")
    right = {
        "step": about.get("step", int(folder.name)) == int(folder.name),
        "digests": _is_texts(about["digests"]),
        "leaves": isinstance(about["leaves"], dict)
        and all(map(_is_texts, about["leaves"].values())),
    }
    if wrong := [name for name, holds in right.items() if not holds]:
        raise ValueError(f"the field {wrong[0]!r} of its description is invalid")
    return about


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def check_savable(items: dict[str, Any]) -> None:
    """Check that a checkpoint can hold items: orbax cannot save an empty item or an empty array.

    Args:
        items: name -> pytree of anything that has a shape and dtype, or of Python numbers.

    Raises:
        ValueError: an item cannot be saved; the message names the item or leaf.
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
            # orbax joins the names on a leaf's path with dots, so different paths can collide.
            written = jax.tree_util.keystr(path, simple=True, separator=".")
            if written in held:
                raise ValueError(
                    f"{where} and {held[written]} have the same name in a checkpoint, {written}. "
                    "Rename one of them."
                )
            held[written] = where
        if not held:
            raise ValueError(f"{name} must have at least one array of numbers, got none.")


def check_leaves(step: int, name: str, saved: dict[str, str], asked: dict[str, str]) -> None:
    """Check that the saved leaves of a step's item are those of the target.

    Args:
        step, name: step and name of the item.
        saved, asked: results of `leaves` for the saved item and for the target.

    Raises:
        ValueError: a leaf differs; the message names the first one.
    """
    different = {
        path: (saved.get(path, "absent"), asked.get(path, "absent"))
        for path in sorted(saved.keys() | asked.keys())
        if saved.get(path) != asked.get(path)
    }
    other = {path: both for path, both in different.items() if not _differ_in_width(*both)}
    for path, (there, here) in (other or different).items():
        leaf = f"{name}{path} is {there} in the checkpoint and {here} in this program"
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
    """True if two leaves, as described by `leaves`, differ only in having 32 or 64 bits."""
    narrow = [leaf.replace("64 [", "32 [") for leaf in (one, other)]
    return one != other and narrow[0] == narrow[1]


def reason_of(error: Exception, names: Mapping[str, str] = MappingProxyType({})) -> str:
    """Reason of an error, as a part of a line; for a known system error, only its text.

    Args:
        error: the error.
        names: texts in the message -> their replacements.

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
    """Advice for an error in writing files, as the start of a sentence; "" for unknown errors.

    >>> remedy(ValueError("Failed to write a file: No space left on device [code 28]"))
    'Make room'
    """
    return REMEDIES.get(reason_of(error), "")
