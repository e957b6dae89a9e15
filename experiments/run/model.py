"""Build a VAE from flags: its recipe, which every checkpoint stores, and the model itself."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.flags.config import TrainConfig, require
from experiments.flags.memory import require_room
from experiments.run.own_model import own_vae
from jaxvae.models.registry import MODELS, SHORT_NAMES, build
from jaxvae.models.vae import VAE
from jaxvae.preprocessing import Preprocessing
from jaxvae.preprocessing.columns import ColumnUnits
from jaxvae.preprocessing.statistics import data_scale, pseudo_inputs

NEEDED = (
    *("latent_dim", "latent_channels", "hidden", "channels", "blocks", "rematerialize"),
    *("activation", "precision", "initialization"),
    *("posterior", "prior", "num_components", "num_categories"),
)
"""Flags that differ from their defaults only where the model's function takes them."""


def recipe(
    config: TrainConfig,
    data_shape: tuple[int, ...],
    units: ColumnUnits | None = None,
    num_categories: int | None = None,
) -> dict[str, Any]:
    """Return the name and arguments of the function that builds the model, for checkpoints.

    A user's own function gets only those of the arguments that it takes.

    Args:
        config: the flags.
        data_shape: shape of one example.
        units: location and unit of the data's columns; None: the model sees them as they are.
        num_categories: number of labels of --condition=label; None: no condition.

    Raises:
        ValueError: there is no such model or function, or it lacks an argument that a flag needs.
    """
    function = _function(config)
    arguments = {
        "data_shape": list(data_shape),
        "latent_dim": config.latent_dim,
        "latent_channels": config.latent_channels,
        "channels": None if config.channels is None else list(config.channels),
        "blocks": config.blocks,
        "rematerialize": config.rematerialize or None,
        "hidden": None if config.hidden is None else list(config.hidden),
        "posterior": config.posterior,
        "prior": config.prior,
        "likelihood": config.likelihood,
        "sigma": config.sigma,
        "num_components": config.num_components,
        "num_categories": config.num_categories,
        "initialization": config.initialization,
        "activation": config.activation,
        "precision": config.precision,
        "data_loc": None if units is None else units.loc,
        "data_unit": None if units is None else units.unit,
        "condition": num_categories,
    }
    arguments = {name: value for name, value in arguments.items() if value is not None}
    accepted = _accepted(function, arguments)
    for name in NEEDED:
        given = getattr(config, name)
        has_effect = name in accepted or given == getattr(TrainConfig, name)
        require(has_effect, name, given, f"left out: {function} takes no argument {name!r}")
    has_effect = num_categories is None or "condition" in accepted
    require(has_effect, "condition", "label", f"left out: {function} takes no argument 'condition'")
    has_effect = units is None or takes_units(config)
    require(
        has_effect, "standardize", "columns", f"left out: {function} takes no argument 'data_unit'"
    )
    return {"function": function, "arguments": accepted}


def takes_units(config: TrainConfig) -> bool:
    """Return True if the function that builds the model takes `data_loc` and `data_unit`.

    Raises:
        ValueError: there is no such model or function.
    """
    units = {"data_loc": None, "data_unit": None}
    return _accepted(_function(config), units) == units


def _function(config: TrainConfig) -> str:
    """Return the name that recipes use for the function that builds the model."""
    function = SHORT_NAMES.get(config.model, config.model)
    if config.model not in SHORT_NAMES and ":" not in function:
        raise ValueError(
            f"--model must be {', '.join(SHORT_NAMES)} or package.module:function, got "
            f"{config.model}."
        )
    return function


def initial_vae(
    recipe: dict[str, Any], config: TrainConfig, preprocessing: Preprocessing, train: np.ndarray
) -> VAE:
    """Build the model of a recipe, starting at the data's scale and, with a flag, their mean."""
    require_room(config, train[0].size)
    start: dict[str, Any] = {}
    if config.data_mean_init:
        start["data_mean"] = jnp.asarray(preprocessing.mean)
    unit = recipe["arguments"].get("data_unit", 1.0)
    start["data_scale"] = data_scale(preprocessing, train, np.asarray(unit, np.float32))
    if config.prior == "vamp":
        start["pseudo_inputs"] = pseudo_inputs(
            preprocessing, train, config.num_components, config.seed
        )
    function = recipe["function"]
    start = _accepted(function, start)
    if function in SHORT_NAMES.values():
        return build(recipe, **start)
    return own_vae(recipe, start, own_function(function), preprocessing, train)


def own_function(model: str) -> Callable[..., VAE]:
    """Import the function "package.module:function" that the user named with --model.

    Never call this with a name from a run's folder: importing a module runs it.

    Raises:
        ValueError: the module cannot be imported, or has no such function.
    """
    module_name, _, name = model.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function: Callable[..., VAE] = getattr(importlib.import_module(module_name), name)
        inspect.signature(function)
    except Exception as error:  # a user's module may raise anything
        raise ValueError(
            f"--model={model}: {error}. Give an importable package.module:function that "
            "returns a jaxvae.VAE."
        ) from error
    return function


def _accepted(function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that a function in `MODELS` or "package.module:function" takes."""
    parameters = inspect.signature(MODELS.get(function) or own_function(function)).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}
