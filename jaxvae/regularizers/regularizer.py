"""The interface `Regularizer`: a penalty on the posteriors and draws of the global batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Penalty = Callable[[Any, jax.Array, Any, jax.Array, Any], jax.Array]
"""(state, key, q [B], z [B, Z], p(z)) -> [] nats per example."""
Update = Callable[[Any, jax.Array, Any, jax.Array], tuple[Any, dict[str, jax.Array]]]
"""(state, key, q [B], z [B, Z]) -> (state, metrics)."""


class Regularizer(NamedTuple):
    """A penalty that compares examples, as pure functions for `make_train_step`.

    The step maximises mean(objective) - penalty. Unlike everywhere else in the library, the
    arguments are a batch: q is a distribution with a leading axis on every leaf, and row i of z is
    a draw of row i of q. Both are of the global batch, so that a penalty is independent of devices.

    Attributes:
        init: key -> state, any pytree of arrays; () for a regularizer without state.
        penalty: (state, key, q, z, p(z)) -> [] nats per example.
        update: (state, key, q, z) -> (state, metrics), called after each step of the VAE with
            the draws of that step; None: the state never changes.

    >>> import jax.numpy as jnp
    >>> far = lambda state, key, q, z, prior: 0.1 * jnp.square(z).sum(-1).mean()
    >>> float(Regularizer(no_state, far).penalty((), None, None, jnp.ones((3, 2)), None))
    0.20000000298023224
    """

    init: Callable[[jax.Array], Any]
    penalty: Penalty
    update: Update | None = None


def no_state(key: jax.Array) -> tuple[()]:
    """The `init` of a regularizer without state."""
    del key
    return ()
