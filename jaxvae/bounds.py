"""Lower bounds on log p(x) for one example: the ELBO and the importance-weighted bound."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jaxvae.distributions import Gaussian, check_summed, sample_and_log_prob
from jaxvae.divergences import has_closed_form, kl, kl_per_latent

Encode = Callable[[jax.Array], Any]
"""x -> q(z|x): one example to an object with `sample(key)` and `log_prob(z)`."""
Decode = Callable[[jax.Array], Any]
"""z -> p(x|z): one latent to an object with `log_prob(x)`."""


class Bound(NamedTuple):
    """A bound for one example, in nats; larger is better.

    Attributes:
        objective: [] what to maximise: right value and right gradient.
        elbo: [] the evidence lower bound, never altered by beta or by an estimator.
        log_likelihood: [] E_q log p(x|z), minus the distortion.
        kl: [] KL(q(z|x) || p(z)), the rate; elbo = log_likelihood - kl.
        log_weights: [K] log p(x, z_k) - log q(z_k|x).
        kl_per_latent: [Z] the terms of kl, or None where it does not split.
    """

    objective: jax.Array
    elbo: jax.Array
    log_likelihood: jax.Array
    kl: jax.Array
    log_weights: jax.Array
    kl_per_latent: jax.Array | None


def elbo(
    key: jax.Array,
    x: jax.Array,
    *,
    encode: Encode,
    decode: Decode,
    prior: Any,
    num_samples: int = 1,
    beta: jax.Array | float = 1.0,
) -> Bound:
    """The evidence lower bound of one example, in nats.

        ELBO(x) = E_(z ~ q(z|x)) log p(x|z) - KL(q(z|x) || p(z))  <=  log p(x)

    The expectation is the mean over `num_samples` reparameterized draws; the KL is exact where
    `jaxvae.kl` has a closed form for the pair, else estimated from the same draws. `objective`
    is log_likelihood - beta * kl: the ELBO at beta = 1, and not called one otherwise.

    Args:
        key: consumed here, one per example.
        x: one example, of whatever shape `encode` and `decode` agree on.
        encode: x -> q(z|x).
        decode: z -> p(x|z).
        prior: p(z).
        num_samples: K draws of q, at least 1.
        beta: [] weight of the KL in `objective`; may be traced.

    Raises:
        ValueError: num_samples < 1, or a log_prob that is not summed to a scalar.

    Ref: Doersch 2016, arXiv 1606.05908, equation 5; Higgins et al., beta-VAE, 2017, ICLR.

    >>> half = Gaussian(jnp.zeros(2), jnp.zeros(2))
    >>> bound = elbo(jax.random.key(0), jnp.zeros(2), encode=lambda x: half,
    ...              decode=lambda z: Gaussian(z, jnp.array(0.0)), prior=Gaussian.standard(2))
    >>> float(bound.kl)
    0.0
    """
    terms = _terms(key, x, encode, decode, prior, num_samples)
    return terms._replace(objective=terms.log_likelihood - beta * terms.kl)


def iwae(
    key: jax.Array,
    x: jax.Array,
    *,
    encode: Encode,
    decode: Decode,
    prior: Any,
    num_samples: int,
) -> Bound:
    """The importance-weighted bound of one example, in nats.

        IWAE_K(x) = E log 1/K sum_k p(x, z_k) / q(z_k|x)    with z_1..K ~ q(z|x)

    ELBO <= IWAE_K <= IWAE_(K+1) <= log p(x), with equality in the limit. `objective` is the
    bound itself, so that its gradient is the gradient of its value.

    Args:
        key, x, encode, decode, prior: as in `elbo`.
        num_samples: K, at least 1; K = 1 is the ELBO with a sampled KL.

    Raises:
        ValueError: as in `elbo`.

    Ref: Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, 2016, ICLR.

    >>> q = Gaussian(jnp.zeros(2), jnp.zeros(2))
    >>> iwae(jax.random.key(0), jnp.zeros(2), encode=lambda x: q,
    ...      decode=lambda z: Gaussian(z, jnp.array(0.0)), prior=q, num_samples=5).log_weights.shape
    (5,)
    """
    terms = _terms(key, x, encode, decode, prior, num_samples)
    return terms._replace(objective=logsumexp(terms.log_weights) - math.log(num_samples))


def posterior_samples(key: jax.Array, q: Any, num_samples: int) -> tuple[jax.Array, jax.Array]:
    """The draws that the bounds make of q(z|x) with this key: z [K, Z] and log q(z|x) [K]."""
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
    return jax.vmap(partial(sample_and_log_prob, q))(jax.random.split(key, num_samples))


def _terms(
    key: jax.Array, x: jax.Array, encode: Encode, decode: Decode, prior: Any, num_samples: int
) -> Bound:
    """Everything but the objective, which every bound forms in its own way."""
    q = encode(x)
    z, log_q = posterior_samples(key, q, num_samples)
    log_likelihoods = jax.vmap(lambda z: decode(z).log_prob(x))(z)
    log_prior = jax.vmap(prior.log_prob)(z)
    check_summed("decode(z).log_prob(x)", log_likelihoods)
    check_summed("encode(x).log_prob(z)", log_q)
    check_summed("prior.log_prob(z)", log_prior)
    rate = kl(q, prior) if has_closed_form(q, prior) else jnp.mean(log_q - log_prior)
    split = kl_per_latent(q, prior) if type(q) is type(prior) is Gaussian else None
    log_likelihood = jnp.mean(log_likelihoods)
    bound = log_likelihood - rate
    return Bound(
        objective=bound,
        elbo=bound,
        log_likelihood=log_likelihood,
        kl=rate,
        log_weights=log_likelihoods + log_prior - log_q,
        kl_per_latent=split,
    )
