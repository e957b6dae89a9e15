"""Flags of a continued run: those saved in its folder, and those that may change."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.flags import saved_flags
from experiments.flags.config import MAY_CHANGE, TrainConfig, require
from experiments.flags.path_checks import same_text
from experiments.flags.processes import silence_aborts

CONFIG = "config.json"
OF_THE_MACHINE = (
    *("accelerator", "num_devices", "processes", "compilation_cache", "tensorboard", "quiet"),
)
"""Flags that a continued run does not take from its folder. Compiled programs are code: a run's
folder, which may come from anybody, must not choose their location."""


def flags_of_run(arguments: Sequence[str]) -> TrainConfig | None:
    """Read the flags of the run in --run, as defaults for flags that the command line leaves out.

    Args:
        arguments: arguments of the command line.

    Returns:
        The flags, or None if --run is not given or has no run yet.

    Raises:
        ValueError: config.json cannot be read, or names code that the command line does not name.
    """
    run = _value(arguments, "run")
    if run is None or "--help" in arguments or "-h" in arguments:
        return None
    if {"--distributed", "--processes.distributed"} & set(arguments):
        silence_aborts()  # reading imports jax
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
        replaced["num_epochs"] = None  # a saved --num-epochs would override --num-steps
    return dataclasses.replace(saved, **replaced)


def _default(name: str) -> Any:
    return getattr(TrainConfig(), name)


def _value(arguments: Sequence[str], flag: str) -> str | None:
    """Value of --flag, the last one if repeated; None if the flag is not given."""
    spellings = {f"--{flag}", f"--{flag.replace('-', '_')}"}
    found = None
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in spellings:
            found = value if equals else next(iter(arguments[i + 1 : i + 2]), None)
    return found


def continued(config: TrainConfig, saved: TrainConfig) -> TrainConfig:
    """Return the flags with the saved schedule, except where the new flags change it."""
    stays = {
        name: getattr(saved, name)
        for name in ("decay_steps", "schedule_start")
        if getattr(config, name) is None
    }
    return dataclasses.replace(config, **stays)


def check_same_run(config: TrainConfig, saved: TrainConfig) -> None:
    """Check that no flag differs from the run's, except those that may change.

    Raises:
        ValueError: flags differ; the text names each of them.
    """
    differences = [
        f"--{field.name.replace('_', '-')} is {getattr(config, field.name)} now and "
        f"{getattr(saved, field.name)} there"
        for field in dataclasses.fields(TrainConfig)
        if field.name not in MAY_CHANGE
        and not same_text(getattr(config, field.name), getattr(saved, field.name))
    ]
    if differences:
        raise ValueError(
            f"{config.folder} holds another run: {'; '.join(differences)}. Give the flags it was "
            "started with, or another folder with --run."
        )


def check_schedule(config: TrainConfig, step: int) -> None:
    """Check that --schedule-start is not after the current step of the run.

    Raises:
        ValueError: it is; one line that names the flag.
    """
    start = config.schedule_start or 0
    require(start <= step, "schedule_start", start, f"at most {step}, where the run is")


def ended_schedule(config: TrainConfig, step: int, num_steps: int) -> str | None:
    """Return a warning if remaining steps would have learning rate 0, else None.

    No other schedule ends at 0: beta and capacity stay at the values of their flags.

    Args:
        config: the flags.
        step: number of steps done.
        num_steps: number of steps at which the run ends.
    """
    end = config.decay_steps
    if config.schedule == "constant" or end is None or max(step, end) >= num_steps:
        return None
    anew = f"; --schedule-start={step} --decay-steps={num_steps} restarts it at step {step:,}"
    return (
        f"warning: the learning rate is 0 from step {end:,} on, where --schedule={config.schedule} "
        f"ends: steps {max(step, end) + 1:,} to {num_steps:,} change no parameter. "
        f"--decay-steps={num_steps} moves its end to step {num_steps:,}"
        f"{anew if step else ''}."
    )
