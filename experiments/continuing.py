"""The flags of a run as defaults of the command line that continues it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import saved_flags
from experiments.config import TrainConfig

CONFIG = "config.json"
OF_THE_MACHINE = (
    *("accelerator", "num_devices", "processes", "compilation_cache", "tensorboard", "quiet"),
)
"""Flags that a run does not keep. Compiled programs are code, which no run's folder may name."""


def flags_of_run(arguments: Sequence[str]) -> TrainConfig | None:
    """The flags that --run was trained with, for those that the command line leaves out.

    Args:
        arguments: of the command line.

    Returns:
        None without --run, or where there is no run yet.

    Raises:
        ValueError: config.json cannot be read, or names code that the command line does not.
    """
    run = _value(arguments, "run")
    if run is None or "--help" in arguments or "-h" in arguments:
        return None
    values = saved_flags.read(Path(run) / CONFIG)
    if values is None:
        return None
    saved = saved_flags.from_json(values, Path(run) / CONFIG)
    replaced: dict[str, Any] = {name: _default(name) for name in OF_THE_MACHINE}
    replaced["run"] = Path(run)
    if ":" in saved.model:
        if _value(arguments, "model") is None:
            raise ValueError(
                f"{run} trains a model of your own code, which runs only where the command names "
                f"it. Add --model={saved.model}."
            )
        replaced["model"] = _default("model")
    if _value(arguments, "num-steps") is not None:
        replaced["num_epochs"] = None  # or it would take the place of --num-steps
    return dataclasses.replace(saved, **replaced)


def _default(name: str) -> Any:
    return getattr(TrainConfig(), name)


def _value(arguments: Sequence[str], flag: str) -> str | None:
    """The value of --flag, the last one given; None where it is not given."""
    spellings = {f"--{flag}", f"--{flag.replace('-', '_')}"}
    found = None
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in spellings:
            found = value if equals else next(iter(arguments[i + 1 : i + 2]), None)
    return found
