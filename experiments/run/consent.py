"""Consent of the user: what config.json and checkpoints may name, and what only a flag may.

Anybody may have made a run's folder. Importing a module runs it: --model alone imports one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.flags.config import TrainConfig
from experiments.run.model import SHIPPED, own_function, recipe
from jaxvae.models.registry import ALIASES, MODELS, name_of
from jaxvae.models.vae import VAE


def consented(model: str | None, saved: str, run: Path) -> dict[str, Callable[..., VAE]]:
    """Import the function that builds a run's model, if the user names it.

    Args:
        model: --model of the command.
        saved: --model that the run's config.json names.
        run: its folder.

    Returns:
        The user's function under its name; nothing for a model that ships with jaxvae.

    Raises:
        ValueError: the user names none or another one, or it cannot be imported.
    """
    if model is not None and _builder(model) != _builder(saved):
        raise ValueError(
            f"--model must be the one that {run} was trained with, {_short(saved)}, got {model}. "
            "Remove the flag, or give that one if you trust it."
        )
    if _builder(saved) in MODELS:
        return {}
    if model is None:
        raise ValueError(
            f"{run} was trained with the model {_short(saved)}, which jaxvae does not ship and "
            "does not import because a folder names it. If you trust that function, add "
            f"--model={_short(saved)}."
        )
    return {model: own_function(model)}


def check_same_model(config: TrainConfig, about: dict[str, Any], run: Path) -> None:
    """Check that a run's config.json and a checkpoint of it mean the same model.

    Args:
        config: from config.json.
        about: of the checkpoint.
        run: the run's folder.

    Raises:
        ValueError: naming what differs.
    """
    name, builder = name_of(about.get("vae")), _builder(config.model)
    if name != builder:
        raise ValueError(
            f"{run} has the model {_short(builder)} in its config.json and {_short(name)} in a "
            "checkpoint. Restore the folder from a copy."
        )


def check_same_sizes(config: TrainConfig, about: dict[str, Any], run: Path) -> None:
    """Check that config.json describes no other, perhaps larger, model than a checkpoint.

    Args:
        config, about, run: as `check_same_model` takes them, for a model that the user has
            consented to.

    Raises:
        ValueError: naming what differs.
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
    """Check that nothing needs to be downloaded to a folder that only config.json names.

    Args:
        config: from config.json.
        dataset: the user's --dataset; None: the run's own.

    Raises:
        FileNotFoundError: naming the folder.
    """
    name = dataset or config.dataset
    if name not in ("mnist", "fashion_mnist", "kmnist") or config.data_dir is None:
        return
    if not (Path(config.data_dir).expanduser() / f"{name}_idx").is_dir():
        raise FileNotFoundError(
            f"{name} is not prepared in {config.data_dir}, the --data-dir of the run, and is not "
            "downloaded to a place because a run's folder names it. Bring the data back, or "
            "prepare them there with a training of your own."
        )


def _builder(model: str) -> str:
    """Return the name of --model in recipes."""
    name = SHIPPED.get(model, model)
    return ALIASES.get(name, name)


def _short(name: str) -> str:
    """Show a name from a file, which may hold anything."""
    return repr(name[:100])
