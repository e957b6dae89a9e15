"""Independent Bernoulli variables, parameterized by logits."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxvae.cpu import threefry
from jaxvae.cpu.event_sum import event_sum
from jaxvae.cpu.softplus import softplus
from jaxvae.distributions.distribution import at_least_float32, check_event


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bernoulli:
    """Bernoulli(sigmoid(logits)) for each entry; the event has the shape of `logits`.

        log p(x) = sum_d x_d l_d - softplus(l_d)

    with accurate value and gradient for logits from -1e4 to 1e4. A value between 0 and 1 is taken
    as the probability of a 1: the result is then the expected log mass (Doersch 2016, section
    4.1), not a log density of the value.

    Args:
        logits: [D] or any event shape: log p / (1 - p).

    Ref: Kingma & Welling, Auto-Encoding Variational Bayes, 2013, appendix C.1.

    >>> print(f"{Bernoulli(jnp.array([0.0, 1e4])).log_prob(jnp.ones(2)):.4f}")
    -0.6931
    """

    logits: jax.Array
    reparameterized: ClassVar[bool] = False

    def sample(self, key: jax.Array) -> jax.Array:
        """Zeros and ones, as floats, of the event's shape. Not differentiable."""
        (logits,) = at_least_float32(self.logits)
        return threefry.bernoulli(key, jax.nn.sigmoid(logits)).astype(logits.dtype)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log mass of `value`, of logits' shape, entries 0 or 1: a scalar in nats."""
        self._check(value)  # flattened below, since XLA vectorizes over one long axis
        return event_sum(Bernoulli(self.logits.ravel()).log_prob_per_entry(jnp.ravel(value)))

    def log_prob_per_entry(self, value: jax.Array) -> jax.Array:
        """Log mass of each entry of `value`, of logits' shape, in nats."""
        self._check(value)
        value, logits = at_least_float32(value, self.logits)
        return value * logits - softplus(logits)

    def mean(self) -> jax.Array:
        """Probability of a 1: sigmoid(logits)."""
        (logits,) = at_least_float32(self.logits)
        return jax.nn.sigmoid(logits)

    def _check(self, value: jax.Array) -> None:
        remedy = f"Reshape x, or build the decoder with data_shape={jnp.shape(value)}."
        check_event(value, jnp.shape(self.logits), "Bernoulli", remedy)
