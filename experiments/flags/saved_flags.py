"""Flags of a run as saved in config.json, checked as if they came from the command line."""

import dataclasses
import json
import typing
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal

from experiments.flags.config import TrainConfig
from experiments.flags.path_checks import require_file

NOT_SAVED = frozenset({"processes", "allow_other_data"})
"""Flags that belong to one command and not to the run."""
MOST_BYTES = 2**20
"""Largest config.json that is read; training writes two kilobytes."""
WORDS = {int: "an integer", float: "a number", str: "text", bool: "true or false", Path: "text",
         NoneType: "null"}  # fmt: skip
"""Python type -> its name in messages about JSON."""


def to_json(config: TrainConfig) -> dict[str, Any]:
    """Return the flags as JSON values, without those in `NOT_SAVED`."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(config).items()
        if name not in NOT_SAVED
    }


def from_json(values: dict[str, Any], path: Path = Path("config.json")) -> TrainConfig:
    """Convert JSON values to flags.

    Args:
        values: name -> value; an absent flag gets its default, or the behaviour of the releases
            that did not have it yet.
        path: the file that holds the values, for messages.

    Raises:
        ValueError: a name is no flag of this release, or a value is invalid for its flag; the
            text names the file.
    """
    hints = {name: hint for name, hint in typing.get_type_hints(TrainConfig).items()
             if name not in NOT_SAVED}  # fmt: skip
    if unknown := sorted(values.keys() - hints.keys()):
        raise ValueError(
            f"{path} has {', '.join(map(repr, unknown))}, which this release does not know. "
            "Restore the file, or use the release that wrote it."
        )
    for name, value in values.items():
        if not _is(value, hints[name]):
            raise ValueError(
                f"{path}: {name} must be {_in_words(hints[name])}, got "
                f"{json.dumps(value)[:60]}. Restore it, or use another --run."
            )
    values = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    if values.get("run") is not None:
        values["run"] = Path(values["run"])
    config = _as_then(TrainConfig(**values), values)
    try:
        dataclasses.replace(config, run=None).check()  # the folder may have been moved since
    except ValueError as error:
        raise ValueError(f"{path}: {error} Restore it, or use another --run.") from error
    return config


def _as_then(config: TrainConfig, values: dict[str, Any]) -> TrainConfig:
    """Replace today's defaults by the behaviour of releases that did not have these flags yet."""
    if "likelihood" not in values:
        config = dataclasses.replace(config, likelihood="bernoulli")
    if "sigma" not in values:
        config = dataclasses.replace(config, sigma="learned")
    if "standardize" not in values:
        config = dataclasses.replace(config, standardize="none")
    if "sigma_rate" not in values and config.learns_sigma:
        config = dataclasses.replace(config, sigma_rate=1.0)
    return config


def read(path: Path) -> dict[str, Any] | None:
    """Read and check the values of a run's config.json; None if there is no such file.

    Raises:
        ValueError: the file cannot be read, or `from_json` rejects its values.
    """
    if not path.exists() and not path.is_symlink():
        return None
    require_file(path)
    from jaxvae.checkpoints.contained import read_json  # here, since it loads jax (--help is fast)

    try:
        values = read_json(path, MOST_BYTES)
    except ValueError as error:
        raise ValueError(
            f"{path} must be a JSON object, as training wrote it; reading it gave: {error}. "
            "Restore it, or use another --run."
        ) from error
    from_json(values, path)
    return values


def _is(value: Any, hint: Any) -> bool:
    """Return True if a JSON value has the type of a flag."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin in (typing.Union, UnionType):
        return any(_is(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(_is(item, parts[0]) for item in value)
    if hint is Path:
        return isinstance(value, str)
    return type(value) is hint or (hint is float and type(value) is int)


def _in_words(hint: Any) -> str:
    """Name the type of a flag in plain words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(parts)
    if origin in (typing.Union, UnionType):
        return " or ".join(map(_in_words, parts))
    if origin is tuple:
        return "a list of integers"
    return WORDS[hint]
