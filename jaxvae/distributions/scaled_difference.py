"""Differences divided by a scale that is given by its logarithm."""

import jax
import jax.numpy as jnp


def standardized(difference: jax.Array, log_scale: jax.Array) -> jax.Array:
    """difference / exp(log_scale), entry by entry.

    It is multiplied twice by exp(-log_scale / 2). In float32, exp(-log_scale) is infinite for
    log_scale below -89 and 0 above 104, which turns a difference of 0, and gradients, into NaN.
    The two factors are finite and positive from -177 to 174.

    >>> standardized(jnp.array([0.0, 1e-30]), jnp.float32(-100.0)).tolist()[0]
    0.0
    """
    half = jnp.exp(-0.5 * log_scale)
    return difference * half * half
