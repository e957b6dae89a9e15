"""Modified Bessel functions of the first kind, computed as means over a sphere."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from jaxvae.distributions.distribution import at_least_float32

NUM_NODES = 64


def gauss_legendre(dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Nodes and weights [64] for integrals over [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(NUM_NODES)
    return jnp.asarray(0.5 + 0.5 * nodes, dtype), jnp.asarray(0.5 * weights, dtype)


def reach(dim: int, concentration: jax.Array) -> jax.Array:
    """Angle beyond which exp(k cos a) sin(a)^(Z-2) has less than 1e-16 of its integral.

    Beyond it, the chord 2 sin(a/2) exceeds its mode by at least 9 / sqrt(k). It carries no
    gradient, since no integral depends on it.
    """
    half_chord = (
        0.5 * (math.sqrt(dim - 2) + 9.0) * jax.lax.rsqrt(jax.lax.stop_gradient(concentration))
    )
    return 2 * jnp.arcsin(jnp.minimum(half_chord, 1.0))


def log_sin(angle: jax.Array) -> jax.Array:
    """log sin for angles from 0 to pi; the rounded pi may have a sine of -1e-7."""
    return jnp.log(jnp.maximum(jnp.sin(angle), jnp.finfo(angle.dtype).tiny))


def log_mean_exp_cosine(dim: int, concentration: jax.Array) -> jax.Array:
    """log E exp(k (cos a - 1)), a the angle of a uniform point of the sphere S^(Z-1) to an axis.

        = log Gamma(v + 1) - v log(k / 2) - k + log I_v(k)    with v = Z/2 - 1

    Computed with 64 Gauss-Legendre nodes over the angles up to `reach`. The nodes carry no
    gradient, since the integral does not depend on them: so every derivative is a moment of
    cos a - 1; the first is I_(v+1)(k) / I_v(k) - 1. For Z from 2 to 64 and k from 0 to 1e5, the
    error in float32 is 3e-7 of max(1, its size), or 3e-7 k below k = 1, and 3e-14 in float64; the
    relative error of the slope in float32 is 8e-7.

    Args:
        dim: Z, at least 2.
        concentration: [] k >= 0.

    Ref: Abramowitz & Stegun, Handbook of Mathematical Functions, 1964, equation 9.6.18.

    >>> print(f"{log_mean_exp_cosine(3, jnp.array(2.0)):.4f}")  # log (1 - exp(-4)) / 4
    -1.4048
    """
    (k,) = at_least_float32(concentration)
    nodes, weights = gauss_legendre(k.dtype)
    end = reach(dim, k)
    angle = end * nodes
    log_beta = math.lgamma(0.5) + math.lgamma(0.5 * (dim - 1)) - math.lgamma(0.5 * dim)
    log_uniform = jnp.log(end * weights) + (dim - 2) * log_sin(angle) - log_beta
    drop = 2 * jnp.square(jnp.sin(0.5 * angle))  # 1 - cos a, without cancellation
    # Below k = 1 the nodes cover all angles, and the mean is 1 + E expm1.
    small = jnp.log1p(jnp.sum(jnp.exp(log_uniform) * jnp.expm1(-jnp.where(k < 1.0, k, 0.0) * drop)))
    large = logsumexp(log_uniform - jnp.where(k < 1.0, 1.0, k) * drop)
    return jnp.where(k < 1.0, small, large)


def bessel_ratio_less_one(dim: int, concentration: jax.Array) -> jax.Array:
    """I_(v+1)(k) / I_v(k) - 1 with v = Z/2 - 1, which is -E (1 - cos a), in (-1, 0).

    >>> print(f"{bessel_ratio_less_one(3, jnp.array(2.0)):.4f}")  # coth 2 - 1/2 - 1
    -0.4627
    """
    return jax.grad(partial(log_mean_exp_cosine, dim))(*at_least_float32(concentration))
