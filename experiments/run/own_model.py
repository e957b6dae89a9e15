"""Build, check and trace a model that is the user's own code, before it trains."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.tree_util import all_leaves

import jaxvae
from experiments.machine.keys import root_key
from jaxvae.evaluation import make_score
from jaxvae.leaves import is_trained
from jaxvae.models.condition import Conditioned
from jaxvae.models.registry import build
from jaxvae.models.vae import VAE
from jaxvae.preprocessing import Preprocessing


def own_vae(
    recipe: dict[str, Any],
    start: dict[str, Any],
    make: Callable[..., VAE],
    preprocessing: Preprocessing,
    train: np.ndarray,
) -> VAE:
    """Build a VAE with the user's function, and make it `jaxvae.trainable`.

    Also trace what evaluation and pictures compute, so that they do not fail after training.

    Args:
        recipe: the name "package.module:function" of the user's function, and its arguments.
        start: more arguments, which the recipe does not store.
        make: the user's function.
        preprocessing: preparation of the examples.
        train: [N, ...] training examples as they are stored.

    Raises:
        ValueError: the function raises, does not return a VAE, or the VAE has no parameters to
            train.
    """
    function = recipe["function"]
    named = ", ".join(recipe["arguments"] | start) or "nothing"
    what = f"--model={function} must return a jaxvae.VAE when called with {named}"
    try:
        vae = build(recipe, {function: make}, **start)
    except Exception as error:  # the user's function may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{what}; it gave: {reason}. Correct it.") from error
    if not isinstance(vae, VAE):
        raise ValueError(f"{what}; it returned {str(vae)[:60]}. Correct it.")
    try:
        vae = jaxvae.trainable(vae)
        params = jax.eval_shape(vae.init, root_key(0))
    except Exception as error:  # so may the `init` of the user's VAE
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"--model={function}: init must return parameters; it gave: {reason}"
        ) from error
    if not any(map(is_trained, jax.tree.leaves(params))):
        raise ValueError(
            f"--model={function} has no parameters to train: init must return at least one array "
            "of floating point numbers. Turn Python numbers that should be trained into arrays."
        )
    if (vae.condition is None) != (recipe["arguments"].get("condition") is None):
        taken = "takes no condition" if vae.condition is None else "takes a condition"
        raise ValueError(
            f"--model={function} {taken}. Give --condition=label exactly to a model that takes the "
            "label as its condition."
        )
    _trace_what_follows(vae, params, preprocessing, train)
    return vae


def _trace_what_follows(
    vae: VAE, params: Any, preprocessing: Preprocessing, examples: np.ndarray
) -> None:
    """Trace what evaluation and pictures compute with a model.

    Raises:
        Exception: any error of the model's distributions, such as a missing method.
    """

    def of_one(params: Any, key: jax.Array, stored: Any) -> Any:
        scores = make_score(vae, prepare=preprocessing.prepare, num_samples=1)(params, key, stored)
        given, _ = vae.of_example(stored)
        z = given.prior(params).sample(key)
        if not all_leaves([z]):
            raise ValueError(
                "its latents must be one array for the commands, got a tree. Train it in Python, "
                "with jaxvae.make_train_step."
            )
        return scores, given.decode(params, z).mean()

    example: Any = jax.ShapeDtypeStruct(examples.shape[1:], examples.dtype)
    if vae.condition is not None:
        example = Conditioned(example, jax.ShapeDtypeStruct((), np.int32))
    jax.eval_shape(of_one, params, root_key(0), example)
