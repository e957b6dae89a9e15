"""Differences in units of a scale that is given by its logarithm."""

import jax
import jax.numpy as jnp


def standardized(difference: jax.Array, log_scale: jax.Array) -> jax.Array:
    """difference / exp(log_scale), entry by entry.

    By two factors exp(-log_scale / 2): in float32 exp(-log_scale) is infinite from -89 down and 0
    from 104 up, which makes NaN of a difference of 0, and of gradients. These are finite and
    positive from -177 to 174.

    >>> standardized(jnp.array([0.0, 1e-30]), jnp.float32(-100.0)).tolist()[0]
    0.0
    """
    half = jnp.exp(-0.5 * log_scale)
    return difference * half * half
