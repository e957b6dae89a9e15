"""The KL of two hierarchies that draw their levels in the same order, level by level."""

from typing import Any

import jax

from jaxvae.distributions import Hierarchy
from jaxvae.divergences.kullback_leibler import (
    has_closed_form,
    kl,
    kl_per_latent,
    splits_by_latent,
)


def same_order(q: Any, p: Any) -> bool:
    """True if q and p are hierarchies that draw equally many levels in the same order.

    >>> same_order(Hierarchy((), ()), Hierarchy((), (), top_down=False))
    False
    """
    both = isinstance(q, Hierarchy) and isinstance(p, Hierarchy)
    return both and q.top_down == p.top_down and len(q.steps) == len(p.steps)


def kl_per_level(q: Hierarchy, p: Hierarchy, z: tuple[Any, ...]) -> tuple[jax.Array, ...]:
    """Terms of KL(q || p) given one draw z of q: for each level [Z_l], or [] if it does not split.

        KL(q || p) = E_q sum_l KL(q_l(z_l | z_<l) || p_l(z_l | z_<l))

    A level whose pair of distributions has no closed form has log q_l - log p_l at the draw.

    Args:
        q, p: two hierarchies for which `same_order` is True.
        z: latents of each level, top first.

    Ref: Sonderby et al., Ladder Variational Autoencoders, 2016, NeurIPS, equation 5.

    >>> from jax.numpy import ones, zeros
    >>> from jaxvae.distributions import Gaussian
    >>> def level(params, carry):
    ...     return Gaussian(params, zeros(1)), lambda z: z
    >>> q, p = Hierarchy(ones(1), (level,)), Hierarchy(zeros(1), (level,))
    >>> kl_per_level(q, p, (zeros(1),))
    (Array([0.5], dtype=float32),)
    """
    pairs = zip(q.levels(z), p.levels(z), z, strict=True)
    return tuple(_of_level(*pair) for pair in pairs)


def _of_level(q: Any, p: Any, z: Any) -> jax.Array:
    if splits_by_latent(q, p):
        return kl_per_latent(q, p)
    return kl(q, p) if has_closed_form(q, p) else q.log_prob(z) - p.log_prob(z)
