"""Rejection sampling in a fixed number of rounds, so that it ends with keys of any generator."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

ROUNDS = 16
"""All proposals accept at least 2 in 3, so that all rounds reject with probability 3^-16 = 2e-8."""

Propose = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""key -> (proposals, True where accepted), two arrays of the same shape."""


def first_accepted(key: jax.Array, propose: Propose, like: jax.Array) -> jax.Array:
    """Return, entry by entry, the first accepted proposal of `ROUNDS`, or else the last one.

    Args:
        key: consumed here, of any generator.
        propose: function that makes and judges the proposals of one round.
        like: an array of the proposals' shape and type.

    The total variation distance to the exact distribution is 2e-8, less than the rounding of
    float32.

    A loop until every entry is accepted might never end: under `vmap` the bits of "rbg" keys come
    only from the key of the first lane, and a lane that has finished stops changing its key. With
    fixed rounds no lane waits for another, and each round has fresh bits for all of them.

    >>> above = lambda key: (u := jax.random.uniform(key), u > 0.5)
    >>> bool(first_accepted(jax.random.key(0), above, jnp.zeros(())) > 0.5)
    True
    """

    def one_round(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        value, done = carry
        proposal, accepted = propose(jax.random.fold_in(key, i))
        return jnp.where(done, value, proposal), done | accepted

    start = jnp.zeros_like(like), jnp.zeros_like(like, bool)
    return jax.lax.fori_loop(0, ROUNDS, one_round, start)[0]
