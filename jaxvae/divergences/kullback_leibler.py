"""KL(q || p) of any two distributions: by the formula for their types, else from draws."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae.distributions import (
    Distribution,
    FullCovarianceGaussian,
    Gaussian,
    LowRankGaussian,
    OneHotCategorical,
    Reshaped,
    UniformSphere,
    VonMisesFisher,
    at_least_float32,
    check_density,
    check_draws,
    check_summed,
    flattened,
    sample_and_log_prob,
)
from jaxvae.divergences.gaussians import (
    kl_by_cholesky,
    kl_full_to_diagonal,
    kl_low_rank_to_diagonal,
    kl_per_coordinate,
)

Formula = Callable[..., jax.Array]


def _kl_one_hot(q: OneHotCategorical, p: OneHotCategorical) -> jax.Array:
    """sum_c q_zc (log q_zc - log p_zc) for each latent: [Z]."""
    logits_q, logits_p = at_least_float32(q.logits, p.logits)
    log_q, log_p = jax.nn.log_softmax(logits_q), jax.nn.log_softmax(logits_p)
    return jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


PER_LATENT: dict[tuple[type, type], Formula] = {
    (Gaussian, Gaussian): kl_per_coordinate,
    (OneHotCategorical, OneHotCategorical): _kl_one_hot,
}
"""Pairs (type of q, type of p) whose KL is a sum over latents -> the terms of that sum."""

CLOSED_FORMS: dict[tuple[type, type], Formula] = {
    (Gaussian, Gaussian): lambda q, p: jnp.sum(kl_per_coordinate(q, p)),
    (Gaussian, LowRankGaussian): kl_by_cholesky,
    (Gaussian, FullCovarianceGaussian): kl_by_cholesky,
    (LowRankGaussian, Gaussian): kl_low_rank_to_diagonal,
    (LowRankGaussian, LowRankGaussian): kl_by_cholesky,
    (LowRankGaussian, FullCovarianceGaussian): kl_by_cholesky,
    (FullCovarianceGaussian, Gaussian): kl_full_to_diagonal,
    (FullCovarianceGaussian, LowRankGaussian): kl_by_cholesky,
    (FullCovarianceGaussian, FullCovarianceGaussian): kl_by_cholesky,
    (OneHotCategorical, OneHotCategorical): lambda q, p: jnp.sum(_kl_one_hot(q, p)),
    (VonMisesFisher, UniformSphere): lambda q, p: q.kl_to_uniform(),
}
"""Pairs (type of q, type of p) -> the formula of their KL. Add yours here."""


def has_closed_form(q: Distribution, p: Distribution) -> bool:
    """True if `kl(q, p)` has a closed form for this pair of types.

    >>> has_closed_form(Gaussian.standard(2), Gaussian.standard(2))
    True
    """
    if _types(*_aligned(q, p)) in CLOSED_FORMS:
        return True
    return jax.eval_shape(lambda: _by_their_library(q, p)) is not None  # computes nothing


def splits_by_latent(q: Distribution, p: Distribution) -> bool:
    """True if `kl_per_latent(q, p)` has a formula for this pair of types.

    >>> splits_by_latent(Gaussian.standard(2), Gaussian.standard(2))
    True
    """
    return _types(q, p) in PER_LATENT


def kl_per_latent(q: Distribution, p: Distribution) -> jax.Array:
    """Terms of a KL(q || p) that is a sum over independent latents, in nats: [Z].

    Args:
        q, p: two diagonal Gaussians, or two OneHotCategoricals: a term for each one-hot row.

    Raises:
        ValueError: the KL of the pair is not such a sum, or the events differ.

    >>> kl_per_latent(Gaussian(jnp.ones(2), jnp.zeros(2)), Gaussian.standard(2)).tolist()
    [0.5, 0.5]
    """
    if not splits_by_latent(q, p):
        raise ValueError(
            f"kl_per_latent: q and p must have independent latents, but {type(q).__name__} against "
            f"{type(p).__name__} has no formula per latent. Use kl, or add the formula to "
            "divergences.PER_LATENT."
        )
    _check_same_events(q, p)
    return PER_LATENT[_types(q, p)](_native(q), _native(p))


def kl(
    q: Distribution, p: Distribution, *, key: jax.Array | None = None, num_samples: int = 1
) -> jax.Array:
    """KL(q || p) = E_q[log q(z) - log p(z)] in nats: a scalar, zero only for equal q and p.

    It is exact to rounding for every pair of Gaussians (diagonal, low-rank, full-covariance, and
    adapted independent normals), for two OneHotCategoricals, for VonMisesFisher against
    UniformSphere, and for two adapted distributions whose library has a formula. Otherwise it is
    the mean of log q(z) - log p(z) over `num_samples` draws of q: unbiased, and at times negative.

    Args:
        q: the distribution of the expectation.
        p: the distribution that q is compared with, over the same events.
        key: for the estimate; unused with a closed form.
        num_samples: draws for the estimate.

    Raises:
        TypeError: q or p is not a distribution.
        ValueError: the pair has no closed form and no key is given, the events differ, or a
            log_prob is not summed to a scalar.

    Ref: Doersch 2016, arXiv 1606.05908, section 2.1.

    >>> float(kl(Gaussian(jnp.ones(2), jnp.zeros(2)), Gaussian.standard(2)))
    1.0
    """
    vectors = _aligned(q, p)
    if _types(*vectors) in CLOSED_FORMS:
        _check_same_events(q, p)
        return CLOSED_FORMS[_types(*vectors)](*map(_native, vectors))
    theirs = _by_their_library(q, p)
    if theirs is not None:
        return theirs
    if key is None or num_samples < 1:
        raise ValueError(
            f"kl: {type(q).__name__} against {type(p).__name__} has no closed form. Pass key= "
            "and num_samples >= 1 for an estimate, or add the formula to divergences.CLOSED_FORMS."
        )

    check_draws("q", q)
    check_density("p", p)
    z, log_q = jax.vmap(partial(sample_and_log_prob, q))(jax.random.split(key, num_samples))
    log_p = jax.vmap(p.log_prob)(z)
    check_summed("q.log_prob(z)", log_q)
    check_summed("p.log_prob(z)", log_p)
    return jnp.mean(log_q - log_p)


def _native(p: Distribution) -> Any:
    """An adapted distribution as a class of this library, if there is one; else itself."""
    return p.native() if hasattr(p, "native") else p


def _aligned(q: Distribution, p: Distribution) -> tuple[Distribution, Distribution]:
    """q and p over vectors if one of them is a reshaped distribution of vectors; else as given."""
    any_reshaped = isinstance(q, Reshaped) or isinstance(p, Reshaped)
    return (flattened(q), flattened(p)) if any_reshaped else (q, p)


def _types(q: Distribution, p: Distribution) -> tuple[type, type]:
    return type(_native(q)), type(_native(p))


def _by_their_library(q: Distribution, p: Distribution) -> jax.Array | None:
    """KL of two distributions by the formula of their library, a scalar; None without one."""
    if not (hasattr(q, "kl_to") and hasattr(p, "inner")):
        return None
    divergence = q.kl_to(p.inner)
    return divergence if divergence is not None and jnp.ndim(divergence) == 0 else None


def _check_same_events(q: Distribution, p: Distribution) -> None:
    shape_q, shape_p = _event_shape(q), _event_shape(p)
    if shape_q != shape_p:
        raise ValueError(
            f"kl: q and p must have the same event shape, q has {shape_q} and p has {shape_p}. "
            "Build encoder and prior with the same latent_dim."
        )


def _event_shape(p: Distribution) -> tuple[int, ...]:
    """Shape of one event, found by tracing `sample` without drawing."""
    return jax.eval_shape(lambda: p.sample(jax.random.key(0))).shape
