"""Checks of the arguments of `fit`, which run before any work is done."""

import inspect
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxvae.bounds import elbo
from jaxvae.models.likelihoods import LOCATION_SCALE
from jaxvae.models.registry import MODELS, SHORT_NAMES
from jaxvae.models.vae import VAE

FROM_DATA = (
    *("data_shape", "likelihood", "data_loc", "data_unit"),
    *("data_mean", "data_scale", "pseudo_inputs"),
)
"""Arguments of a model that `fit` gives."""


def check_numbers(average_decay: float | None, key: Any, **sizes: int) -> None:
    """Check the sizes of a training, its key, and the decay of its average."""
    for name, value in sizes.items():
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
    if average_decay is not None and not 0 < average_decay < 1:
        raise ValueError(f"average_decay must be in (0, 1) or None, got {average_decay!r}.")
    if isinstance(key, int | np.integer):
        raise ValueError(f"key must be a random key: jax.random.key({key}), got {key}.")


def _check_devices(devices: Any) -> None:
    if not isinstance(devices, list | tuple) or not all(isinstance(d, jax.Device) for d in devices):
        raise ValueError(
            f"devices must be a list of devices, as of jax.devices(), got {devices!r}."
        )
    if not devices:
        raise ValueError(
            "devices must be a list of at least one device, got []. Give None for all."
        )


def check_functions(objective: Any, optimizer: Any, devices: Any, posterior: Any) -> None:
    """Check that objective, optimizer and devices are what they should be, and suit a posterior."""
    if devices is not None:
        _check_devices(devices)
    if not callable(objective):
        raise ValueError(f"objective must be a function like jaxvae.elbo, got {objective!r}.")
    if posterior == "categorical" and objective is elbo:
        raise ValueError(
            "posterior=categorical has discrete draws, which need another estimator: "
            "objective=partial(jaxvae.iwae, num_samples=8, estimator='vimco')."
        )
    if optimizer is not None and not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(
            f"optimizer must be of optax, like optax.adam(0.001), or None, got {optimizer!r}."
        )


def check_folder(folder: Path, model: str | VAE) -> None:
    """Check that a folder can become that of a new run."""
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+:", folder.parts[0] if folder.parts else ""):
        raise ValueError(f"folder must be a local folder, got the address {folder}.")
    if any((folder / "checkpoints").glob("*")) or (folder / "config.json").exists():
        raise ValueError(f"{folder} holds a run already. Give a new folder.")
    if not isinstance(model, str):
        raise ValueError(
            "folder needs a model by name, as a checkpoint stores a recipe and no code. Leave it "
            "out, and save the parameters yourself."
        )


def model_arguments(model: str | VAE, arguments: dict[str, Any]) -> dict[str, Any]:
    """Check the names of a model's arguments, and return them as values of Python.

    Raises:
        ValueError: there is no such model, or it takes no such argument.
    """
    if not isinstance(model, str):
        if arguments:
            raise ValueError(
                f"your own model is built already, got {', '.join(arguments)} for it. Remove them."
            )
        return {}
    if model not in SHORT_NAMES:
        raise ValueError(
            f"model must be {' or '.join(SHORT_NAMES)}, or a jaxvae.VAE; got {model!r}. Use one of "
            "them."
        )
    parameters = inspect.signature(MODELS[SHORT_NAMES[model]]).parameters
    taken = [name for name in parameters if name not in FROM_DATA]
    for name in arguments:
        if name not in taken:
            raise ValueError(
                f"fit with model={model} takes no argument {name!r}. Remove it, or use one of "
                f"{', '.join(taken)}."
            )
    return {name: _plain(value) for name, value in arguments.items()}


def check_sigma(arguments: dict[str, Any], likelihood: str) -> None:
    """Check that sigma has an effect."""
    if "sigma" in arguments and likelihood not in LOCATION_SCALE:
        raise ValueError(
            f"sigma is for likelihood={' or '.join(LOCATION_SCALE)}, and this one is {likelihood}. "
            "Remove sigma, or give the likelihood."
        )


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy and jax as numbers and lists of Python, which recipes hold."""
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return value.tolist() if isinstance(value, np.generic | np.ndarray | jax.Array) else value
