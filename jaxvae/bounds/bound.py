"""The result `Bound` of every bound, and the terms of K draws that every bound is made of."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import all_leaves

from jaxvae.distributions import (
    at_least_float32,
    check_array,
    check_density,
    check_draws,
    check_function,
    check_summed,
    sample_and_log_prob,
)
from jaxvae.divergences import (
    has_closed_form,
    kl,
    kl_per_latent,
    kl_per_level,
    same_order,
    splits_by_latent,
)
from jaxvae.leaves import arrays_only

Encode = Callable[[Any], Any]
"""x -> q(z|x): one example to an object with `sample(key)` and `log_prob(z)`."""
Decode = Callable[[Any], Any]
"""z -> p(x|z): one draw of the latents to an object with `log_prob(x)`."""


class Bound(NamedTuple):
    """A bound for one example, in nats; larger is better.

    Attributes:
        objective: [] the value to maximise, with the estimator's gradient.
        elbo: [] the evidence lower bound, independent of beta and of the estimator.
        reconstruction: [] E_q log p(x|z), the negative distortion.
        kl: [] KL(q(z|x) || p(z)), the rate; elbo = reconstruction - kl.
        log_weights: [K] log p(x, z_k) - log q(z_k|x).
        kl_per_latent: [Z] the terms of kl, or None where kl is not a sum over latents; for
            hierarchies that draw in the same order a tuple with [Z_l], or a scalar, for each level.
        samples: [K, Z] the draws z_k of q(z|x); for other latents their pytree, with an axis [K].
        posterior: q(z|x), or None if it is not a pytree.

    >>> Bound._fields[:4]
    ('objective', 'elbo', 'reconstruction', 'kl')
    """

    objective: jax.Array
    elbo: jax.Array
    reconstruction: jax.Array
    kl: jax.Array
    log_weights: jax.Array
    kl_per_latent: Any
    samples: Any
    posterior: Any = None


class Example(NamedTuple):
    """Inputs of a bound for one example: x, its posterior, the model and the mask.

    Attributes:
        x: the example, any pytree; entries that the mask excludes may have any value, NaN included.
        q: q(z|x).
        decode: z -> p(x|z).
        prior: p(z).
        mask: True where x is observed, of x's shape or its leading part; None: everywhere.
        sample_chunk_size: draws computed at once; None: all.
    """

    x: Any
    q: Any
    decode: Decode
    prior: Any
    mask: jax.Array | None
    sample_chunk_size: int | None = None

    def log_likelihood(self, z: Any) -> jax.Array:
        """log p(x|z) of the observed entries, for one z."""
        p = self.decode(z)
        check_density("decode(z)", p)
        if self.mask is None:
            return p.log_prob(self.x)
        if not hasattr(p, "log_prob_per_entry"):
            raise ValueError(
                f"mask: {type(p).__name__} has no log_prob_per_entry, so its entries cannot be "
                "left out one by one. Use a likelihood of independent entries (of another library: "
                "an Independent in jaxvae.adapt), or give it one."
            )
        entries = p.log_prob_per_entry(_observed(self.x, self.mask))
        if jnp.ndim(entries) < jnp.ndim(self.mask):
            raise ValueError(
                f"mask: the entries of {type(p).__name__} have shape {jnp.shape(entries)}, so a "
                f"mask of shape {jnp.shape(self.mask)} cannot leave out parts of them. Give a mask "
                "of their shape."
            )
        return jnp.sum(jnp.where(_over(entries, self.mask), entries, 0))


def observe(
    x: Any,
    encode: Encode,
    decode: Decode,
    prior: Any,
    mask: jax.Array | None,
    sample_chunk_size: int | None = None,
) -> Example:
    """Encode an example; the encoder sees 0 where an entry is missing.

    Raises:
        TypeError: encode or decode is not a function, or encode(x) or prior not a distribution.
        ValueError: the mask has neither x's shape nor a leading part of it, x is not one array, or
            sample_chunk_size < 1.
    """
    check_function("encode", encode)
    check_function("decode", decode)
    check_density("prior", prior)
    if sample_chunk_size is not None and sample_chunk_size < 1:
        raise ValueError(f"sample_chunk_size must be at least 1, or None, got {sample_chunk_size}.")
    if mask is not None and not all_leaves([x]):
        raise ValueError("mask: x must be one array, got a tree. Leave entries out in log_prob.")
    if mask is not None and jnp.shape(mask) != jnp.shape(x)[: jnp.ndim(mask)]:
        raise ValueError(
            f"mask must have x's shape {jnp.shape(x)}, or its leading part, got {jnp.shape(mask)}. "
            "Give one entry of it per entry of x, or per row, True where x is observed."
        )
    q = encode(x if mask is None else _observed(x, mask))
    check_draws("encode(x)", q)
    return Example(x, q, decode, prior, mask, sample_chunk_size)


def _observed(x: jax.Array, mask: jax.Array) -> jax.Array:
    """x with 0 in place of missing entries, so that no NaN enters a gradient.

    Every likelihood of this library is finite at 0, and user-defined ones must be, too.
    """
    return jnp.where(_over(x, mask), x, jnp.zeros_like(x))


def _over(array: jax.Array, mask: jax.Array) -> jax.Array:
    """The mask [T] of an array [T, ...], once for every entry of a row."""
    axes = tuple(range(jnp.ndim(mask), jnp.ndim(array)))
    return jnp.broadcast_to(jnp.expand_dims(mask, axes), jnp.shape(array))


class Terms(NamedTuple):
    """K draws of q and the parts of their log weights.

    A draw has the type of its posterior. `terms_of` gives the three log densities, and so all
    arithmetic of a bound, the widest float type among x, q(z|x), p(x|z) and p(z), at least float32.

    Attributes:
        samples: [K, Z], or a pytree with this axis [K].
        log_likelihood: [K] log p(x|z_k).
        log_prior: [K] log p(z_k).
        log_q: [K] log q(z_k|x).
    """

    samples: Any
    log_likelihood: jax.Array
    log_prior: jax.Array
    log_q: jax.Array

    def log_weights(self, kl_weight: jax.Array | float | None = 1.0) -> jax.Array:
        """log p(x|z_k) + kl_weight (log p(z_k) - log q(z_k|x)); kl_weight None is 0: [K]."""
        if kl_weight is None:
            return self.log_likelihood
        return self.log_likelihood + kl_weight * (self.log_prior - self.log_q)


def terms_of(z: Any, log_likelihood: jax.Array, log_prior: jax.Array, log_q: jax.Array) -> Terms:
    """Terms of one draw, with its log densities converted to one type.

    Raises:
        TypeError: a log density is not an array.
    """
    check_array("decode(z).log_prob(x)", log_likelihood)
    check_array("prior.log_prob(z)", log_prior)
    check_array("encode(x).log_prob(z)", log_q)
    return Terms(z, *at_least_float32(log_likelihood, log_prior, log_q))


def over_draws(
    function: Callable[..., Any], *draws: Any, sample_chunk_size: int | None = None
) -> Any:
    """Map a function of one draw over K draws.

    Args:
        function: function of one draw.
        draws: arrays [K, ...].
        sample_chunk_size: draws computed at once; their intermediate values are recomputed for the
            gradient, so that memory does not grow with K. None: all of them.
    """
    num_draws = len(jax.tree.leaves(draws)[0])
    if num_draws == 1:
        # XLA's CPU backend sums arrays with an axis of size 1 at a tenth of its speed.
        one = function(*jax.tree.map(lambda array: array[0], draws))
        return jax.tree.map(lambda array: array[None], one)
    if sample_chunk_size is None or sample_chunk_size >= num_draws:
        return jax.vmap(function)(*draws)
    each = jax.checkpoint(lambda draw: function(*draw))
    return jax.lax.map(each, draws, batch_size=sample_chunk_size)


def posterior_samples(key: jax.Array, q: Any, num_samples: int) -> tuple[Any, jax.Array]:
    """Draws of q(z|x) that the bounds use with this key: z [K, Z] and log q(z|x) [K]."""
    check_draws("q", q)
    return over_draws(partial(sample_and_log_prob, q), _draw_keys(key, num_samples))


def _draw_keys(key: jax.Array, num_samples: int) -> jax.Array:
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
    return jax.random.split(key, num_samples)


def draw_terms(key: jax.Array, example: Example, num_samples: int) -> Terms:
    """Draw K samples of the example's posterior, and compute their terms.

    Raises:
        ValueError: num_samples < 1, or a log_prob is not summed to a scalar.
    """

    def of_draw(key: jax.Array) -> Terms:
        z, log_q = sample_and_log_prob(example.q, key)
        return terms_of(z, example.log_likelihood(z), example.prior.log_prob(z), log_q)

    terms = over_draws(
        of_draw, _draw_keys(key, num_samples), sample_chunk_size=example.sample_chunk_size
    )
    check_summed("decode(z).log_prob(x)", terms.log_likelihood)
    check_summed("encode(x).log_prob(z)", terms.log_q)
    check_summed("prior.log_prob(z)", terms.log_prior)
    return terms


class Rate(NamedTuple):
    """KL(q(z|x) || p(z)) of one example.

    Attributes:
        total: [] nats.
        per_latent: [Z] terms of total, or None where the KL is not a sum over latents; a tuple of
            them for the levels of a hierarchy.
    """

    total: jax.Array
    per_latent: Any


def rate_of(example: Example, terms: Terms, *, sampled: bool = False) -> Rate:
    """Rate in closed form if the pair of q and prior has one, else its mean over the draws.

    Of hierarchies with the same order it is the sum of the levels' KLs given the draws above.

    Args:
        example, terms: the example and the terms of its draws.
        sampled: take the mean over the draws in any case.
    """
    q, prior = example.q, example.prior
    if same_order(q, prior) and not sampled:
        return _rate_of_levels(example, terms)
    closed_form = has_closed_form(q, prior) and not sampled
    rate = kl(q, prior) if closed_form else jnp.mean(terms.log_q - terms.log_prior)
    splits = closed_form and splits_by_latent(q, prior)
    total = rate.astype(terms.log_q.dtype)  # x and p(x|z) may be wider than q and p(z)
    return Rate(total, kl_per_latent(q, prior) if splits else None)


def _rate_of_levels(example: Example, terms: Terms) -> Rate:
    of_draw = partial(kl_per_level, example.q, example.prior)
    of_draws = over_draws(of_draw, terms.samples, sample_chunk_size=example.sample_chunk_size)
    levels = tuple(jnp.mean(level, axis=0) for level in of_draws)
    total = jnp.sum(jnp.stack([jnp.sum(level) for level in levels]))
    return Rate(total.astype(terms.log_q.dtype), levels)


def assemble(
    example: Example, terms: Terms, objective: jax.Array, rate: Rate | None = None
) -> Bound:
    """Assemble the Bound from its terms and objective.

    Args:
        example, terms: the example and the terms of its draws.
        objective: [] objective of the bound.
        rate: rate of the example; None: compute it by `rate_of`.
    """
    rate = rate_of(example, terms) if rate is None else rate
    reconstruction = jnp.mean(terms.log_likelihood)
    return Bound(
        objective=objective,
        elbo=reconstruction - rate.total,
        reconstruction=reconstruction,
        kl=rate.total,
        log_weights=terms.log_weights(),
        kl_per_latent=rate.per_latent,
        samples=terms.samples,
        posterior=None if all_leaves([example.q]) else arrays_only(example.q),
    )
