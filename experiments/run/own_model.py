"""A model that is a user's own code: built, checked and traced before it trains."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jaxvae
from experiments.data.preprocessing import Preprocessing
from experiments.machine.keys import root_key
from jaxvae.evaluation import make_score
from jaxvae.leaves import is_trained
from jaxvae.models.registry import build
from jaxvae.models.vae import VAE


def own_vae(
    recipe: dict[str, Any],
    start: dict[str, Any],
    make: Callable[..., VAE],
    preprocessing: Preprocessing,
    train: np.ndarray,
) -> VAE:
    """The `jaxvae.trainable` VAE that a function of the user's makes of its arguments.

    What evaluation and pictures need of it is traced, so that it does not fail after training.

    Args:
        recipe: the name "package.module:function" of the user's function, and its arguments.
        start: more arguments, which the recipe does not hold.
        make: the user's function.
        preprocessing: of the data.
        train: [N, ...] examples as they are stored.

    Raises:
        ValueError: the function raises, its result is no VAE, or that has no parameters to train.
    """
    function = recipe["function"]
    named = ", ".join(recipe["arguments"] | start) or "nothing"
    what = f"--model={function} must return a jaxvae.VAE when called with {named}"
    try:
        vae = build(recipe, {function: make}, **start)
    except Exception as error:  # anything, as it is not this project's
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{what}; it gave: {reason}. Correct it.") from error
    if not isinstance(vae, VAE):
        raise ValueError(f"{what}; it returned {str(vae)[:60]}. Correct it.")
    try:
        vae = jaxvae.trainable(vae)
        params = jax.eval_shape(vae.init, root_key(0))
    except Exception as error:  # so may `init` of it
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"--model={function}: init must return its parameters; {reason}"
        ) from error
    if not any(map(is_trained, jax.tree.leaves(params))):
        raise ValueError(
            f"--model={function} has no parameters to train: init must return at least one array "
            "of floating point numbers. Make a number that is to be trained an array."
        )
    _trace_what_follows(vae, params, preprocessing, train)
    return vae


def _trace_what_follows(
    vae: VAE, params: Any, preprocessing: Preprocessing, examples: np.ndarray
) -> None:
    """Trace what evaluation and pictures need of a model.

    Raises:
        Exception: whatever a method of the model's distributions raises, or lacks.
    """

    def of_one(params: Any, key: jax.Array, stored: jax.Array) -> Any:
        scores = make_score(vae, prepare=preprocessing.prepare, num_samples=1)(params, key, stored)
        return scores, vae.decode(params, vae.prior(params).sample(key)).mean()

    example = jax.ShapeDtypeStruct(examples.shape[1:], examples.dtype)
    jax.eval_shape(of_one, params, root_key(0), example)
