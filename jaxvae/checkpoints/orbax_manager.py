"""orbax's manager of a run's checkpoints, and moving checkpoints away that it cannot open."""

import contextlib
import itertools
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxvae.checkpoints.contained import read_json, require_contained
from jaxvae.checkpoints.manifest import ABOUT, Damaged, reason_of
from jaxvae.checkpoints.plain_path import plain_path

TYPES = {
    **dict.fromkeys(("item_handlers", "metrics", "performance_metrics", "custom_metadata"), dict),
    **dict.fromkeys(("init_timestamp_nsecs", "commit_timestamp_nsecs"), int),
}
"""Types that orbax expects of the fields of _CHECKPOINT_METADATA, if they are present."""


class OrbaxFolder:
    """A folder of checkpoints that orbax has open, by a path that orbax can handle.

    Only for process 0. Nothing in the folder changes before the first save; orbax's own `read_only`
    does no more than that, and prints a warning.

    Args:
        directory: an absolute path.

    Attributes:
        directory: the same path.
        path: path to the folder for orbax.
        manager: orbax's manager; it retains the two latest checkpoints and the best.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with contextlib.ExitStack() as stack:
            self.path = stack.enter_context(plain_path(directory))
            self.manager = _open_manager(self.path)
            stack.callback(self.manager.close)
            self._open = stack.pop_all()

    def reason(self, error: Exception) -> str:
        """Reason of an error in orbax, with the folder's own path in place of orbax's."""
        return reason_of(error, {str(self.path): str(self.directory)})

    def close(self) -> None:
        """Wait for orbax, and close its manager."""
        self._open.close()


def _open_manager(path: Path) -> ocp.CheckpointManager:
    best = checkpoint_managers.BestN(get_metric_fn=lambda metrics: metrics["metric"], n=1)
    policy = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(2), best])
    processes = _process_0()
    return ocp.CheckpointManager(
        path,
        handler_registry=_handlers(processes),
        options=ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=lambda metrics: metrics["metric"],
            best_mode="max",
            create=False,
            multiprocessing_options=processes,
        ),
    )


def _handlers(
    processes: ocp.options.MultiprocessingOptions,
) -> ocp.handlers.CheckpointHandlerRegistry:
    """orbax's handlers of arrays and JSON; they do not copy arrays, since nothing changes them."""
    trees = _trees(processes)
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add(None, ocp.args.PyTreeSave, trees)
    registry.add(None, ocp.args.PyTreeRestore, trees)
    values = ocp.JsonCheckpointHandler(ABOUT, multiprocessing_options=processes)
    registry.add(None, ocp.args.JsonSave, values)
    return registry


def _trees(processes: ocp.options.MultiprocessingOptions) -> ocp.PyTreeCheckpointHandler:
    types = ocp.type_handlers
    arrays = types.create_type_handler_registry(
        (np.ndarray, types.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, types.ArrayHandler()),  # orbax needs it even without jax arrays
    )
    return ocp.PyTreeCheckpointHandler(
        type_handler_registry=arrays,
        multiprocessing_options=processes,
    )


def check_stored(item: Path, target: Any) -> None:
    """Check the sizes of an item's stored arrays against those of its target.

    orbax allocates whatever size a file states, and the process is killed if memory runs out.

    Args:
        item: folder of the item, in process 0.
        target: pytree of arrays or `jax.ShapeDtypeStruct`s.

    Raises:
        ValueError: the stored arrays are larger than the target.
    """
    stored = _trees(_process_0()).metadata(item)
    size = 0
    for array in jax.tree.leaves(stored.tree):
        values = math.prod(array.shape)
        size += values * array.dtype.itemsize
        if math.prod(array.storage.chunk_shape or ()) > max(values, 1):
            raise ValueError("a part of an array is larger than the array")
    most = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(target))
    if size > most:
        raise ValueError(f"its arrays have {size:,} bytes, not {most:,}")


