"""DIP-VAE: a penalty that draws the covariance of the aggregate posterior to the identity."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from jaxvae.distributions import (
    FullCovarianceGaussian,
    Gaussian,
    NoClosedForm,
    at_least_float32,
)
from jaxvae.leaves import arrays_only
from jaxvae.regularizers.global_batch import check_batch
from jaxvae.regularizers.regularizer import Regularizer, no_state

DipName = Literal["i", "ii"]


def dip(kind: DipName, *, off_diagonal: float, diagonal: float) -> Regularizer:
    """The penalty of DIP-VAE-I or DIP-VAE-II, for the ELBO as objective.

    Args:
        kind, off_diagonal, diagonal: as in `dip_penalty`. The paper has diagonal = 10 *
            off_diagonal for "i" and equal weights for "ii".

    Ref: Kumar, Sattigeri & Balakrishnan, DIP-VAE, 2018, ICLR.

    >>> dip("ii", off_diagonal=10.0, diagonal=10.0).init(jax.random.key(0))
    ()
    """

    def penalty(state: Any, key: jax.Array, q: Any, z: jax.Array, prior: Any) -> jax.Array:
        return dip_penalty(q, kind, off_diagonal=off_diagonal, diagonal=diagonal)

    return Regularizer(no_state, penalty)


def dip_penalty(q: Any, kind: DipName, *, off_diagonal: float, diagonal: float) -> jax.Array:
    """Weighted squared distance of the covariance C of the latents from the identity: [] nats.

        off_diagonal * sum_(i != j) C_ij^2 + diagonal * sum_i (C_ii - 1)^2

    Kind "i": C = Cov_x(E_q z), of the posterior means over the batch (divided by B); "ii": C =
    Cov_x(E_q z) + E_x Cov_q(z), the covariance of the aggregate posterior. The prior must be
    N(0, I). The float32 error is below 1e-6 of the sum of (|C_ij| + [i = j])^2 for centred means;
    a large common offset of the means increases it.

    Args:
        q: [B] posteriors with `mean`; for "ii" Gaussian or FullCovarianceGaussian.
        kind: "i" or "ii".
        off_diagonal, diagonal: weights, in nats.

    Raises:
        ValueError: B < 2, the kind is unknown, the posterior has no mean in closed form, or for
            "ii" is of another family.

    Ref: Kumar et al. 2018, equations 6 and 7.

    >>> q = Gaussian(jnp.array([[1.0], [-1.0]]), jnp.zeros((2, 1)))
    >>> [float(dip_penalty(q, kind, off_diagonal=1.0, diagonal=1.0)) for kind in ("i", "ii")]
    [0.0, 1.0]
    """
    if kind not in get_args(DipName):
        raise ValueError(f"dip: kind must be i or ii, got {kind!r}.")
    try:
        (means,) = at_least_float32(jax.vmap(lambda q: q.mean())(arrays_only(q)))
    except NoClosedForm as error:
        raise ValueError(
            f"dip: the posterior must have a mean in closed form, but {type(q).__name__} has none. "
            "Use another regularizer, or a Gaussian posterior."
        ) from error
    check_batch("dip", means)
    centred = means - jnp.mean(means, 0, keepdims=True)
    covariance = jnp.matmul(centred.T, centred, precision="highest") / len(means)
    if kind == "ii":
        covariance = covariance + jnp.mean(jax.vmap(_covariance)(q), 0)
    own = jnp.eye(len(covariance), dtype=bool)
    squares = jnp.square(covariance - own)
    return jnp.sum(jnp.where(own, diagonal, off_diagonal) * squares)


def _covariance(q: Any) -> jax.Array:
    """Cov_q(z) of one posterior: [Z, Z]."""
    if isinstance(q, FullCovarianceGaussian):
        (tril,) = at_least_float32(jnp.tril(q.scale_tril))
        return jnp.matmul(tril, tril.T, precision="highest")
    if isinstance(q, Gaussian):
        loc, log_scale = q.parameters()
        return jnp.diag(jnp.broadcast_to(jnp.exp(2 * log_scale), loc.shape))
    raise ValueError(
        f"dip: kind 'ii' needs the covariance of the posterior, which {type(q).__name__} does not "
        "have in closed form. Use kind 'i', or a Gaussian posterior."
    )
