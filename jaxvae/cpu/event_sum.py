"""The sum over an event's entries that every log_prob ends in."""

import jax
import jax.numpy as jnp


def event_sum(entries: jax.Array) -> jax.Array:
    """The sum of all entries: [].

    On a CPU as a product with ones: XLA fuses what the entries are computed from into that, and
    not into a sum, whose two terms it would store one by one.

    >>> float(event_sum(jnp.arange(4.0).reshape(2, 2)))
    6.0
    """

    def by_product(flat: jax.Array) -> jax.Array:
        return jnp.dot(flat, jnp.ones_like(flat), precision=jax.lax.Precision.HIGHEST)

    return jax.lax.platform_dependent(entries.ravel(), cpu=by_product, default=jnp.sum)
