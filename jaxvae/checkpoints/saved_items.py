"""The items of a checkpoint: copying them for saving, describing them, and reading them back."""

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
"""Version of the checkpoints' format, raised whenever older releases could not read it. Release
0.1.0 wrote format 1, whose recipes name "jaxvae.vae:mlp_vae"."""


def copied(items: dict[str, Any]) -> dict[str, Any]:
    """Copy the leaves of all items to the host.

    Raises:
        ValueError: as in `check_savable`.
    """
    check_savable(items)
    return jax.tree.map(np.array, jax.device_get(items))


def described(items: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """Add the format, leaves and digests of the items to the description `about`."""
    about = about | {
        "format": FORMAT,
        "digests": {name: digest(tree) for name, tree in items.items()},
        "leaves": {name: leaves(tree) for name, tree in items.items()},
    }
    return about | {"digest": digest_of_values(about)}


def read_about(folder: OrbaxFolder, step: int) -> dict[str, Any]:
    """Read the description of the checkpoint of a step.

    Raises:
        Damaged: the description cannot be read, or differs from what was saved.
        ValueError: its format is newer than this release reads.
    """
    with _reading(folder, step):
        about = read_description(folder.directory / str(step), FORMAT)
    if about["format"] > FORMAT:  # a ValueError but not Damaged: the checkpoint may be valid
        raise ValueError(
            f"checkpoint {step} in {folder.directory}: format {about['format']} is newer than "
            f"this release of jaxvae reads ({FORMAT}). Upgrade jaxvae."
        )
    return about


def read_items(folder: OrbaxFolder, step: int, targets: dict[str, Any]) -> dict[str, Any]:
    """Read the named items of a step as numpy arrays, in the structure of the targets.

    Raises:
        Damaged: an item cannot be read, or does not have the digest it was saved with.
        ValueError: as in `read_about`; or the leaves of an item differ from its target.
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
    """Check that a checkpoint that was just saved can be read, one item at a time.

    orbax, or a file system, may save files without an error that cannot be read (see `plain_path`).

    Raises:
        Unusable: an item cannot be read, or differs from what was saved.
    """
    for name, target in targets.items():
        try:
            read_items(folder, step, {name: target})
        except ValueError as error:
            reason = error.reason if isinstance(error, Damaged) else str(error)
            raise Unusable(
                f"checkpoint {step} was saved in {folder.directory} but cannot be read back: "
                f"{reason}. Use a folder on another file system."
            ) from error


@contextlib.contextmanager
def _reading(folder: OrbaxFolder, step: int) -> Iterator[None]:
    """Raise any error in reading a step's files as `Damaged`."""
    try:
        yield
    except (MemoryError, PermissionError):
        raise
    except Exception as error:
        raise Damaged(folder.directory / str(step), folder.reason(error)) from error


def _empty(leaf: Any) -> np.ndarray:
    return np.empty(leaf.shape, leaf.dtype)
