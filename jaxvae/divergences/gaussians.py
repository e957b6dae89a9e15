"""KL between any two Gaussians: diagonal, low-rank or full-covariance."""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from jaxvae.distributions import (
    FullCovarianceGaussian,
    Gaussian,
    LowRankGaussian,
    at_least_float32,
    standardized,
)

AnyGaussian = Gaussian | LowRankGaussian | FullCovarianceGaussian


def kl_per_coordinate(q: Gaussian, p: Gaussian) -> jax.Array:
    """KL(q || p) of each coordinate of two diagonal Gaussians, in nats: [Z].

        1/2 (exp(2r) - 1 - 2r + ((loc_q - loc_p) / s_p)^2)    with r = log s_q - log s_p

    computed with expm1, which does not cancel for nearly equal scales: the error of a term is
    about 3 eps |r|, with eps of the float type.

    Ref: Kingma & Welling 2013, appendix B (p = N(0, I)).

    >>> kl_per_coordinate(Gaussian(jnp.ones(2), jnp.zeros(2)), Gaussian.standard(2)).tolist()
    [0.5, 0.5]
    """
    loc_q, log_q, loc_p, log_p = at_least_float32(*q.parameters(), *p.parameters())
    shift = standardized(loc_q - loc_p, log_p)
    return _half_excess(log_q - log_p) + 0.5 * jnp.square(shift)


def kl_low_rank_to_diagonal(q: LowRankGaussian, p: Gaussian) -> jax.Array:
    """KL(q || p) in O(Z R^2): the KL of q without its factor F, plus the contribution of F.

    1/2 |F / s_p|^2 - 1/2 log det (I + F^T D_q^-2 F)    (Frobenius)
    """
    loc_p, log_p = p.parameters()
    loc_q, factor, log_q = q.parameters()
    factor, log_p = at_least_float32(factor, jnp.broadcast_to(log_p, jnp.shape(loc_p)))
    diagonal = jnp.sum(kl_per_coordinate(Gaussian(loc_q, log_q), Gaussian(loc_p, log_p)))
    spread = 0.5 * jnp.sum(jnp.square(standardized(factor, log_p[:, None])))
    return diagonal + spread - q.half_log_capacitance()


def kl_full_to_diagonal(q: FullCovarianceGaussian, p: Gaussian) -> jax.Array:
    """KL(q || p) from the rows of L_q in units of p's scales, without a triangular solve."""
    loc_p, log_p = p.parameters()
    log_p = jnp.broadcast_to(log_p, jnp.shape(loc_p))
    loc_q, tril_q, loc_p, log_p = at_least_float32(q.loc, q.scale_tril, loc_p, log_p)
    ratio = standardized(tril_q, log_p[:, None])
    log_ratio = jnp.log(jnp.diagonal(tril_q)) - log_p
    return _kl_of_ratio(ratio, log_ratio, standardized(loc_q - loc_p, log_p))


def kl_by_cholesky(q: AnyGaussian, p: AnyGaussian) -> jax.Array:
    """KL(q || p) by the formula for two Gaussians (Doersch 2016, section 2.1), with M = L_p^-1 L_q.

    1/2 (tr(Sigma_p^-1 Sigma_q) - k + log det Sigma_p - log det Sigma_q + |L_p^-1 (mu_p - mu_q)|^2)
    = sum_i [1/2 (M_ii^2 - 1) - log M_ii] + 1/2 sum_(i>j) M_ij^2 + 1/2 |L_p^-1 (mu_p - mu_q)|^2

    All terms are nonnegative, and zero at M = I. The error of M is eps times the condition number
    of L_p, and the error of the KL at a small distance d is that times d: 6 eps d at scales about
    1. Gradients by an entry of L_p grow with (s_q / s_p)^2 / s_p: they are finite in float32 for
    log scales from -10 to 10 of both q and p.
    """
    q, p = _as_full(q), _as_full(p)
    loc_q, tril_q, loc_p, tril_p = at_least_float32(q.loc, q.scale_tril, p.loc, p.scale_tril)
    ratio = solve_triangular(tril_p, jnp.tril(tril_q), lower=True)
    shift = solve_triangular(tril_p, loc_q - loc_p, lower=True)
    log_ratio = jnp.log(jnp.diagonal(tril_q)) - jnp.log(jnp.diagonal(tril_p))
    return _kl_of_ratio(ratio, log_ratio, shift)


def _as_full(p: AnyGaussian) -> FullCovarianceGaussian:
    if isinstance(p, Gaussian):
        loc, log_scale = p.parameters()
        scale = jnp.exp(jnp.broadcast_to(log_scale, loc.shape))
        return FullCovarianceGaussian(loc, jnp.diag(scale))
    if isinstance(p, LowRankGaussian):
        return FullCovarianceGaussian(p.loc, p.scale_tril())
    return p


def _kl_of_ratio(ratio: jax.Array, log_ratio: jax.Array, shift: jax.Array) -> jax.Array:
    """KL from M (below its diagonal), the logs of M's diagonal, and the scaled mean difference."""
    off_diagonal = jnp.square(jnp.tril(ratio, -1)).sum() + jnp.square(shift).sum()
    return jnp.sum(_half_excess(log_ratio)) + 0.5 * off_diagonal


def _half_excess(log_ratio: jax.Array) -> jax.Array:
    return 0.5 * jnp.expm1(2 * log_ratio) - log_ratio
