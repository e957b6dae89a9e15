"""Importance-weighted bounds: IWAE and its combinations with the ELBO."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jaxvae.bounds.bound import Bound, Decode, Encode, assemble, draw_terms, observe
from jaxvae.bounds.estimators import (
    BIASED,
    EstimatorName,
    GradientWeights,
    LogWeightFunction,
    check_estimator,
    weighted_bound,
    with_gradient,
)

NO_SCORE = "is not defined for two bounds at once. Use 'reparameterized' or 'dreg'."


def iwae(
    key: jax.Array,
    x: Any,
    *,
    encode: Encode,
    decode: Decode,
    prior: Any,
    num_samples: int,
    estimator: EstimatorName = "reparameterized",
    mask: jax.Array | None = None,
    sample_chunk_size: int | None = None,
) -> Bound:
    """The importance-weighted bound of one example, in nats.

        IWAE_K(x) = E log 1/K sum_k w_k    with w_k = p(x, z_k) / q(z_k|x), z_1..K ~ q(z|x)

    ELBO <= IWAE_K <= IWAE_(K+1) <= log p(x), with equality in the limit. As K grows, the
    signal-to-noise ratio of the encoder's reparameterized gradient tends to 0 (Rainforth et al.
    2018); that of "dreg" does not.

    Args:
        key, x, encode, decode, prior, mask, sample_chunk_size: as in `jaxvae.elbo`.
        num_samples: K, at least 1; K = 1 is the ELBO with a sampled KL.
        estimator: "reparameterized", "dreg", "score" or "vimco" (`jaxvae.bounds.estimators`).

    Raises:
        ValueError: as in `jaxvae.elbo`; or the estimator is "stl", which is biased here.

    Ref: Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, 2016, ICLR.

    >>> from jaxvae import Gaussian
    >>> q = Gaussian(jnp.zeros(2), jnp.zeros(2))
    >>> iwae(jax.random.key(0), jnp.zeros(2), encode=lambda x: q, prior=q, num_samples=5,
    ...      decode=lambda z: Gaussian(z, jnp.array(0.0))).log_weights.shape
    (5,)
    """
    example = observe(x, encode, decode, prior, mask, sample_chunk_size)
    return weighted_bound("iwae", key, example, num_samples, estimator, _mean_of_groups(1))


def miwae(
    key: jax.Array,
    x: Any,
    *,
    encode: Encode,
    decode: Decode,
    prior: Any,
    num_samples: int,
    num_groups: int,
    estimator: EstimatorName = "reparameterized",
    mask: jax.Array | None = None,
    sample_chunk_size: int | None = None,
) -> Bound:
    """The mean of several importance-weighted bounds of one example, in nats.

        MIWAE_(M,K)(x) = E 1/M sum_m log 1/K sum_k w_mk

    Its expectation is that of IWAE_K, with less variance, and its gradient for the encoder is
    better than that of IWAE_(MK). (The bound for missing data of the same name is `iwae` with a
    mask.)

    Args:
        key, x, encode, decode, prior, estimator, mask, sample_chunk_size: as in `iwae`.
        num_samples: number of all draws, M K.
        num_groups: M; it must divide num_samples.

    Raises:
        ValueError: as in `iwae`, or num_groups does not divide num_samples.

    Ref: Rainforth et al., Tighter Variational Bounds are Not Necessarily Better, 2018, ICML.

    >>> from jaxvae import Gaussian
    >>> q = Gaussian(jnp.zeros(2), jnp.zeros(2))
    >>> bound = miwae(jax.random.key(0), jnp.zeros(2), encode=lambda x: q, prior=q, num_samples=6,
    ...               num_groups=6, decode=lambda z: Gaussian(z, jnp.array(0.0)))
    >>> bool(jnp.isclose(bound.objective, bound.log_weights.mean()))
    True
    """
    _check_groups("miwae", num_samples, num_groups)
    example = observe(x, encode, decode, prior, mask, sample_chunk_size)
    groups = _mean_of_groups(num_groups)
    return weighted_bound("miwae", key, example, num_samples, estimator, groups)


def piwae(
    key: jax.Array,
    x: Any,
    *,
    encode: Encode,
    decode: Decode,
    prior: Any,
    num_samples: int,
    num_groups: int,
    estimator: EstimatorName = "reparameterized",
    mask: jax.Array | None = None,
    sample_chunk_size: int | None = None,
) -> Bound:
    """MIWAE for the encoder and IWAE for the model, of one example, in nats.

    The value is that of MIWAE_(M,K), a lower bound. The gradient along z and of q is that of MIWAE;
    the gradient of the parameters of p(x|z) and p(z) is that of IWAE_(MK) at the same draws.
    Together they are not the gradient of one function. Parameters that q and p share get the sum.

    Args:
        key, x, encode, decode, prior: as in `miwae`.
        num_samples, num_groups, mask, sample_chunk_size: as in `miwae`.
        estimator: estimator of the encoder's part, "reparameterized" or "dreg".

    Raises:
        ValueError: as in `miwae`, or the estimator is another one.

    Ref: Rainforth et al., Tighter Variational Bounds are Not Necessarily Better, 2018, ICML.

    >>> from jaxvae import Gaussian
    >>> q = Gaussian(jnp.zeros(2), jnp.zeros(2))
    >>> bound = piwae(jax.random.key(0), jnp.zeros(2), encode=lambda x: q, prior=q, num_samples=6,
    ...               num_groups=3, decode=lambda z: Gaussian(z, jnp.array(0.0)))
    >>> bool(bound.objective <= iwae(jax.random.key(0), jnp.zeros(2), encode=lambda x: q, prior=q,
    ...      num_samples=6, decode=lambda z: Gaussian(z, jnp.array(0.0))).objective)
    True
    """
    _check_groups("piwae", num_samples, num_groups)
    example = observe(x, encode, decode, prior, mask, sample_chunk_size)
    rejected = BIASED | {"score": NO_SCORE, "vimco": NO_SCORE}
    check_estimator("piwae", example, estimator, num_samples, rejected, needs_pytree=True)
    terms = draw_terms(key, example, num_samples)
    groups = _mean_of_groups(num_groups)
    fixed = jax.lax.stop_gradient(terms.log_weights())
    first = jax.grad(groups.value)(fixed)
    if estimator == "dreg":
        weights = GradientWeights(jax.nn.softmax(fixed), first - groups.curvature(fixed), None)
    else:
        weights = GradientWeights(jax.nn.softmax(fixed), first, -first)
    return assemble(example, terms, with_gradient(example, terms, groups.value(fixed), weights))


def ciwae(
    key: jax.Array,
    x: Any,
    *,
    encode: Encode,
    decode: Decode,
    prior: Any,
    num_samples: int,
    elbo_weight: jax.Array | float = 0.5,
    estimator: EstimatorName = "reparameterized",
    mask: jax.Array | None = None,
    sample_chunk_size: int | None = None,
) -> Bound:
    """A convex combination of the ELBO and the importance-weighted bound, in nats.

        CIWAE(x) = b ELBO_K(x) + (1 - b) IWAE_K(x)    of the same K draws

    Args:
        key, x, encode, decode, prior: as in `iwae`.
        num_samples, estimator, mask, sample_chunk_size: as in `iwae`.
        elbo_weight: [] b in [0, 1]; may be traced.

    Raises:
        ValueError: as in `iwae`.

    Ref: Rainforth et al., Tighter Variational Bounds are Not Necessarily Better, 2018, ICML.

    >>> from jaxvae import Gaussian
    >>> q = Gaussian(jnp.zeros(2), jnp.zeros(2))
    >>> bound = ciwae(jax.random.key(0), jnp.zeros(2), encode=lambda x: q, prior=q, num_samples=6,
    ...               elbo_weight=1.0, decode=lambda z: Gaussian(z, jnp.array(0.0)))
    >>> bool(jnp.isclose(bound.objective, bound.log_weights.mean()))
    True
    """
    weighted, b = _mean_of_groups(1), lambda logs: jnp.asarray(elbo_weight, logs.dtype)
    function = LogWeightFunction(
        lambda logs: b(logs) * logs.mean() + (1 - b(logs)) * weighted.value(logs),
        lambda logs: (1 - b(logs)) * weighted.curvature(logs),
    )
    example = observe(x, encode, decode, prior, mask, sample_chunk_size)
    return weighted_bound("ciwae", key, example, num_samples, estimator, function)


def _mean_of_groups(num_groups: int) -> LogWeightFunction:
    """1/M sum_m log 1/K sum_k exp(r_mk): IWAE for M = 1, the ELBO for K = 1."""
    return LogWeightFunction(
        partial(_mean_log_mean_exp, num_groups), partial(_group_curvature, num_groups)
    )


def _mean_log_mean_exp(num_groups: int, logs: jax.Array) -> jax.Array:
    groups = logs.reshape(num_groups, -1)
    return jnp.mean(logsumexp(groups, axis=1) - math.log(groups.shape[1]))


def _group_curvature(num_groups: int, logs: jax.Array) -> jax.Array:
    shares = jax.nn.softmax(logs.reshape(num_groups, -1), axis=1).ravel()
    return shares * (1 - shares) / num_groups


def _check_groups(bound: str, num_samples: int, num_groups: int) -> None:
    if num_groups < 1 or num_samples % num_groups:
        raise ValueError(
            f"{bound}: num_groups must divide num_samples, got {num_groups} groups of "
            f"{num_samples} samples. Give num_samples = groups * samples of each."
        )
