"""A model as what rebuilds it: a function's name and its arguments, as checkpoints keep them."""

import importlib
from typing import Any

from jaxvae.vae import VAE


def build(recipe: dict[str, Any]) -> VAE:
    """The VAE of a recipe {"function": "package.module:function", "arguments": {...}}.

    Raises:
        ValueError: there is no such function.
    """
    module_name, _, name = recipe["function"].partition(":")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"no function {recipe['function']!r} ({error}). Give an importable "
            "package.module:function that returns a jaxvae.VAE."
        ) from error
    arguments = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in recipe["arguments"].items()
    }
    return function(**arguments)
