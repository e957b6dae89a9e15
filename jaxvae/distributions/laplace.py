"""Laplace distributions with independent entries."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxvae.distributions.distribution import at_least_float32, check_event, check_shape
from jaxvae.distributions.scaled_difference import standardized


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Laplace:
    """Laplace(loc, exp(log_scale)) for each entry; the event has the shape of `loc`.

        log p(x) = sum_d -|x_d - loc_d| / exp(log_scale_d) - log_scale_d - log 2

    Args:
        loc: [D] or any event shape: the mean and median.
        log_scale: loc's shape, or []: log of the mean absolute deviation.

    Ref: Rybkin, Daniilidis & Levine, Simple and Effective VAE Training with Calibrated Decoders,
    2021, ICML, on learned scales.

    >>> print(f"{Laplace(jnp.zeros(2), jnp.zeros(2)).log_prob(jnp.ones(2)):.4f}")
    -3.3863
    """

    loc: jax.Array
    log_scale: jax.Array

    def parameters(self) -> tuple[jax.Array, jax.Array]:
        """loc and log_scale, at least float32.

        Raises:
            ValueError: log_scale is neither a scalar nor of loc's shape.
        """
        check_shape("Laplace", "log_scale", self.log_scale, "loc", jnp.shape(self.loc))
        loc, log_scale = at_least_float32(self.loc, self.log_scale)
        return loc, log_scale

    def sample(self, key: jax.Array) -> jax.Array:
        """x = loc + exp(log_scale) * eps with eps ~ Laplace(0, 1)."""
        loc, log_scale = self.parameters()
        return loc + jnp.exp(log_scale) * jax.random.laplace(key, loc.shape, loc.dtype)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density of `value`, of loc's shape: a scalar in nats."""
        return jnp.sum(self.log_prob_per_entry(value))

    def log_prob_per_entry(self, value: jax.Array) -> jax.Array:
        """Log density of each entry of `value`, of loc's shape, in nats."""
        remedy = "Reshape the value, or build the network for its shape."
        check_event(value, jnp.shape(self.loc), "Laplace", remedy)
        value, loc, log_scale = at_least_float32(value, *self.parameters())
        eps = standardized(value - loc, log_scale)
        size = eps * jnp.sign(eps)  # |eps| with gradient 0 at 0, where that of abs is 1
        return -size - log_scale - math.log(2)

    def mean(self) -> jax.Array:
        """Expectation: loc."""
        return self.parameters()[0]
