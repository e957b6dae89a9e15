"""Conversion of one stored example to the x that a model sees, and back."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxvae.cpu import threefry

Kind = Literal["scaled", "binarized", "dequantized"]


class Conversion(NamedTuple):
    """A conversion of stored values v to x, as a pure function of one example.

        scaled         x = v / top
        binarized      x ~ Bernoulli(v / top), drawn anew at each call
        dequantized    x = (v + u) / top with u ~ U[0, 1), whose density bounds the mass of v below

    Attributes:
        kind: one of the three above.
        top: stored value that becomes 1, or the number of values if x is dequantized.

    Ref: Theis, van den Oord and Bethge, A note on the evaluation of generative models, 2016, ICLR.

    >>> stored = jnp.array([0, 64, 128], jnp.uint8)
    >>> Conversion("scaled", 128).prepare(jax.random.key(0), stored).tolist()
    [0.0, 0.5, 1.0]
    """

    kind: Kind
    top: int

    def prepare(self, key: jax.Array, stored: jax.Array) -> jax.Array:
        """Convert one stored example [*data_shape], of any type, to x [*data_shape] float32."""
        if self.kind == "binarized":
            p = stored.ravel().astype(jnp.float32) / self.top  # flat: draws several entries at once
            return threefry.bernoulli(key, p).astype(jnp.float32).reshape(stored.shape)
        if self.kind == "dequantized":
            noise = jax.random.uniform(key, stored.shape, jnp.float32)
            return (stored.astype(jnp.float32) + noise) / self.top
        return stored.astype(jnp.float32) / self.top

    def stored(self, x: Any) -> Any:
        """Convert a mean of x to the mean of the stored values that give it.

        >>> Conversion("dequantized", 256).stored(0.5)
        127.5
        """
        return x * self.top - (0.5 if self.kind == "dequantized" else 0)

    @classmethod
    def from_json(cls, values: Any) -> "Conversion":
        """Read a conversion from the description that a checkpoint stores.

        Raises:
            ValueError: the values do not describe a conversion.
        """
        if not isinstance(values, dict):
            values = {}
        kind: Any = values.get("kind")
        top: Any = values.get("top")
        if kind not in get_args(Kind) or type(top) is not int or not 1 <= top <= 2**24:
            raise ValueError(f"a conversion must have a kind and a top, got {str(values)[:60]}.")
        return cls(kind, top)
