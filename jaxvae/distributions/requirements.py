"""Checks, at trace time, that an argument is a distribution, a function or an array."""

import inspect
from typing import Any

import jax
import numpy as np

EXAMPLE = "an object such as jaxvae.Gaussian(loc, log_scale) or jaxvae.Bernoulli(logits)"


def check_density(what: str, p: Any) -> None:
    """Reject an object without `log_prob(value)`.

    Args:
        what: name of the argument or call that gave it, such as "decode(z)".
        p: the object.

    Raises:
        TypeError: the object has no log_prob; the message names `what`, the object and a remedy.
    """
    if isinstance(p, type) or not callable(getattr(p, "log_prob", None)):
        raise TypeError(
            f"{what} must be a distribution, with log_prob(value); got {_described(p)}. "
            f"{_remedy(what, p)}"
        )


def check_draws(what: str, q: Any) -> None:
    """Reject an object without `sample(key)` and `log_prob(value)`.

    `sample_and_log_prob(key)` alone is enough.

    Args:
        what: name of the argument or call that gave it, such as "encode(x)".
        q: the object.

    Raises:
        TypeError: a method is missing; the message names `what`, the object and a remedy.
    """
    jointly = getattr(q, "sample_and_log_prob", None)
    if not isinstance(q, type) and callable(jointly) and _key_is_enough(jointly):
        return
    check_density(what, q)
    sample = getattr(q, "sample", None)
    if callable(sample) and _key_is_enough(sample):
        return
    has = f"sample{inspect.signature(sample)}" if callable(sample) else "no sample"
    raise TypeError(
        f"{what} must have sample(key); got {_described(q)}, which has {has}. For a distribution "
        "of distrax, TFP or numpyro, pass jaxvae.adapt(...) of it."
    )


def check_function(what: str, function: Any) -> None:
    """Reject an object that cannot be called, such as a distribution in place of `encode`.

    Raises:
        TypeError: the object is not callable; the message names `what` and the object.
    """
    if not callable(function):
        raise TypeError(
            f"{what} must be a function, got {_described(function)}. Pass the function, not what "
            "it returns."
        )


def check_array(what: str, value: Any) -> None:
    """Reject a log probability that is not an array.

    Raises:
        TypeError: the value is not an array; the message names `what` and the value.
    """
    if not isinstance(value, (jax.Array, np.ndarray, np.generic, float, int)):
        raise TypeError(f"{what} must be a scalar array, got {_described(value)}. Return the sum.")


def _key_is_enough(method: Any) -> bool:
    """True if method(key) draws.

    distrax and TFP need seed=key, and TFP would read a single key as the shape of the sample.
    """
    try:
        signature = inspect.signature(method)
        signature.bind(None)
    except TypeError:
        return False
    except ValueError:  # the method has no signature
        return True
    return "seed" not in signature.parameters


def _described(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return f"an array {value.dtype}{list(value.shape)}"
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return f"a {type(value).__name__} of {len(value)}"
    if inspect.isroutine(value):
        return f"the function {value.__name__}"
    return f"an object of type {type(value).__name__}"


def _remedy(what: str, value: Any) -> str:
    if value is None:
        return f"Return one, {EXAMPLE}."
    if isinstance(value, type):
        return f"Make an instance: {value.__name__}(...)."
    if inspect.isroutine(value):
        return "Call it, and pass what it returns."
    if callable(getattr(value, "sample", None)):
        return "Pass jaxvae.adapt(...) of it, or give it a log_prob."
    verb = "Return" if what.endswith(")") else "Pass"
    return f"{verb} {EXAMPLE}."
