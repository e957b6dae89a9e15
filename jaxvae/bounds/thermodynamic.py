"""The thermodynamic variational objective."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae.bounds.bound import Bound, Decode, Encode, observe
from jaxvae.bounds.estimators import EstimatorName, LogWeightFunction, weighted_bound


def tvo(
    key: jax.Array,
    x: Any,
    *,
    encode: Encode,
    decode: Decode,
    prior: Any,
    num_samples: int,
    num_intervals: int = 5,
    first: float = 0.05,
    estimator: EstimatorName = "reparameterized",
    mask: jax.Array | None = None,
    sample_chunk_size: int | None = None,
) -> Bound:
    """The left Riemann sum of thermodynamic integration, of one example, in nats.

        TVO(x) = sum_t (b_(t+1) - b_t) sum_k v_k(b_t) log w_k,    v_k(b) = w_k^b / sum_j w_j^b

    log p(x) is the integral over b from 0 to 1 of E log w under the geometric path from q (b = 0)
    to the posterior (b = 1), and the integrand rises with b. With the self-normalised weights v of
    K draws the integral is log 1/K sum w_k, so that ELBO <= TVO <= IWAE_K in every draw.

    Args:
        key, x, encode, decode, prior, num_samples, estimator, mask, sample_chunk_size: as in
            `jaxvae.iwae`.
        num_intervals: T; the points are 0 and a geometric series from `first` to 1. With one
            interval it is the ELBO with a sampled KL.
        first: b_1 in (0, 1), the first point after 0.

    Raises:
        ValueError: as in `jaxvae.iwae`, num_intervals < 1, or first outside (0, 1).

    Ref: Masrani, Le & Wood, The Thermodynamic Variational Objective, 2019, NeurIPS.

    >>> from jaxvae import Gaussian
    >>> q = Gaussian(jnp.zeros(2), jnp.zeros(2))
    >>> bound = tvo(jax.random.key(0), jnp.zeros(2), encode=lambda x: q, prior=q, num_samples=6,
    ...             num_intervals=1, decode=lambda z: Gaussian(z, jnp.array(0.0)))
    >>> bool(jnp.isclose(bound.objective, bound.log_weights.mean()))
    True
    """
    if num_intervals < 1 or not 0 < first < 1:
        raise ValueError(
            "tvo: num_intervals must be at least 1 and first in (0, 1), got "
            f"{num_intervals} and {first}."
        )
    points = jnp.concatenate([jnp.zeros(1), jnp.geomspace(first, 1.0, num_intervals)])
    points = points if num_intervals > 1 else jnp.array([0.0, 1.0])
    function = LogWeightFunction(partial(_left_sum, points), partial(_left_curvature, points))
    example = observe(x, encode, decode, prior, mask, sample_chunk_size)
    return weighted_bound("tvo", key, example, num_samples, estimator, function)


def _left_sum(points: jax.Array, logs: jax.Array) -> jax.Array:
    points, center = points.astype(logs.dtype), jax.lax.stop_gradient(logs.max())
    at_point = lambda b: jnp.sum(jax.nn.softmax(b * logs) * (logs - center))
    return center + jnp.sum(jnp.diff(points) * jax.vmap(at_point)(points[:-1]))


def _left_curvature(points: jax.Array, logs: jax.Array) -> jax.Array:
    """Second derivatives F_kk of `_left_sum`.

    With m = sum v r: dv_k/dr_k = b v_k (1 - v_k) and dm/dr_k = v_k (1 + b (r_k - m)).
    """

    def at_point(b: jax.Array) -> jax.Array:
        shares = jax.nn.softmax(b * logs)
        tilt = 1 + b * (logs - jnp.sum(shares * logs))
        return b * shares * (1 - shares) * tilt + b * shares * (1 - shares * tilt)

    points, logs = points.astype(logs.dtype), logs - logs.max()
    return jnp.sum(jnp.diff(points)[:, None] * jax.vmap(at_point)(points[:-1]), axis=0)
