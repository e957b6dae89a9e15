"""The variational Renyi objective."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jaxvae.bounds.bound import Bound, Decode, Encode, observe
from jaxvae.bounds.estimators import EstimatorName, LogWeightFunction, weighted_bound


def renyi(
    key: jax.Array,
    x: Any,
    *,
    encode: Encode,
    decode: Decode,
    prior: Any,
    num_samples: int,
    alpha: jax.Array | float,
    estimator: EstimatorName = "reparameterized",
    mask: jax.Array | None = None,
    sample_chunk_size: int | None = None,
) -> Bound:
    """The variational Renyi objective of one example, in nats.

        L_alpha(x) = E 1/(1 - alpha) log 1/K sum_k w_k^(1 - alpha)

    It is IWAE_K at alpha = 0 and the ELBO with a sampled KL at alpha = 1, where value and gradient
    are continuous. It falls as alpha rises. For alpha >= 0 it is a lower bound on log p(x); for
    alpha < 0 it is not: with many samples it exceeds log p(x).

    Args:
        key, x, encode, decode, prior, num_samples, estimator, mask, sample_chunk_size: as in
            `jaxvae.iwae`.
        alpha: [] order; may be traced, but has no gradient.

    Raises:
        ValueError: as in `jaxvae.iwae`.

    Ref: Li & Turner, Renyi Divergence Variational Inference, 2016, NeurIPS.

    >>> from jaxvae import Gaussian
    >>> q = Gaussian(jnp.zeros(2), jnp.zeros(2))
    >>> bound = renyi(jax.random.key(0), jnp.zeros(2), encode=lambda x: q, prior=q, num_samples=6,
    ...               alpha=1.0, decode=lambda z: Gaussian(z, jnp.array(0.0)))
    >>> bool(jnp.isclose(bound.objective, bound.log_weights.mean()))
    True
    """
    order = 1 - jax.lax.stop_gradient(jnp.asarray(alpha))
    function = LogWeightFunction(partial(_log_power_mean, order), partial(_power_curvature, order))
    example = observe(x, encode, decode, prior, mask, sample_chunk_size)
    return weighted_bound("renyi", key, example, num_samples, estimator, function)


def _log_power_mean(order: jax.Array, logs: jax.Array) -> jax.Array:
    """1/t log 1/K sum_k exp(t r_k), which tends to the mean of r for t -> 0.

    With m the mean of r: if all t |r - m| are below 1, computed by expm1 and log1p, whose error
    does not grow as t -> 0; else by logsumexp. At t = 0, where neither is defined, it is m.
    """
    center = jax.lax.stop_gradient(logs.mean())
    spread = logs - center
    at_zero = jnp.abs(order) < jnp.finfo(logs.dtype).eps ** 2
    order = jnp.where(at_zero, 1, order).astype(logs.dtype)
    near = jnp.abs(order) * jnp.max(jnp.abs(jax.lax.stop_gradient(spread))) < 1
    inside = jnp.where(near, order * spread, 0)
    outside = jnp.where(near, 0, order * spread)
    by_expm1 = jnp.log1p(jnp.mean(jnp.expm1(inside)))
    by_sum = logsumexp(outside) - jnp.log(logs.size)
    excess = jnp.where(near, by_expm1, by_sum) / order
    return center + jnp.where(at_zero, spread.mean(), excess)


def _power_curvature(order: jax.Array, logs: jax.Array) -> jax.Array:
    order = order.astype(logs.dtype)
    shares = jax.nn.softmax(order * logs)
    return order * shares * (1 - shares)
