"""Independent categorical variables, as one-hot vectors."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxvae.distributions.distribution import at_least_float32, check_event

MAX_STATES = 2**16
"""Most states that `OneHotCategorical.enumerate_support` returns."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OneHotCategorical:
    """Categorical(softmax(logits)) for each of Z latents with C states, as one-hot rows.

        log p(x) = sum_zc x_zc log softmax(logits_z)_c

    Args:
        logits: [Z, C], up to a constant for each latent.

    Ref: Jang, Gu & Poole, Categorical Reparameterization with Gumbel-Softmax, 2017, ICLR.

    >>> p = OneHotCategorical(jnp.zeros((2, 4)))
    >>> print(f"{p.log_prob(jnp.eye(4)[:2]):.4f}")  # -2 log 4
    -2.7726
    """

    logits: jax.Array
    reparameterized: ClassVar[bool] = False

    def with_shape(self, shape: tuple[int, ...]) -> "OneHotCategorical":
        """The same distribution of latents of another shape, before the axis of categories."""
        return OneHotCategorical(self.logits.reshape(*shape, self.logits.shape[-1]))

    def sample(self, key: jax.Array) -> jax.Array:
        """One-hot rows [Z, C], as floats. Not differentiable."""
        (logits,) = at_least_float32(self.logits)
        states = jax.random.categorical(key, logits)
        return jax.nn.one_hot(states, logits.shape[-1], dtype=logits.dtype)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log mass of one-hot rows `value` [Z, C]: a scalar in nats."""
        remedy = "Reshape the value, or one-hot encode it."
        check_event(value, jnp.shape(self.logits), "OneHotCategorical", remedy)
        value, logits = at_least_float32(value, self.logits)
        return jnp.sum(value * jax.nn.log_softmax(logits))

    def mean(self) -> jax.Array:
        """Expectation: the probabilities [Z, C]."""
        return jax.nn.softmax(self.logits)

    def enumerate_support(self) -> jax.Array:
        """All states, for exact expectations: [C^Z, Z, C], the last latent varying fastest.

        Latents of another shape [...] give states [C^Z, ..., C], where Z is their number.

        Raises:
            ValueError: there are more than 65536 states.

        >>> OneHotCategorical(jnp.zeros((3, 2))).enumerate_support().shape
        (8, 3, 2)
        """
        (logits,) = at_least_float32(self.logits)
        *shape, num_classes = logits.shape
        dim = math.prod(shape)
        if num_classes**dim > MAX_STATES:
            raise ValueError(
                f"enumerate_support: there must be at most {MAX_STATES} states, but {dim} latents "
                f"of {num_classes} have {num_classes}^{dim}. Use fewer, or estimate by samples."
            )
        states = jnp.indices((num_classes,) * dim).reshape(dim, -1).T
        rows = jax.nn.one_hot(states, num_classes, dtype=logits.dtype)
        return rows.reshape(-1, *shape, num_classes)
