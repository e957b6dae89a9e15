"""The flags with which a run continues: those of its folder, and those that may change."""

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


def continued(config: TrainConfig, saved: TrainConfig) -> TrainConfig:
    """The flags with which a run continues: its schedule stays, unless a flag says otherwise."""
    stays = {
        name: getattr(saved, name)
        for name in ("decay_steps", "schedule_start")
        if getattr(config, name) is None
    }
    return dataclasses.replace(config, **stays)


def refuse_other_run(config: TrainConfig, saved: TrainConfig) -> None:
    """Refuse to continue a run with flags that would make it another one.

    Raises:
        ValueError: it names every flag that differs.
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
    """Reject a schedule that starts anew after the step that the run has come to.

    Raises:
        ValueError: in one line that names the flag.
    """
    start = config.schedule_start or 0
    require(start <= step, "schedule_start", start, f"at most {step}, where the run is")


def ended_schedule(config: TrainConfig, step: int, num_steps: int) -> str | None:
    """A warning where steps that are still to be trained have learning rate 0; else None.

    No other schedule ends at 0: beta and capacity stay at the values that their flags name.

    Args:
        config: the flags.
        step: steps done.
        num_steps: where the run ends.
    """
    end = config.decay_steps
    if config.schedule == "constant" or end is None or max(step, end) >= num_steps:
        return None
    anew = f"; --schedule-start={step} --decay-steps={num_steps} starts it anew at step {step:,}"
    return (
        f"warning: the learning rate is 0 from step {end:,} on, where --schedule={config.schedule} "
        f"ends: steps {max(step, end) + 1:,} to {num_steps:,} change no parameter. "
        f"--decay-steps={num_steps} plans its fall to end at step {num_steps:,} instead"
        f"{anew if step else ''}."
    )