def _process_0() -> ocp.options.MultiprocessingOptions:
    return ocp.options.MultiprocessingOptions(
        active_processes={0}, barrier_sync_key_prefix="process_0"
    )


class Aside(NamedTuple):
    """A damaged checkpoint that was moved to a folder beside the others.

    Attributes:
        step: step of the checkpoint.
        folder: its new folder.
        error: what is wrong with it.
    """

    step: int
    folder: Path
    error: Damaged

    def __str__(self) -> str:
        return (
            f"Checkpoint {self.step} is damaged: {self.error.reason}. It was moved to "
            f"{self.folder}."
        )


def remove_unfinished(directory: Path) -> None:
    """Remove the remains of interrupted saves."""
    for unfinished in directory.glob("*.orbax-checkpoint-tmp"):
        shutil.rmtree(unfinished, ignore_errors=True)


def clear_the_way(directory: Path, read_only: bool) -> dict[int, Aside]:
    """Prepare a folder for orbax: remove unfinished saves, set aside checkpoints it cannot open.

    Args:
        directory: folder of the checkpoints; created if it is missing.
        read_only: change nothing.

    Returns:
        Step -> the checkpoint that was set aside; the caller moves it back if all are damaged.

    Raises:
        Damaged: read_only is set, and a checkpoint would have to be set aside.
        ValueError: all checkpoints would have to be set aside; none is moved.
    """
    if not read_only:
        directory.mkdir(parents=True, exist_ok=True)
    require_contained(directory)
    if not read_only:
        remove_unfinished(directory)
    damaged = _unreadable(directory)
    if damaged and read_only:
        raise damaged[max(damaged)]
    if damaged and len(damaged) == sum(_is_step(path) for path in directory.glob("*")):
        raise none_whole(directory, damaged)
    return {step: set_aside(directory, step, error) for step, error in damaged.items()}


def _unreadable(directory: Path) -> dict[int, Damaged]:
    """Checkpoints whose metric or metadata cannot be read; orbax fails on a folder with one."""
    found = {}
    for path in directory.glob("*"):
        if _is_step(path) and path.is_dir():
            try:
                _read_as_orbax_does(path)
            except (ValueError, TypeError, NotADirectoryError, IsADirectoryError) as error:
                found[int(path.name)] = Damaged(path, reason_of(error))
    return found


def _is_step(path: Path) -> bool:
    return path.name.isascii() and path.name.isdigit()


def _read_as_orbax_does(folder: Path) -> None:
    for file, names in (("_CHECKPOINT_METADATA", ()), ("metrics/metrics", ("metric",))):
        path = folder / file
        if path.exists():  # orbax can do without these files
            try:
                values = read_json(path)
            except ValueError as error:
                raise ValueError(f"its {path.name} cannot be read ({error})") from error
            for name, kind in TYPES.items():
                if not isinstance(values.get(name), kind | None):
                    raise ValueError(
                        f"its {path.name} cannot be read (its {name} has the wrong type)"
                    )
            for name in names:
                if not isinstance(values.get(name), (int, float)):
                    raise ValueError(f"its {path.name} cannot be read (it has no {name})")


def set_aside(directory: Path, step: int, error: Damaged) -> Aside:
    """Move a damaged checkpoint to a folder beside the others."""
    folder = directory.with_name(f"{directory.name}-damaged")
    require_contained(directory.parent, [folder.name])
    folder.mkdir(exist_ok=True)
    taken = {path.name for path in folder.iterdir()}
    names = (f"{step}" if i == 0 else f"{step}-{i}" for i in itertools.count())
    new = folder / next(name for name in names if name not in taken)
    (directory / str(step)).rename(new)
    return Aside(step, new, error)


def none_whole(directory: Path, damaged: Mapping[int, Damaged]) -> ValueError:
    """The error to raise when every checkpoint is damaged."""
    lines = " ".join(str(error) for _, error in sorted(damaged.items(), reverse=True))
    return ValueError(
        f"no checkpoint in {directory} is whole: {lines} Bring one back from a copy, or start a "
        "new run in another folder."
    )
