"""orbax's manager of a run's checkpoints, and what must be out of its way before it can open."""

import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxvae.manifest import Damaged, reason_of


def open_manager(directory: Path, read_only: bool) -> ocp.CheckpointManager:
    """orbax's manager, of process 0 alone: it keeps the two latest and the best."""
    best = checkpoint_managers.BestN(get_metric_fn=lambda metrics: metrics["metric"], n=1)
    policy = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(2), best])
    processes = ocp.options.MultiprocessingOptions(
        active_processes={0}, barrier_sync_key_prefix="process_0"
    )
    return ocp.CheckpointManager(
        directory,
        handler_registry=_handlers(processes),
        options=ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=lambda metrics: metrics["metric"],
            best_mode="max",
            create=False,
            read_only=read_only,
            multiprocessing_options=processes,
        ),
    )


def _handlers(
    processes: ocp.options.MultiprocessingOptions,
) -> ocp.handlers.CheckpointHandlerRegistry:
    """orbax's handlers of what a checkpoint holds; it need not copy arrays that nobody changes."""
    types = ocp.type_handlers
    arrays = types.create_type_handler_registry(
        (np.ndarray, types.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, types.ArrayHandler()),  # orbax asks for it, also where there are none
    )
    trees = ocp.PyTreeCheckpointHandler(
        type_handler_registry=arrays,
        multiprocessing_options=processes,
    )
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add(None, ocp.args.PyTreeSave, trees)
    registry.add(None, ocp.args.PyTreeRestore, trees)
    values = ocp.JsonCheckpointHandler(multiprocessing_options=processes)
    registry.add(None, ocp.args.JsonSave, values)
    registry.add(None, ocp.args.JsonRestore, values)
    return registry


def clear_the_way(directory: Path, read_only: bool) -> list[str]:
    """Remove what a save that was cut short has left, and set aside what orbax stumbles over.

    That is a checkpoint whose metric or metadata cannot be read: orbax opens no folder with one.

    Args:
        directory: of the checkpoints; made when it is not there.
        read_only: leave all as it is.

    Returns:
        A line for each that was set aside.

    Raises:
        Damaged: there is such a checkpoint, and it must be left as it is.
        ValueError: all are such, and lie where they lay.
    """
    if not read_only:
        directory.mkdir(parents=True, exist_ok=True)
        for unfinished in directory.glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(unfinished, ignore_errors=True)
    steps = [int(path.name) for path in directory.glob("*") if path.name.isdigit()]
    damaged = {step: error for step in steps if (error := _damage(directory / f"{step}"))}
    if damaged and read_only:
        raise damaged[max(damaged)]
    if damaged and len(damaged) == len(steps):
        raise none_whole(directory, damaged)
    return [set_aside(directory, *pair) for pair in damaged.items()]


def _damage(folder: Path) -> Damaged | None:
    """What is wrong with the files that orbax reads when it opens."""
    for file, names in (("_CHECKPOINT_METADATA", set()), ("metrics/metrics", {"metric"})):
        try:
            values = json.loads((folder / file).read_text())
            if not (isinstance(values, dict) and names <= values.keys()):
                raise ValueError(f"it holds {values}")
            sum(float(values[name]) for name in names)
        except FileNotFoundError:
            continue  # orbax does without
        except (OSError, ValueError, TypeError) as error:
            return Damaged(folder, f"its {Path(file).name} cannot be read ({reason_of(error)})")
    return None


def set_aside(directory: Path, step: int, error: Damaged) -> str:
    """Move a damaged checkpoint to a folder beside the others; says so in a line."""
    folder = directory.with_name(f"{directory.name}-damaged")
    folder.mkdir(exist_ok=True)
    taken = {path.name for path in folder.iterdir()}
    names = (f"{step}" if i == 0 else f"{step}-{i}" for i in itertools.count())
    new = folder / next(name for name in names if name not in taken)
    (directory / str(step)).rename(new)
    return f"Checkpoint {step} is damaged: {error.reason}. It is in {new} now."


def none_whole(directory: Path, damaged: Mapping[int, Damaged]) -> ValueError:
    """The error that no checkpoint can be used."""
    lines = " ".join(str(error) for error in damaged.values())
    return ValueError(
        f"no checkpoint in {directory} is whole: {lines} Bring one back from a copy, or start a "
        "new run in another folder."
    )
