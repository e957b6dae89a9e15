"""Categorical variables relaxed to the interior of the simplex: Gumbel-softmax, or Concrete."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxvae.distributions.distribution import NoClosedForm, at_least_float32, check_event


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RelaxedCategorical:
    """Concrete(logits, t) for each of Z latents: points of the simplex, one-hot as t -> 0.

        log p(x) = sum_z [ log (C-1)! + (C-1) log t
                           + sum_c log softmax(logits_z - t log x_z)_c - log x_zc ]

    by Lebesgue measure of the first C - 1 coordinates. A coordinate below 1e-31 (float32; 1e-292
    in float64) is raised to that: at low temperatures a softmax rounds to 0, where the density is
    not defined. Log ratios of two such densities then compare them at the same point.

    Args:
        logits: [Z, C], up to a constant for each latent.
        temperature: [] t > 0.

    Ref: Maddison, Mnih & Teh, The Concrete Distribution, 2017, ICLR; Jang, Gu & Poole,
    Categorical Reparameterization with Gumbel-Softmax, 2017, ICLR.

    >>> p = RelaxedCategorical(jnp.zeros((1, 3)), jnp.array(1.0))
    >>> print(f"{p.log_prob(jnp.full((1, 3), 1 / 3)):.4f}")  # uniform: log 2!
    0.6931
    """

    logits: jax.Array
    temperature: jax.Array

    def with_shape(self, shape: tuple[int, ...]) -> "RelaxedCategorical":
        """The same distribution of latents of another shape, before the axis of categories."""
        logits = self.logits.reshape(*shape, self.logits.shape[-1])
        return RelaxedCategorical(logits, self.temperature)

    def sample(self, key: jax.Array) -> jax.Array:
        """x = softmax((logits + g) / t), g ~ Gumbel: [Z, C], differentiable by both."""
        logits, temperature = at_least_float32(self.logits, self.temperature)
        gumbel = jax.random.gumbel(key, logits.shape, logits.dtype)
        return jax.nn.softmax((logits + gumbel) / temperature)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density of `value` [Z, C], rows of the simplex: a scalar in nats."""
        remedy = "Reshape the value, or build the encoder for its number of latents and classes."
        check_event(value, jnp.shape(self.logits), "RelaxedCategorical", remedy)
        value, logits, temperature = at_least_float32(value, self.logits, self.temperature)
        limits = jnp.finfo(value.dtype)
        # Far enough above the smallest number that products with 1 / x in gradients are finite.
        log_x = jnp.log(jnp.maximum(value, float(limits.tiny) / float(limits.eps)))
        *shape, num_classes = logits.shape
        constant = math.lgamma(num_classes) + (num_classes - 1) * jnp.log(temperature)
        terms = jax.nn.log_softmax(logits - temperature * log_x) - log_x
        return math.prod(shape) * constant + jnp.sum(terms)

    def mean(self) -> jax.Array:
        """Raise `NoClosedForm`, since the expectation has no formula.

        Raises:
            NoClosedForm: always.
        """
        raise NoClosedForm("RelaxedCategorical")
