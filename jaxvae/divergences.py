"""Kullback-Leibler divergences: closed form where there is one, estimated where there is none."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from jaxvae.distributions import (
    Distribution,
    FullCovarianceGaussian,
    Gaussian,
    at_least_float32,
    check_summed,
    sample_and_log_prob,
)


def kl_per_latent(q: Gaussian, p: Gaussian) -> jax.Array:
    """KL(q || p) of each coordinate of two diagonal Gaussians, in nats: [Z].

        1/2 (exp(2r) - 1 - 2r + ((loc_q - loc_p) / s_p)^2)    with r = log s_q - log s_p

    by expm1, so that nearly equal scales keep their digits: the error of a term is about
    3 eps |r|, eps being that of the float type.

    Ref: Kingma & Welling 2013, appendix B (p = N(0, I)).

    >>> kl_per_latent(Gaussian(jnp.ones(2), jnp.zeros(2)), Gaussian.standard(2)).tolist()
    [0.5, 0.5]
    """
    loc_q, log_q, loc_p, log_p = at_least_float32(*q.parameters(), *p.parameters())
    shift = (loc_q - loc_p) * jnp.exp(-log_p)
    return _half_excess(log_q - log_p) + 0.5 * jnp.square(shift)


def _half_excess(log_ratio: jax.Array) -> jax.Array:
    return 0.5 * jnp.expm1(2 * log_ratio) - log_ratio


def _kl_diagonal(q: Gaussian, p: Gaussian) -> jax.Array:
    return jnp.sum(kl_per_latent(q, p))


def _kl_full(q: FullCovarianceGaussian, p: FullCovarianceGaussian) -> jax.Array:
    """The two-Gaussian formula (Doersch 2016, section 2.1) by M = L_p^-1 L_q:

    1/2 (tr(Sigma_p^-1 Sigma_q) - k + log det Sigma_p - log det Sigma_q + |L_p^-1 (mu_p - mu_q)|^2)
    = sum_i [1/2 (M_ii^2 - 1) - log M_ii] + 1/2 sum_(i>j) M_ij^2 + 1/2 |L_p^-1 (mu_p - mu_q)|^2
    """
    loc_q, tril_q, loc_p, tril_p = at_least_float32(q.loc, q.scale_tril, p.loc, p.scale_tril)
    ratio = solve_triangular(tril_p, jnp.tril(tril_q), lower=True)
    shift = solve_triangular(tril_p, loc_q - loc_p, lower=True)
    log_ratio = jnp.log(jnp.diagonal(tril_q)) - jnp.log(jnp.diagonal(tril_p))
    off_diagonal = jnp.square(jnp.tril(ratio, -1)).sum() + jnp.square(shift).sum()
    return jnp.sum(_half_excess(log_ratio)) + 0.5 * off_diagonal


def _as_full(p: Gaussian) -> FullCovarianceGaussian:
    loc, log_scale = p.parameters()
    return FullCovarianceGaussian(loc, jnp.diag(jnp.exp(jnp.broadcast_to(log_scale, loc.shape))))


CLOSED_FORMS: dict[tuple[type, type], Callable[..., jax.Array]] = {
    (Gaussian, Gaussian): _kl_diagonal,
    (FullCovarianceGaussian, FullCovarianceGaussian): _kl_full,
    (Gaussian, FullCovarianceGaussian): lambda q, p: _kl_full(_as_full(q), p),
    (FullCovarianceGaussian, Gaussian): lambda q, p: _kl_full(q, _as_full(p)),
}
"""The pairs (type of q, type of p) that have a formula. Add yours here."""


def has_closed_form(q: Distribution, p: Distribution) -> bool:
    """Whether `kl(q, p)` is a formula for this pair of types.

    >>> has_closed_form(Gaussian.standard(2), Gaussian.standard(2))
    True
    """
    return (type(q), type(p)) in CLOSED_FORMS


def kl(
    q: Distribution, p: Distribution, *, key: jax.Array | None = None, num_samples: int = 1
) -> jax.Array:
    """KL(q || p) = E_q[log q(z) - log p(z)] in nats: a scalar, zero only for equal q and p.

    In closed form for every pair of Gaussians, exact to rounding; else the mean of
    log q(z) - log p(z) over `num_samples` draws of q: unbiased, and negative at times.

    Args:
        q: the distribution that the expectation is over.
        p: the distribution it is compared with, over the same events.
        key: for the estimate; not read where there is a closed form.
        num_samples: draws for the estimate.

    Raises:
        ValueError: the pair has no closed form and no key came, the events differ, or a log_prob
            is not summed to a scalar.

    Ref: Doersch 2016, arXiv 1606.05908, section 2.1.

    >>> float(kl(Gaussian(jnp.ones(2), jnp.zeros(2)), Gaussian.standard(2)))
    1.0
    """
    if has_closed_form(q, p):
        _check_same_events(q, p)
        return CLOSED_FORMS[type(q), type(p)](q, p)
    if key is None or num_samples < 1:
        raise ValueError(
            f"kl: {type(q).__name__} against {type(p).__name__} has no closed form. Pass key= "
            "and num_samples >= 1 for an estimate, or add the formula to divergences.CLOSED_FORMS."
        )

    z, log_q = jax.vmap(partial(sample_and_log_prob, q))(jax.random.split(key, num_samples))
    log_p = jax.vmap(p.log_prob)(z)
    check_summed("q.log_prob(z)", log_q)
    check_summed("p.log_prob(z)", log_p)
    return jnp.mean(log_q - log_p)


def _check_same_events(q: Distribution, p: Distribution) -> None:
    shape_q, shape_p = jnp.shape(q.mean()), jnp.shape(p.mean())
    if shape_q != shape_p:
        raise ValueError(
            f"kl: q and p must have the same event shape, q has {shape_q} and p has {shape_p}. "
            "Build encoder and prior with the same latent_dim."
        )
