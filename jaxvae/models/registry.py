"""Recipes of models: the name of a builder and its arguments, as stored in checkpoints.

A checkpoint can come from anybody, so a recipe never names code to import. It names an entry of
`MODELS`, or a function that the caller passes in under exactly that name.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from jaxvae.models.builders import conv_vae, mlp_vae, resnet_vae
from jaxvae.models.vae import VAE

MODELS: Mapping[str, Callable[..., VAE]] = MappingProxyType(
    {"mlp_vae": mlp_vae, "conv_vae": conv_vae, "resnet_vae": resnet_vae}
)
"""Builders that a recipe may name without the caller passing them in."""
SHORT_NAMES = MappingProxyType({"mlp": "mlp_vae", "conv": "conv_vae", "resnet": "resnet_vae"})
"""Name of a model for users -> name in `MODELS`."""
ALIASES = MappingProxyType({"jaxvae.vae:mlp_vae": "mlp_vae", "jaxvae.vae:conv_vae": "conv_vae"})
"""Names in checkpoints of release 0.1.0 -> names in `MODELS`."""
LISTS = ("data_shape", "hidden", "channels")
NUMBER_LISTS = ("data_loc", "data_unit")
INTEGERS = (
    *("latent_dim", "width", "num_categories", "num_components"),
    *("latent_channels", "blocks"),
)
SIZES_OR_SIZE = ("condition",)
NUMBERS = ("sigma", "data_scale")
SWITCHES = ("rematerialize",)
ARRAYS = ("data_mean", "pseudo_inputs")
SIGMAS = ("learned", "per_channel", "per_pixel", "optimal")
"""Arguments of `MODELS` that are not text, by type; sigma may also be one of SIGMAS. Recipes hold
no arrays."""
LONGEST_TEXT = 100
LARGEST = 3.4e38
"""Upper limit of the numbers of a recipe: the largest float32."""
LONGEST_LIST = 256
"""Most entries of a shape or of a list of widths, since tracing a model takes time for each."""
SMALL = 1000
"""Sizes up to this one are allowed in every model, even one with fewer parameters."""


def name_of(recipe: Any) -> str:
    """Return the name of the builder, with aliases resolved.

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
        recipe: for example from a checkpoint. No name in it is ever imported.
        models: builders outside `MODELS`, each under the name that the recipe uses.
        start: more arguments, which recipes do not hold: data_mean, data_scale, pseudo_inputs.

    Raises:
        ValueError: the builder is unknown, or does not accept these arguments.

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
        if key in ARRAYS:
            raise ValueError(
                f"{name}: a recipe does not hold {key}, an array for the start of training. "
                "Restore the checkpoint from a copy."
            )
        _check_value(name, key, value)


def _check_value(name: str, key: str, value: Any) -> None:
    if key in LISTS or (key in SIZES_OR_SIZE and isinstance(value, list | tuple)):
        right = isinstance(value, list | tuple) and len(value) <= LONGEST_LIST
        right = right and all(_is_size(item) for item in value)
        right = right or (key == "hidden" and value is None and name == "conv_vae")
        what = f"a list of at most {LONGEST_LIST} integers from 1 to 2,147,483,647"
    elif key in SIZES_OR_SIZE and not isinstance(value, list | tuple):
        right, what = _is_size(value), "an integer from 1 to 2,147,483,647, or a list of them"
    elif key in NUMBER_LISTS:  # one number per column of the data; the file's size limits them
        right = isinstance(value, list | tuple) and all(map(_is_number, value))
        what = "a list of finite numbers"
    elif key in SWITCHES:
        right, what = isinstance(value, bool), "true or false"
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
            f"{name}: {key[:80]} must be {what}, got {repr(value)[:60]}. Correct it, or "
            "restore the checkpoint from a copy."
        )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def check_sizes(recipe: Any, num_values: int) -> None:
    """Check that a checkpoint with `num_values` parameters can hold a recipe's model.

    The check is cheap, whereas tracing a model of absurd sizes can exhaust the memory. No size
    exceeds the number of parameters, since each hidden unit, entry of the data and latent has its
    own bias, and a full covariance has a bias for each pair of latents.

    Args:
        recipe: a recipe; only those of builders in `MODELS` are checked.
        num_values: number of entries of all parameters in the checkpoint.

    Raises:
        ValueError: the message names the argument that is too large.
    """
    name, arguments = name_of(recipe), recipe["arguments"]
    if name not in MODELS:
        return
    _check(name, arguments, {})
    on_map = arguments.get("latent_channels") is not None
    latents = 1 if on_map else arguments.get("latent_dim", 1)
    sizes = {
        "hidden": max(arguments.get("hidden") or (1,)),
        "channels": max(arguments.get("channels", (1,))),
        "latent_channels": arguments.get("latent_channels", 1),
        "width": arguments.get("width", 1),
        "latent_dim": latents,
    }
    given = arguments.get("condition", 1)
    sizes["condition"] = given if isinstance(given, int) else math.prod(given)
    shape = arguments.get("data_shape", ())
    if name == "mlp_vae":  # images of conv_vae have at most 64 x 64 pixels
        sizes["data_shape"] = math.prod(shape)
    if name == "resnet_vae":  # the sides are limited, and have no parameters of their own
        sizes["data_shape"] = math.prod(shape[2:])
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
