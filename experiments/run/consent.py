"""Consent of the user to code and places that a run's folder names.

A run's folder may come from anybody, and importing a module runs it: only --model, given by the
user, imports one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.flags.config import TrainConfig
from experiments.run.model import own_function, recipe
from jaxvae.models.registry import ALIASES, MODELS, SHORT_NAMES, name_of
from jaxvae.models.vae import VAE


def consented(model: str | None, saved: str, run: Path) -> dict[str, Callable[..., VAE]]:
    """Import the function that builds a run's model, if the user names it.

    Args:
        model: --model as the user gave it; None if it was not given.
        saved: --model in the run's config.json.
        run: folder of the run.

    Returns:
        Name -> the user's function; empty for a model that ships with jaxvae.

    Raises:
        ValueError: --model is missing, differs from `saved`, or cannot be imported.
    """
    if model is not None and _builder(model) != _builder(saved):
        raise ValueError(
            f"--model must be the one that {run} was trained with, {_short(saved)}, got {model}. "
            "Remove the flag, or give that model if you trust it."
        )
    if _builder(saved) in MODELS:
        return {}
    if model is None:
        raise ValueError(
            f"{run} was trained with the model {_short(saved)}, which is not part of jaxvae and is "
            "not imported merely because a folder names it. If you trust that function, add "
            f"--model={_short(saved)}."
        )
    return {model: own_function(model)}


def check_same_model(config: TrainConfig, about: dict[str, Any], run: Path) -> None:
    """Check that a run's config.json and its checkpoint name the same model.

    Args:
        config: flags from config.json.
        about: description stored in the checkpoint.
        run: folder of the run.

    Raises:
        ValueError: the models differ; the text names both.
    """
    name, builder = name_of(about.get("vae")), _builder(config.model)
    if name != builder:
        raise ValueError(
            f"{run} has the model {_short(builder)} in its config.json and {_short(name)} in a "
            "checkpoint. Restore the folder from a copy."
        )


def check_same_sizes(config: TrainConfig, about: dict[str, Any], run: Path) -> None:
    """Check that config.json and a checkpoint describe a model of the same sizes.

    Args:
        config, about, run: as for `check_same_model`, for a model that the user consented to.

    Raises:
        ValueError: an argument of the model differs; the text names it.
    """
    check_same_model(config, about, run)
    saved, data_shape = about["vae"]["arguments"], about.get("data_shape")
    now = recipe(config, tuple(data_shape) if isinstance(data_shape, list) else ())["arguments"]
    for name in now.keys() & saved.keys():
        if now[name] != saved[name]:
            raise ValueError(
                f"{run} has {name}={now[name]} in its config.json and {name}="
                f"{str(saved[name])[:60]} in a checkpoint. Restore the folder from a copy."
            )


def check_prepared(config: TrainConfig, dataset: str | None = None) -> None:
    """Check that no data would be downloaded to a folder that only config.json names.

    Args:
        config: flags from config.json.
        dataset: --dataset as the user gave it; None: the run's own.

    Raises:
        FileNotFoundError: the data are not prepared in that folder; the text names it.
    """
    name = dataset or config.dataset
    if name not in ("mnist", "fashion_mnist", "kmnist") or config.data_dir is None:
        return
    if not (Path(config.data_dir).expanduser() / f"{name}_idx").is_dir():
        raise FileNotFoundError(
            f"{name} is not prepared in {config.data_dir}, the --data-dir of the run, and is not "
            "downloaded there merely because a run's folder names that place. Restore the data, "
            "or prepare them there with a training run that you start with --data-dir."
        )


def _builder(model: str) -> str:
    """Return the name that recipes use for a value of --model."""
    name = SHORT_NAMES.get(model, model)
    return ALIASES.get(name, name)


def _short(name: str) -> str:
    """Quote and shorten a name from a file, which may hold anything."""
    return repr(name[:100])
