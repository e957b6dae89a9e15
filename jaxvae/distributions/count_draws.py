"""Draws of Poisson and Gamma variables with keys of any generator, at any rate.

`jax.random.poisson` takes only threefry keys and returns int32 counts, which saturate.
`jax.random.gamma` loops until every lane has finished (see `jaxvae.distributions.rejection`).
"""

import jax
import jax.numpy as jnp

from jaxvae.distributions.rejection import first_accepted
from jaxvae.distributions.stirling import excess, less_log1p

FEW = 10.0
"""Rate from which counts are drawn by rejection; below it they are drawn by inversion."""
MOST = 64
"""Largest count that inversion draws; the probability of a larger one at a rate of 10 is 2e-28."""


def poisson(key: jax.Array, rate: jax.Array) -> jax.Array:
    """Draw a count from Poisson(rate) for each entry, as floats; not differentiable.

    Masses have an absolute error below 2e-7 in float32. Counts above 2^24 are rounded to the
    nearest float32, by 1 part in 2^24 of the count: less than the standard deviation up to a rate
    of 2^48. An infinite rate gives an infinite count.

    Args:
        key: consumed here, of any generator.
        rate: floats of any shape, at least 0.

    >>> poisson(jax.random.key(0), jnp.array([0.0, jnp.inf])).tolist()
    [0.0, inf]
    """
    key_few, key_many = jax.random.split(key)
    few, finite = rate < FEW, jnp.isfinite(rate)
    count = jnp.where(
        few,
        _by_inversion(key_few, jnp.where(few, rate, 1.0)),
        _by_rejection(key_many, jnp.where(few | ~finite, FEW, rate)),
    )
    return jnp.where(finite, count, rate)


def log_gamma(key: jax.Array, shape: jax.Array) -> jax.Array:
    """Draw log g with g ~ Gamma(shape, 1) for each entry; not differentiable.

        g = d (1 + c x)^3,  d = shape - 1/3,  c = 1 / (3 sqrt(d)),  x ~ N(0, 1)

    is accepted with probability exp(x^2 / 2 + d (1 - v + log v)), v = (1 + c x)^3, at least 0.95
    for a shape of 1 or more. A smaller shape is raised by 1, and g multiplied by u^(1/shape).

    Args:
        key: consumed here, of any generator.
        shape: floats of any shape, positive.

    Ref: Marsaglia & Tsang, A Simple Method for Generating Gamma Variables, 2000, ACM TOMS.
    """
    key_gamma, key_boost = jax.random.split(key)
    d = jnp.where(shape < 1, shape + 1, shape) - 1 / 3
    c = 1 / (3 * jnp.sqrt(d))

    def propose(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_normal, key_uniform = jax.random.split(key)
        x = jax.random.normal(key_normal, d.shape, d.dtype)
        possible = c * x > -1  # where v is positive
        t = jnp.where(possible, c * x, 0.0)
        # log v - (v - 1) = -3 (t - log(1 + t)) - 3 t^2 - t^3
        log_accepted = 0.5 * x * x - d * (3 * less_log1p(t) + 3 * t * t + t * t * t)
        accepted = _log_uniform(key_uniform, d) <= log_accepted
        return 3 * jnp.log1p(t), accepted & possible

    boost = jnp.where(shape < 1, _log_uniform(key_boost, d) / shape, 0.0)
    return jnp.log(d) + first_accepted(key_gamma, propose, d) + boost


def _by_inversion(key: jax.Array, rate: jax.Array) -> jax.Array:
    """Count the cumulative masses that a uniform number reaches, for rates below 10."""
    u = jax.random.uniform(key, rate.shape, rate.dtype)
    # Rounding may leave the sum of all masses below a u near 1: stop at negligible masses too.
    least = float(jnp.finfo(rate.dtype).eps) / 4

    def add(k: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        count, mass, total = state
        k = jnp.asarray(k, rate.dtype)  # a Python number under JAX_DISABLE_JIT
        next_mass = mass * rate / (k + 1)
        passes = (u >= total) & ((next_mass > least) | (k < rate))
        return count + passes.astype(rate.dtype), next_mass, total + next_mass

    zero = jnp.exp(-rate)
    return jax.lax.fori_loop(0, MOST, add, (jnp.zeros_like(rate), zero, zero))[0]


def _by_rejection(key: jax.Array, rate: jax.Array) -> jax.Array:
    """Transformed rejection with a squeeze, for rates from 10; at least 3 in 4 are accepted.

    Ref: Hormann, The transformed rejection method for generating Poisson random variables, 1993,
    Insurance: Mathematics and Economics, algorithm PTRS.
    """
    b = 0.931 + 2.53 * jnp.sqrt(rate)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    squeeze = 0.9277 - 3.6224 / (b - 2)

    def propose(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_u, key_v = jax.random.split(key)
        u = jax.random.uniform(key_u, rate.shape, rate.dtype) - 0.5
        log_v = _log_uniform(key_v, rate)
        room = jnp.maximum(0.5 - jnp.abs(u), 1e-7)
        count = jnp.floor((2 * a / room + b) * u + rate + 0.43)
        log_ratio = log_v + jnp.log(inverse_alpha / (a / jnp.square(room) + b))
        inside = (room >= 0.07) & (log_v <= jnp.log(squeeze))
        outside = (count < 0) | ((room < 0.013) & (log_v > jnp.log(room)))
        accepted = inside | (~outside & (log_ratio <= _log_mass(count, rate)))
        return jnp.maximum(count, 0.0), accepted

    return first_accepted(key, propose, rate)


def _log_mass(count: jax.Array, rate: jax.Array) -> jax.Array:
    """Log mass of Poisson(rate), -k (d - log(1 + d)) - excess(k) with d = rate / k - 1.

    Near the mean the difference rate - k is exact, unlike a difference of logarithms.
    """
    k = jnp.maximum(count, 1.0)
    return jnp.where(count > 0, -k * less_log1p((rate - k) / k) - excess(k), -rate)


def _log_uniform(key: jax.Array, like: jax.Array) -> jax.Array:
    """log u with u uniform in (0, 1), so never -inf."""
    tiny = float(jnp.finfo(like.dtype).tiny)
    return jnp.log(jax.random.uniform(key, like.shape, like.dtype, minval=tiny))
