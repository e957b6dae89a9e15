"""Conditions y of a VAE: a label or an array of numbers, or its absence."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.distributions import at_least_float32


class Conditioned(NamedTuple):
    """An example x with its condition y; either may be any pytree.

    >>> Conditioned(jnp.zeros(8), jnp.int32(3)).y.item()
    3
    """

    x: Any
    y: Any


class Condition(NamedTuple):
    """The conditions that a model of this library takes, as vectors [E] for its networks.

    A label is a whole number from 0 to C - 1; its vector is one-hot. Numbers have a shape; their
    vector is themselves. A label of -1, or NaN among the numbers, is an absent condition, whose
    vector is a parameter: a model that also trains with absent conditions holds p(x) beside p(x|y).

    Attributes:
        num_categories: C, for labels; None: numbers.
        shape: shape of the numbers; () for labels.

    >>> condition = Condition.of(3)
    >>> condition.embed(condition.init(), jnp.int32(1)).tolist()
    [0.0, 1.0, 0.0]
    """

    num_categories: int | None
    shape: tuple[int, ...] = ()

    @classmethod
    def of(cls, condition: int | tuple[int, ...]) -> "Condition":
        """Of a number of categories, or of the shape of an array of numbers.

        Raises:
            ValueError: there are fewer than two categories, or an entry of the shape is below 1.
        """
        if isinstance(condition, int | np.integer):
            if condition < 2:
                raise ValueError(
                    f"condition must be at least 2 categories, got {condition}. Give the shape "
                    "(1,) for one number."
                )
            return cls(int(condition))
        if not condition or any(size < 1 for size in condition):
            raise ValueError(f"every entry of condition's shape must be positive, got {condition}.")
        return cls(None, tuple(condition))

    @property
    def size(self) -> int:
        """E, the number of entries of the vector."""
        return self.num_categories or math.prod(self.shape)

    def init(self) -> dict[str, jax.Array]:
        """Parameters: the vector of an absent condition."""
        return {"absent": jnp.zeros(self.size)}

    def embed(self, params: Any, y: jax.Array) -> jax.Array:
        """The vector [E] of one condition.

        Raises:
            ValueError: y is not one label or one array of this shape.
        """
        labels = self.num_categories is not None
        whole = jnp.issubdtype(jnp.result_type(y), jnp.integer)
        if jnp.shape(y) != self.shape or (labels and not whole):
            what = f"a label, a whole number below {self.num_categories}"
            raise ValueError(
                f"the condition must be {what if labels else f'an array of shape {self.shape}'}, "
                f"got shape {jnp.shape(y)} of {jnp.result_type(y)}. jax.vmap adds the batch."
            )
        if labels:
            # NaN for a label that there is not: a vector of zeros would be trained by nobody.
            vector = jnp.where(y < self.size, jax.nn.one_hot(y, self.size), jnp.nan)
            absent = y < 0
        else:
            (vector,) = at_least_float32(jnp.reshape(y, -1))
            absent = jnp.any(jnp.isnan(vector))
        # The inner choice keeps the NaN of absent numbers out of the gradient.
        vector = jnp.where(absent, jnp.zeros_like(vector), vector)
        return jnp.where(absent, params["absent"].astype(vector.dtype), vector)

    def without(self, drop: jax.Array, y: jax.Array) -> jax.Array:
        """One condition y, or where `drop` [] is True the one that stands for none."""
        absent = self.absent()
        return jnp.where(drop, absent, jnp.asarray(y, absent.dtype))

    def absent(self) -> jax.Array:
        """The y that stands for no condition."""
        if self.num_categories is not None:
            return jnp.int32(-1)
        return jnp.full(self.shape, jnp.nan)
