"""Independent categorical variables, parameterized by logits."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxvae.distributions.distribution import at_least_float32, check_event


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Categorical:
    """One of the numbers 0 to C-1 for each entry; the event shape is [*D].

        log p(x) = sum_d l_{d, x_d} - log sum_c exp(l_{d, c})

    Args:
        logits: [*D, C]: log masses, up to a constant for each entry.

    Ref: van den Oord, Kalchbrenner & Kavukcuoglu, Pixel Recurrent Neural Networks, 2016, ICML.

    >>> print(f"{Categorical(jnp.zeros((2, 4))).log_prob(jnp.array([0, 3])):.4f}")
    -2.7726
    """

    logits: jax.Array
    reparameterized: ClassVar[bool] = False

    def sample(self, key: jax.Array) -> jax.Array:
        """Whole numbers, as floats, of the event's shape. Not differentiable."""
        (logits,) = at_least_float32(self.logits)
        return jax.random.categorical(key, logits).astype(logits.dtype)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log mass of `value` [*D], entries 0 to C-1 of any type: a scalar in nats."""
        return jnp.sum(self.log_prob_per_entry(value))

    def log_prob_per_entry(self, value: jax.Array) -> jax.Array:
        """Log mass of each entry of `value` [*D], in nats."""
        remedy = "Reshape the value, or build the network for its shape."
        check_event(value, jnp.shape(self.logits)[:-1], "Categorical", remedy)
        (logits,) = at_least_float32(self.logits)
        index = jnp.asarray(value).astype(jnp.int32)
        known = (index >= 0) & (index < logits.shape[-1])
        index = jnp.where(known, index, 0)[..., None]
        log_mass = jnp.take_along_axis(jax.nn.log_softmax(logits), index, axis=-1)[..., 0]
        return jnp.where(known, log_mass, -jnp.inf)

    def mean(self) -> jax.Array:
        """Expectation of the number: sum_c c p_c, of shape [*D]."""
        (logits,) = at_least_float32(self.logits)
        values = jax.lax.broadcasted_iota(logits.dtype, logits.shape, logits.ndim - 1)
        return jnp.sum(values * jax.nn.softmax(logits), axis=-1)
