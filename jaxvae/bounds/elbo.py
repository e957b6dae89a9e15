"""The evidence lower bound, and objectives with another weight of its KL."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxvae.bounds.bound import (
    Bound,
    Decode,
    Encode,
    Example,
    Rate,
    assemble,
    draw_terms,
    observe,
    rate_of,
)
from jaxvae.bounds.estimators import MEAN, EstimatorName, check_estimator, estimate
from jaxvae.divergences import has_closed_form, same_order, splits_by_latent

KL = Literal["auto", "closed_form", "sampled"]
REJECTED = {"dreg": "reduces to 'stl' for the ELBO, whose draws are not weighted. Use 'stl'."}


def elbo(
    key: jax.Array,
    x: Any,
    *,
    encode: Encode,
    decode: Decode,
    prior: Any,
    num_samples: int = 1,
    estimator: EstimatorName = "reparameterized",
    kl: KL = "auto",
    beta: jax.Array | float = 1.0,
    free_bits: jax.Array | float | None = None,
    capacity: jax.Array | float | None = None,
    mask: jax.Array | None = None,
    sample_chunk_size: int | None = None,
) -> Bound:
    """The evidence lower bound of one example, in nats.

        ELBO(x) = E_(z ~ q(z|x)) log p(x|z) - KL(q(z|x) || p(z))  <=  log p(x)

    The expectation is the mean over `num_samples` draws. `objective` is

        reconstruction - beta * |sum_j max(free_bits, KL_j) - capacity|

    which is the ELBO only with the default options; `.elbo` is the ELBO with any. j counts latents,
    or the levels of a `jaxvae.Hierarchy`, which may each have a beta and free bits of their own.

    Args:
        key: consumed here; use one per example.
        x: one example, of any shape or pytree that `encode` accepts.
        encode: x -> q(z|x).
        decode: z -> p(x|z).
        prior: p(z).
        num_samples: K draws of q, at least 1.
        estimator: gradient estimator (`jaxvae.bounds.estimators`): "reparameterized"; "stl", whose
            variance vanishes at the true posterior; "score" or "vimco" for discrete latents.
        kl: "closed_form", "sampled" (from the same draws), or "auto": in closed form where
            `jaxvae.kl` has one for the pair, but sampled in the objective of "stl". Of hierarchies
            that draw their levels in the same order, "closed_form" is that of each level given the
            draws above it, and needs "reparameterized"; "auto" uses it there.
        beta: [] weight of the KL in `objective`, or [L] of each level; may be traced (an optax
            schedule's value).
        free_bits: [] nats below which a latent's KL in this example gives no gradient (Kingma et
            al. use the minibatch's mean), or [] or [L] for the levels of a hierarchy. None: off.
            Needs a KL that is a sum over latents or levels.
        capacity: [] target of the KL in nats; beta weights the distance from it, on either side.
            None: off. Needs a KL in closed form.
        mask: True where x is observed, in x's shape or its leading part ([T] for x [T, D]): the
            bound is then on the log density of the observed entries. Missing entries may be NaN;
            the encoder sees 0 there.
        sample_chunk_size: draws computed at once. Intermediate values are then recomputed for the
            gradient, and memory does not grow with num_samples. None: all at once.

    Raises:
        ValueError: num_samples or sample_chunk_size < 1, a log_prob that is not summed to a
            scalar, an estimator with a wrong gradient, or an option whose KL has no closed form.

    Ref: Doersch 2016, arXiv 1606.05908, equation 5; Higgins et al., beta-VAE, 2017, ICLR;
    Kingma et al., Inverse Autoregressive Flow (free bits), 2016, NeurIPS; Burgess et al.,
    Understanding disentangling in beta-VAE (capacity), 2018; Nazabal et al., 2020 (mask).

    >>> from jaxvae import Gaussian
    >>> half = Gaussian(jnp.zeros(2), jnp.zeros(2))
    >>> bound = elbo(jax.random.key(0), jnp.zeros(2), encode=lambda x: half,
    ...              decode=lambda z: Gaussian(z, jnp.array(0.0)), prior=half)
    >>> float(bound.kl)
    0.0
    """
    example = observe(x, encode, decode, prior, mask, sample_chunk_size)
    check_estimator("elbo", example, estimator, num_samples, REJECTED)
    closed_form = _closed_form(kl, example, estimator)
    _check_options(example, closed_form, beta, free_bits, capacity)
    terms = draw_terms(key, example, num_samples)
    # "stl" samples the KL of the objective only; .elbo still uses a closed form.
    rate = rate_of(example, terms, sampled=kl == "sampled")
    beta = jnp.asarray(beta, terms.log_q.dtype)
    if closed_form:
        penalized = _penalized(rate, beta, free_bits, capacity)
        objective = estimate(example, terms, MEAN, estimator, None) - penalized
    else:
        objective = estimate(example, terms, MEAN, estimator, beta)
    return assemble(example, terms, objective, rate)


def _penalized(rate: Rate, beta: jax.Array, free_bits: Any, capacity: Any) -> jax.Array:
    """beta |sum_j max(free_bits, KL_j) - capacity|, without the parts that are None: []."""
    groups = rate.per_latent
    if isinstance(groups, tuple):
        groups = jnp.stack([jnp.sum(level) for level in groups])
    if free_bits is not None and groups is not None:
        groups = jnp.maximum(groups, free_bits)
    if jnp.ndim(beta):
        return jnp.sum(beta * groups)
    total = rate.total if free_bits is None else jnp.sum(groups)
    return beta * (total if capacity is None else jnp.abs(total - capacity))


def _closed_form(kl: str, example: Example, estimator: str) -> bool:
    """True if the KL of the objective is computed in closed form."""
    q, prior = example.q, example.prior
    # Given the draws above a level, its KL has no gradient by the score of those draws.
    known = has_closed_form(q, prior) or (estimator == "reparameterized" and same_order(q, prior))
    if kl not in ("auto", "closed_form", "sampled"):
        raise ValueError(f"elbo: kl must be auto, closed_form or sampled, got {kl!r}.")
    if kl == "closed_form" and not known:
        raise ValueError(
            f"elbo: KL of {type(q).__name__} against {type(prior).__name__} has no closed form. "
            "Use kl='sampled'."
        )
    if kl == "closed_form" and estimator == "stl":
        raise ValueError("elbo: estimator 'stl' needs a sampled KL. Use kl='sampled'.")
    return known and kl != "sampled" and estimator != "stl"


def _check_options(
    example: Example, closed_form: bool, beta: Any, free_bits: Any, capacity: Any
) -> None:
    q, prior = example.q, example.prior
    splits = closed_form and (splits_by_latent(q, prior) or same_order(q, prior))
    if free_bits is not None and not splits:
        raise ValueError(
            "elbo: free_bits needs a KL in closed form that splits over latents or levels, as "
            "between diagonal Gaussians. Use such a posterior and prior without 'stl', or capacity."
        )
    of_levels = closed_form and same_order(q, prior)
    for name, value in {"beta": beta, "free_bits": free_bits}.items():
        allowed = [(), (len(q.steps),)] if of_levels else [()]
        if value is not None and jnp.shape(value) not in allowed:
            raise ValueError(
                f"elbo: {name} must be a number, or [L] for a KL in closed form over L levels, got "
                f"shape {jnp.shape(value)}. Give one number."
            )
    if jnp.ndim(beta) and capacity is not None:
        raise ValueError("elbo: capacity is for the whole KL. Give one beta, or leave it out.")
    if capacity is not None and not closed_form:
        raise ValueError(
            "elbo: capacity needs a KL in closed form. Use a posterior and prior that have one, "
            "without estimator 'stl' or kl='sampled'."
        )
