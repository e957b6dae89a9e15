"""orbax's manager of a run's checkpoints, and what must be out of its way before it can open."""

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
"""What orbax expects of _CHECKPOINT_METADATA, where it is there."""


class OrbaxFolder:
    """A folder of checkpoints as orbax has it open, by a path that orbax can take.

    For process 0 alone. Nothing in it changes before the first save: orbax's own `read_only` does
    no more than that, and warns of itself.

    Args:
        directory: an absolute path.

    Attributes:
        directory: the same.
        path: to it, for orbax.
        manager: orbax's; it keeps the two latest checkpoints and the best.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with contextlib.ExitStack() as stack:
            self.path = stack.enter_context(plain_path(directory))
            self.manager = _open_manager(self.path)
            stack.callback(self.manager.close)
            self._open = stack.pop_all()

    def reason(self, error: Exception) -> str:
        """What went wrong in orbax, with the folder's own path in place of orbax's."""
        return reason_of(error, {str(self.path): str(self.directory)})

    def close(self) -> None:
        """Wait for orbax, and end what it has started."""
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
    """orbax's handlers of what a checkpoint holds; it need not copy arrays that nobody changes."""
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
        (jax.Array, types.ArrayHandler()),  # orbax asks for it, also where there are none
    )
    return ocp.PyTreeCheckpointHandler(
        type_handler_registry=arrays,
        multiprocessing_options=processes,
    )


def check_stored(item: Path, target: Any) -> None:
    """Check the sizes of an item's stored arrays against those of its target.

    orbax makes room for whatever size a file says, and the process ends where there is none.

    Args:
        item: folder of the item, of process 0 alone.
        target: pytree of arrays or `jax.ShapeDtypeStruct`s.

    Raises:
        ValueError: the stored arrays are larger.
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
        step: of it.
        folder: where it is now.
        error: what is wrong with it.
    """

    step: int
    folder: Path
    error: Damaged

    def __str__(self) -> str:
        return (
            f"Checkpoint {self.step} is damaged: {self.error.reason}. It is in {self.folder} now."
        )


def remove_unfinished(directory: Path) -> None:
    """Remove what saves that were cut short have left."""
    for unfinished in directory.glob("*.orbax-checkpoint-tmp"):
        shutil.rmtree(unfinished, ignore_errors=True)


def clear_the_way(directory: Path, read_only: bool) -> dict[int, Aside]:
    """Make a folder one that orbax opens: without unfinished saves and what it stumbles over.

    Args:
        directory: of the checkpoints; made when it is not there.
        read_only: leave all as it is.

    Returns:
        Step -> the checkpoint that was set aside, for the caller to move back if none is whole.

    Raises:
        Damaged: there is such a checkpoint, and it must be left as it is.
        ValueError: all are such, and lie where they lay.
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
    """Checkpoints whose metric or metadata cannot be read: orbax opens no folder with one."""
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
        if path.exists():  # orbax does without
            try:
                values = read_json(path)
            except ValueError as error:
                raise ValueError(f"its {path.name} cannot be read ({error})") from error
            for name, kind in TYPES.items():
                if not isinstance(values.get(name), kind | None):
                    raise ValueError(
                        f"its {path.name} cannot be read (its {name} is something else)"
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
    """The error that no checkpoint can be used."""
    lines = " ".join(str(error) for _, error in sorted(damaged.items(), reverse=True))
    return ValueError(
        f"no checkpoint in {directory} is whole: {lines} Bring one back from a copy, or start a "
        "new run in another folder."
    )
