"""From flags to a VAE: its recipe, which every checkpoint keeps, and the model built from it."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.preprocessing import Preprocessing
from experiments.data.units import ColumnUnits
from experiments.flags.config import TrainConfig, require
from experiments.flags.memory import require_room
from experiments.machine.keys import root_key
from experiments.run.own_model import own_vae
from jaxvae.models.registry import MODELS, build
from jaxvae.models.vae import VAE

PSEUDO_INPUTS = 2**30
"""Folded into the run's key for the noise of pseudo-inputs, which no other key of it is."""
SHIPPED = {"mlp": "mlp_vae", "conv": "conv_vae"}
"""Value of --model -> name in `jaxvae.models.registry.MODELS`."""


def recipe(
    config: TrainConfig, data_shape: tuple[int, ...], units: ColumnUnits | None = None
) -> dict[str, Any]:
    """What rebuilds the model from a checkpoint: a function's name and its arguments.

    A function of one's own is called with those of the arguments that it takes.

    Args:
        config: the flags.
        data_shape: of one example.
        units: what the model is to see the data in; None: as they are.

    Raises:
        ValueError: no such model or function, or one that does not take what a flag asks for.
    """
    function = _function(config)
    arguments = {
        "data_shape": list(data_shape),
        "latent_dim": config.latent_dim,
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
    }
    arguments = {name: value for name, value in arguments.items() if value is not None}
    accepted = _accepted(function, arguments)
    for name in ("activation", "precision"):
        heard = name in accepted or arguments[name] == getattr(TrainConfig, name)
        require(heard, name, arguments[name], f"left out: {function} takes no {name}")
    heard = units is None or takes_units(config)
    require(heard, "standardize", "columns", f"left out: {function} takes no data_unit")
    return {"function": function, "arguments": accepted}


def takes_units(config: TrainConfig) -> bool:
    """True where the model of the flags can be told location and unit of the data's columns.

    Raises:
        ValueError: no such model or function.
    """
    units = {"data_loc": None, "data_unit": None}
    return _accepted(_function(config), units) == units


def _function(config: TrainConfig) -> str:
    """The name of the function that makes the model, in recipes."""
    function = SHIPPED.get(config.model, config.model)
    if config.model not in SHIPPED and ":" not in function:
        raise ValueError(
            f"--model must be {', '.join(SHIPPED)} or package.module:function, got {config.model}."
        )
    return function


def initial_vae(
    recipe: dict[str, Any], config: TrainConfig, preprocessing: Preprocessing, train: np.ndarray
) -> VAE:
    """The model of a recipe, starting at the data's mean and scale where the flags say so."""
    require_room(config, train[0].size)
    start: dict[str, Any] = {}
    if config.data_mean_init:
        start["data_mean"] = jnp.asarray(preprocessing.mean)
    unit = recipe["arguments"].get("data_unit", 1.0)
    start["data_scale"] = _data_scale(preprocessing, train, np.asarray(unit, np.float32))
    if config.prior == "vamp":
        start["pseudo_inputs"] = _pseudo_inputs(config, preprocessing, train)
    function = recipe["function"]
    start = _accepted(function, start)
    if function in SHIPPED.values():
        return build(recipe, **start)
    return own_vae(recipe, start, own_function(function), preprocessing, train)


def own_function(model: str) -> Callable[..., VAE]:
    """Import the function "package.module:function" that a user has named with --model.

    Never call this with a name that a run's folder holds: importing a module runs it.

    Raises:
        ValueError: there is no such function.
    """
    module_name, _, name = model.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function: Callable[..., VAE] = getattr(importlib.import_module(module_name), name)
        inspect.signature(function)
    except Exception as error:  # a module of one's own may raise anything
        raise ValueError(
            f"--model={model}: {error}. Give an importable package.module:function that "
            "returns a jaxvae.VAE."
        ) from error
    return function


def _accepted(function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function takes, in `MODELS` or "package.module:function"."""
    parameters = inspect.signature(MODELS.get(function) or own_function(function)).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def _pseudo_inputs(
    config: TrainConfig, preprocessing: Preprocessing, train: np.ndarray
) -> jax.Array:
    """Training examples, drawn with the run's seed: [num_components, *data_shape]."""
    count = config.num_components
    rows = np.random.default_rng(config.seed).choice(len(train), count, replace=count > len(train))
    key = jax.random.fold_in(root_key(config.seed), PSEUDO_INPUTS)
    return jax.vmap(preprocessing.prepare)(jax.random.split(key, count), jnp.asarray(train[rows]))


def spread(preprocessing: Preprocessing, train: np.ndarray) -> float:
    """Root mean square of the first 1,000 training examples about their mean, in their own unit."""
    with jax.transfer_guard("allow"):  # a run that is training has it guarded
        errors = np.asarray(_errors(preprocessing, train), np.float64)
    return float(np.sqrt(np.square(errors).mean()))


def _data_scale(preprocessing: Preprocessing, train: np.ndarray, unit: np.ndarray) -> float:
    """The same in a unit of each column, and at least 0.001."""
    errors = _errors(preprocessing, train)
    squares = jnp.square(errors / jnp.broadcast_to(unit, errors.shape))
    return max(float(jnp.sqrt(squares.mean())), 1e-3)


def _errors(preprocessing: Preprocessing, train: np.ndarray) -> jax.Array:
    head = jnp.asarray(train[:1000])
    xs = jax.vmap(preprocessing.prepare)(jax.random.split(root_key(0), len(head)), head)
    return xs - preprocessing.mean[None]
