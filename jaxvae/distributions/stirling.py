"""Log factorials of large numbers, and t - log(1 + t) for small t, without loss of digits."""

import math

import jax
import jax.numpy as jnp

LARGE = 10.0
"""From this number on, Stirling's series with the terms of STIRLING has an error of 1e-15."""
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)
SMALL = 0.01
"""Below this size, seven terms of the series of t - log(1 + t) have an error of 1e-15."""


def excess(x: jax.Array) -> jax.Array:
    """lgamma(x + 1) - (x log x - x) for x > 0: 1/2 log(2 pi x) + 1/(12 x) - ... for large x."""
    is_large = x > LARGE
    small, large = jnp.where(is_large, 1.0, x), jnp.where(is_large, x, LARGE)
    series = jnp.zeros_like(large)
    for coefficient in reversed(STIRLING):
        series = coefficient + series / jnp.square(large)
    by_series = 0.5 * jnp.log(2 * math.pi * large) + series / large
    return jnp.where(
        is_large, by_series, jax.lax.lgamma(small + 1) - small * jnp.log(small) + small
    )


def less_log1p(t: jax.Array) -> jax.Array:
    """t - log(1 + t) for t > -1; near 0, where it is about t^2 / 2, without cancellation."""
    near = jnp.abs(t) < SMALL
    small, large = jnp.where(near, t, 0.0), jnp.where(near, 1.0, t)
    series = jnp.zeros_like(small)
    for power in range(8, 1, -1):
        series = small * series + (-1) ** power / power
    return jnp.where(near, jnp.square(small) * series, large - jnp.log1p(large))
