"""Rebuilding a model from a checkpoint that anybody may have made."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxvae.checkpoints.contained import require_contained
from jaxvae.checkpoints.hosts import is_first, raise_on_all_processes
from jaxvae.checkpoints.manifest import num_values
from jaxvae.models.registry import build, check_sizes
from jaxvae.models.stored_parameters import trainable
from jaxvae.models.vae import VAE

LARGEST_RATIO = 100
MOST_WITHOUT_FILES = 2**24
"""A checkpoint may hold LARGEST_RATIO numbers for each byte on disk, plus MOST_WITHOUT_FILES,
which are 64 MiB of float32."""


def rebuild(
    about: dict[str, Any], folder: Path, models: Mapping[str, Callable[..., VAE]]
) -> tuple[VAE, dict[str, Any]]:
    """Rebuild a checkpoint's VAE, and find which parameters to restore for it.

    Args:
        about: description of the checkpoint.
        folder: folder of the checkpoint; only process 0 reads it.
        models: functions that may build the model besides `jaxvae.models.registry.MODELS`.

    Returns:
        The VAE, and the targets of `Checkpoints.restore`: the running average of the parameters
        if the run has one, else the parameters.

    Raises:
        ValueError: the recipe is invalid, names another function, or needs more memory than the
            files of the checkpoint justify.
    """
    item = "average" if "average" in about["digests"] else "params"
    with raise_on_all_processes():
        values = num_values(about["leaves"].get(item, {}))
        if is_first():
            check_held(folder / item, values)
        check_sizes(about.get("vae"), values)
        vae = trainable(build(about["vae"], models))
    return vae, {item: jax.eval_shape(vae.init, jax.random.key(0))}


def checkpoints_folder(run: Path) -> str:
    """Find the folder `checkpoints` in a run's folder, or else take `run` as that folder."""
    require_contained(run, ["checkpoints"])
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    if not folder.is_dir():
        raise FileNotFoundError(f"no run at {run}: give the folder that training wrote.")
    return str(folder)


def check_held(folder: Path, num_values: int) -> None:
    """Check that an item's files are not far too small for its arrays.

    Random numbers take as many bytes on disk as in memory. Files of a few kilobytes that expand to
    gigabytes of one repeated number are not the parameters of a model, and would fill the memory.

    Args:
        folder: folder of the item.
        num_values: number of entries of its arrays, of at least one byte each.

    Raises:
        ValueError: the files are too small; the message gives both sizes.
    """
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if num_values > MOST_WITHOUT_FILES + LARGEST_RATIO * size:
        raise ValueError(
            f"{folder} must hold the parameters of a model, but has {num_values:,} numbers in only "
            f"{size:,} bytes. Restore the checkpoint from a copy; to read such arrays "
            "nevertheless, call Checkpoints.restore with your own target."
        )
