"""From flags to a VAE: its recipe (kept in every checkpoint), and an optimizer for it."""

import importlib
import inspect
import os
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxvae
from experiments.config import TrainConfig
from experiments.datasets.preprocessing import Preprocessing
from jaxvae.checkpoints import build
from jaxvae.training import Objective
from jaxvae.vae import VAE

SHIPPED = {"mlp": "jaxvae.vae:mlp_vae", "conv": "jaxvae.vae:conv_vae"}


def recipe(config: TrainConfig, data_shape: tuple[int, ...]) -> dict[str, Any]:
    """What rebuilds the model from a checkpoint: a function's name and its arguments.

    A function of one's own is called with those of the arguments that it takes.

    Raises:
        ValueError: no such model or function.
    """
    function = SHIPPED.get(config.model, config.model)
    if ":" not in function:
        raise ValueError(
            f"--model must be {', '.join(SHIPPED)} or package.module:function, got {config.model}."
        )
    arguments = {
        "data_shape": list(data_shape),
        "latent_dim": config.latent_dim,
        "hidden": None if config.hidden is None else list(config.hidden),
        "likelihood": config.likelihood,
        "sigma": config.sigma,
        "initialization": config.initialization,
    }
    arguments = {name: value for name, value in arguments.items() if value is not None}
    return {"function": function, "arguments": _accepted(function, arguments)}


def initial_vae(
    recipe: dict[str, Any], config: TrainConfig, preprocessing: Preprocessing, train: np.ndarray
) -> VAE:
    """The model of a recipe, starting at the data's mean and scale where the flags say so."""
    start: dict[str, Any] = {}
    if config.data_mean_init:
        start["data_mean"] = jnp.asarray(preprocessing.mean)
    if config.likelihood == "gaussian":
        start["data_scale"] = _data_scale(preprocessing, train)
    arguments = recipe["arguments"] | _accepted(recipe["function"], start)
    return build(recipe | {"arguments": arguments})


def make_objective(config: TrainConfig) -> Objective:
    """The bound that the flags name."""
    bound = {"elbo": jaxvae.elbo, "iwae": jaxvae.iwae}[config.objective]
    return partial(bound, num_samples=config.num_samples)


def make_beta(config: TrainConfig) -> optax.Schedule | None:
    """The schedule of beta, or None where it is 1 throughout."""
    if config.beta_warmup_steps:
        return optax.linear_schedule(0.0, config.beta, config.beta_warmup_steps)
    return None if config.beta == 1 else optax.constant_schedule(config.beta)


def make_optimizer(config: TrainConfig, num_steps: int) -> optax.GradientTransformation:
    """The optimizer that the flags describe.

    Args:
        config: the flags.
        num_steps: where a falling schedule ends if --decay-steps does not say.
    """
    decay_steps = config.decay_steps or num_steps
    peak, warmup = config.learning_rate, config.warmup_steps
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, max(decay_steps - warmup, 1)),
        "linear": optax.linear_schedule(peak, 0.0, max(decay_steps - warmup, 1)),
    }[config.schedule]
    rate = after
    if warmup:
        rate = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])
    matrices = lambda params: jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)
    optimizer = {
        "adam": lambda: optax.adam(rate),
        "adamw": lambda: optax.adamw(rate, weight_decay=config.weight_decay, mask=matrices),
        "adamax": lambda: optax.adamax(rate),
        "sgd": lambda: optax.sgd(rate),
    }[config.optimizer]()
    if config.gradient_clip is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(config.gradient_clip), optimizer)
    if config.accumulate_steps > 1:
        steps = optax.MultiSteps(optimizer, config.accumulate_steps)
        return steps.gradient_transformation()
    return optimizer


def _accepted(function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the function "package.module:function" takes."""
    module_name, _, name = function.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        parameters = inspect.signature(
            getattr(importlib.import_module(module_name), name)
        ).parameters
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"--model={function}: {error}. Give an importable package.module:function that "
            "returns a jaxvae.VAE."
        ) from error
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def _data_scale(preprocessing: Preprocessing, train: np.ndarray) -> float:
    """Root mean square of the first 1,000 training examples about the training mean."""
    head = jnp.asarray(train[:1000])
    xs = jax.vmap(preprocessing.prepare)(jax.random.split(jax.random.key(0), len(head)), head)
    squares = jnp.square(xs - preprocessing.mean[None])
    return max(float(jnp.sqrt(squares.mean())), 1e-3)
