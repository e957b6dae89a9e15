"""The items of a checkpoint: copied for saving, described, and read as they were saved."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxvae.checkpoints.manifest import (
    Damaged,
    Unusable,
    check_leaves,
    check_savable,
    digest,
    digest_of_values,
    leaves,
    read_description,
)
from jaxvae.checkpoints.orbax_manager import OrbaxFolder, check_stored

FORMAT = 2
"""Version of what a checkpoint holds; raised when an older reader could not read it. Release 0.1.0
wrote 1, whose recipes name "jaxvae.vae:mlp_vae"."""


def copied(items: dict[str, Any]) -> dict[str, Any]:
    """The items with copies of their leaves on the host.

    Raises:
        ValueError: as `check_savable`.
    """
    check_savable(items)
    return jax.tree.map(np.array, jax.device_get(items))


def described(items: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of itself, with the format, leaves and digests of its items."""
    about = about | {
        "format": FORMAT,
        "digests": {name: digest(tree) for name, tree in items.items()},
        "leaves": {name: leaves(tree) for name, tree in items.items()},
    }
    return about | {"digest": digest_of_values(about)}


def read_about(folder: OrbaxFolder, step: int) -> dict[str, Any]:
    """What the checkpoint of a step says of itself.

    Raises:
        Damaged: it cannot be read, or is not what was saved.
        ValueError: it is of a newer format than this release reads.
    """
    with _reading(folder, step):
        about = read_description(folder.directory / str(step), FORMAT)
    if about["format"] > FORMAT:  # which is no damage
        raise ValueError(
            f"checkpoint {step} in {folder.directory}: format {about['format']} is newer than "
            f"this release of jaxvae reads ({FORMAT}). Upgrade jaxvae."
        )
    return about


def read_items(folder: OrbaxFolder, step: int, targets: dict[str, Any]) -> dict[str, Any]:
    """The named items of a step as numpy arrays, in the structure of the targets.

    Raises:
        Damaged: an item cannot be read, or does not have the digest it was saved with.
        ValueError: as `read_about`; or an item has other leaves than its target.
    """
    about = read_about(folder, step)
    for name, target in targets.items():
        check_leaves(step, name, about["leaves"].get(name, {}), leaves(target))
    args = {
        name: ocp.args.PyTreeRestore(jax.tree.map(_empty, tree)) for name, tree in targets.items()
    }
    with _reading(folder, step):
        for name, target in targets.items():
            check_stored(folder.path / str(step) / name, target)
        restored = folder.manager.restore(step, args=ocp.args.Composite(**args))
        for name in targets:
            if digest(restored[name]) != about["digests"][name]:
                raise ValueError(f"{name!r} does not have the digest it was saved with")
    return {name: restored[name] for name in targets}


def check_readable(folder: OrbaxFolder, step: int, targets: dict[str, Any]) -> None:
    """Read a checkpoint that was just saved, an item at a time, and forget what was read.

    orbax may save without an error what nobody can read (see `plain_path`), and so may a file
    system.

    Raises:
        Unusable: it cannot be read, or is not what was saved.
    """
    for name, target in targets.items():
        try:
            read_items(folder, step, {name: target})
        except ValueError as error:
            reason = error.reason if isinstance(error, Damaged) else str(error)
            raise Unusable(
                f"checkpoint {step} was saved in {folder.directory} and cannot be read back: "
                f"{reason}. Use a folder on another file system."
            ) from error


@contextlib.contextmanager
def _reading(folder: OrbaxFolder, step: int) -> Iterator[None]:
    """Around reading a step's files: whatever is found wrong with them is damage."""
    try:
        yield
    except (MemoryError, PermissionError):
        raise
    except Exception as error:
        raise Damaged(folder.directory / str(step), folder.reason(error)) from error


def _empty(leaf: Any) -> np.ndarray:
    return np.empty(leaf.shape, leaf.dtype)
