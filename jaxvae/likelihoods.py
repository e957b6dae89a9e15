"""How the numbers that a decoder network puts out become p(x|z)."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.distributions import Bernoulli, Distribution, Gaussian, soft_clamp

Sigma = float | Literal["learned", "optimal"]


class Likelihood(NamedTuple):
    """A family p(x|z), by three functions; one output of the network per data dimension.

    Attributes:
        init: data_scale -> the family's own parameters, {} where it has none.
        distribution: (its parameters, output [*data_shape]) -> p(x|z).
        output_at: mean [*data_shape] -> the output whose p(x|z) has that mean.
        with_log_scale: (its parameters, log sigma []) -> its parameters with that scale; only
            where sigma follows the data instead of the gradient.
    """

    init: Callable[[float], dict[str, jax.Array]]
    distribution: Callable[[Any, jax.Array], Distribution]
    output_at: Callable[[jax.Array], jax.Array]
    with_log_scale: Callable[[Any, jax.Array], dict[str, jax.Array]] | None = None


def bernoulli() -> Likelihood:
    """Pixels that are 0 or 1, the outputs being logits."""
    return Likelihood(
        init=lambda data_scale: {},
        distribution=lambda params, output: Bernoulli(output),
        output_at=lambda mean: jax.scipy.special.logit(jnp.clip(mean, 0.01, 0.99)),
    )


def gaussian(sigma: Sigma) -> Likelihood:
    """N(f(z), sigma^2 I), the outputs being f(z) and one sigma shared by all dimensions.

    Args:
        sigma: a number: fixed. "learned": a parameter, by gradient. "optimal": the root mean
            squared error over the global batch while training; the running value over the
            training split is kept among the parameters and is what evaluation uses.

    Raises:
        ValueError: sigma is neither a positive number nor one of the two words.

    Ref: Doersch 2016, arXiv 1606.05908, section 2.4.3; Rybkin, Daniilidis & Levine, Simple and
    Effective VAE Training with Calibrated Decoders (sigma-VAE), 2021, ICML.

    >>> float(gaussian(0.5).distribution({}, jnp.zeros(2)).log_scale)
    -0.6931471824645996
    """
    if sigma == "learned":
        return _with_own_scale(soft_clamp)
    if sigma == "optimal":
        return _with_own_scale(jax.lax.stop_gradient)._replace(
            with_log_scale=lambda params, log_scale: {**params, "log_scale": log_scale}
        )
    if isinstance(sigma, str) or not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be a positive number, learned or optimal, got {sigma!r}.")
    log_scale = math.log(sigma)
    return Likelihood(
        init=lambda data_scale: {},
        distribution=lambda params, output: Gaussian(output, jnp.float32(log_scale)),
        output_at=lambda mean: mean,
    )


def _with_own_scale(log_scale_of: Callable[[jax.Array], jax.Array]) -> Likelihood:
    return Likelihood(
        init=lambda data_scale: {"log_scale": jnp.log(jnp.float32(data_scale))},
        distribution=lambda params, output: Gaussian(output, log_scale_of(params["log_scale"])),
        output_at=lambda mean: mean,
    )


LIKELIHOODS: dict[str, Callable[[Sigma], Likelihood]] = {
    "bernoulli": lambda sigma: bernoulli(),
    "gaussian": gaussian,
}
"""What `likelihood=` of the model builders can name. Add yours here."""


def likelihood_named(name: str, sigma: Sigma) -> Likelihood:
    """The likelihood of that name.

    Raises:
        ValueError: no such name.
    """
    if name not in LIKELIHOODS:
        raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {name!r}.")
    return LIKELIHOODS[name](sigma)
