"""Recipes of models: the name of a builder and its arguments, as checkpoints store them.

A checkpoint can come from anybody, so a recipe never names code to import. It names an entry of
`MODELS`, or a function that the caller passes in under exactly that name.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from jaxvae.models.vae import VAE, conv_vae, mlp_vae

MODELS: Mapping[str, Callable[..., VAE]] = MappingProxyType(
    {"mlp_vae": mlp_vae, "conv_vae": conv_vae}
)
"""Builders that a recipe may name without the caller's consent."""
ALIASES = MappingProxyType({"jaxvae.vae:mlp_vae": "mlp_vae", "jaxvae.vae:conv_vae": "conv_vae"})
"""Names in checkpoints of release 0.1.0 -> names in `MODELS`."""
LISTS = ("data_shape", "hidden")
NUMBER_LISTS = ("data_loc", "data_unit")
INTEGERS = ("latent_dim", "width", "num_categories", "num_components")
NUMBERS = ("sigma", "data_scale")
SIGMAS = ("learned", "per_channel", "per_pixel", "optimal")
"""Arguments of `MODELS` that are not text; sigma may be in SIGMAS. No recipe holds arrays."""
LONGEST_TEXT = 100
LARGEST = 3.4e38
"""No float32 is larger."""
LONGEST_LIST = 256
"""Most entries of a shape or of a list of widths: tracing a model takes time for each."""
SMALL = 1000
"""A size that every model may have, also one with fewer parameters than that."""


def name_of(recipe: Any) -> str:
    """Return the name of the builder, without an alias.

    Raises:
        ValueError: the recipe is not a builder's name with arguments.

    >>> name_of({"function": "jaxvae.vae:mlp_vae", "arguments": {}})
    'mlp_vae'
    """
    if not isinstance(recipe, dict) or not (
        isinstance(recipe.get("function"), str) and isinstance(recipe.get("arguments"), dict)
    ):
        raise ValueError(
            'a recipe must be {"function": NAME, "arguments": {...}}, got '
            f"{str(recipe)[:60]!r}. Restore the checkpoint from a copy."
        )
    function: str = recipe["function"]
    return ALIASES.get(function, function)


def build(
    recipe: dict[str, Any], models: Mapping[str, Callable[..., VAE]] = MODELS, **start: Any
) -> VAE:
    """Build the VAE of a recipe {"function": name, "arguments": {...}}.

    Args:
        recipe: from a checkpoint, say. Nothing is imported by a name in it.
        models: builders outside `MODELS`, each under the name that the recipe has for it.
        start: more arguments, which recipes do not hold: data_mean, data_scale, pseudo_inputs.

    Raises:
        ValueError: the builder is unknown, or takes no such arguments.

    >>> recipe = {"function": "mlp_vae", "arguments": {"data_shape": [8], "latent_dim": 2}}
    >>> build(recipe).prior({}).mean().shape
    (2,)
    """
    name = name_of(recipe)
    function = MODELS.get(name) or models.get(name)
    if function is None:
        raise ValueError(
            f"the model is built by {name[:80]!r}, which is not one of {', '.join(MODELS)} and is "
            "not imported because a checkpoint names it. If you trust it, pass the function: "
            f"load(path, models={{{name[:80]!r}: function}}), or --model={name[:80]} on the "
            "command line."
        )
    arguments = recipe["arguments"]
    if name in MODELS:
        _check(name, arguments, start)
    arguments = {
        key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()
    }
    return function(**arguments, **start)


def _check(name: str, arguments: dict[str, Any], start: dict[str, Any]) -> None:
    """Check names, types and sizes of the arguments of a builder in `MODELS`.

    Raises:
        ValueError: one line with what is wrong.
    """
    try:
        inspect.signature(MODELS[name]).bind(**arguments, **start)
    except TypeError as error:
        raise ValueError(
            f"the recipe's arguments do not fit {name}: {str(error)[:80]}. Restore the checkpoint "
            "from a copy, or use the release that wrote it."
        ) from error
    for key, value in arguments.items():
        _check_value(name, key, value)


def _check_value(name: str, key: str, value: Any) -> None:
    if key in LISTS:
        right = isinstance(value, list | tuple) and len(value) <= LONGEST_LIST
        right = right and all(_is_size(item) for item in value)
        right = right or (key == "hidden" and value is None and name == "conv_vae")
        what = f"a list of at most {LONGEST_LIST} integers from 1 to 2,147,483,647"
    elif key in NUMBER_LISTS:  # one for each column of the data: the size of the file bounds them
        right = isinstance(value, list | tuple) and all(map(_is_number, value))
        what = "a list of finite numbers"
    elif key in INTEGERS:
        right, what = _is_size(value), "an integer from 1 to 2,147,483,647"
    elif key in NUMBERS:
        number = _is_number(value) and value > 0
        right, what = (
            number or (isinstance(value, str) and value in SIGMAS),
            f"a positive number, {', '.join(SIGMAS)}",
        )
    else:
        right = isinstance(value, str) and len(value) <= LONGEST_TEXT
        what = f"text of at most {LONGEST_TEXT} characters"
    if not right:
        raise ValueError(
            f"{name}: {key[:80]} must be {what}, got {str(value)[:60]}. Correct the flag, or "
            "restore the checkpoint from a copy."
        )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def check_sizes(recipe: Any, num_values: int) -> None:
    """Check that a checkpoint with so many parameters can hold a recipe's model.

    This costs nothing, where tracing a model of absurd sizes can take all memory. Each size in use
    is at most the number of parameters, since each unit, entry of the data and latent has a bias
    of its own; a full covariance has one for each pair of latents.

    Args:
        recipe: with a builder in `MODELS`; of another builder nothing is known.
        num_values: entries of all parameters that the checkpoint holds.

    Raises:
        ValueError: naming the argument that is too large.
    """
    name, arguments = name_of(recipe), recipe["arguments"]
    if name not in MODELS:
        return
    _check(name, arguments, {})
    latents = arguments.get("latent_dim", 1)
    sizes = {
        "hidden": max(arguments.get("hidden") or (1,)),
        "width": arguments.get("width", 1),
        "latent_dim": latents,
    }
    if name == "mlp_vae":  # images of the other are small, and its bias is one for all pixels
        sizes["data_shape"] = math.prod(arguments.get("data_shape", ()))
    if arguments.get("posterior") == "full_covariance":
        sizes["latent_dim"] = latents * (latents + 1) // 2
    if "categorical" in arguments.get("posterior", ""):
        sizes["num_categories"] = latents * arguments.get("num_categories", 1)
    if arguments.get("prior") in ("mixture", "vamp"):
        sizes["num_components"] = arguments.get("num_components", 1)
    for key, size in sizes.items():
        if size > max(num_values, SMALL):
            raise ValueError(
                f"the recipe's {key}={str(arguments.get(key))[:60]} needs at least {size:,} "
                f"parameters, and the checkpoint holds {num_values:,}. Restore it from a copy."
            )
