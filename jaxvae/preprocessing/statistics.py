"""Statistics of prepared training examples, from which a model's parameters start."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.preprocessing.rules import Preprocessing

EXAMPLES = 1000
"""Training examples that the scale is measured on."""
PSEUDO_INPUTS = 2**30
"""Number folded into the run's key for the noise of pseudo-inputs; no other key uses it."""


def evenly(count: int, most: int) -> np.ndarray:
    """Indices of at most `most` of `count` rows, spread evenly, since a file may be sorted.

    >>> evenly(10, 4).tolist()
    [0, 3, 6, 9]
    """
    return np.linspace(0, count - 1, min(count, most)).astype(int)


def spread(preprocessing: Preprocessing, train: np.ndarray) -> float:
    """Root mean square of the first 1,000 training examples about their mean, in their own unit."""
    with jax.transfer_guard("allow"):  # the training loop disallows transfers
        errors = np.asarray(_errors(preprocessing, train), np.float64)
    return float(np.sqrt(np.square(errors).mean()))


def data_scale(preprocessing: Preprocessing, train: np.ndarray, unit: np.ndarray) -> float:
    """Root mean square as in `spread`, but with columns divided by their unit; at least 0.001."""
    errors = _errors(preprocessing, train)
    squares = jnp.square(errors / jnp.broadcast_to(unit, errors.shape))
    return max(float(jnp.sqrt(squares.mean())), 1e-3)


def pseudo_inputs(
    preprocessing: Preprocessing, train: np.ndarray, count: int, seed: int
) -> jax.Array:
    """Draw prepared training examples [count, *data_shape], each at most once if there are enough.

    Args:
        preprocessing, train: the training data.
        count: number of examples.
        seed: seed of the choice and of the preparation.
    """
    rows = np.random.default_rng(seed).choice(len(train), count, replace=count > len(train))
    key = jax.random.fold_in(_key(seed), PSEUDO_INPUTS)
    return jax.vmap(preprocessing.prepare)(jax.random.split(key, count), jnp.asarray(train[rows]))


def _errors(preprocessing: Preprocessing, train: np.ndarray) -> jax.Array:
    head = jnp.asarray(train[:EXAMPLES])
    xs = jax.vmap(preprocessing.prepare)(jax.random.split(_key(0), len(head)), head)
    return xs - preprocessing.mean[None]


def _key(seed: int) -> jax.Array:
    """Threefry key, whatever jax's default: draws with `rbg` keys depend on the batch."""
    return jax.random.key(seed, impl="threefry2x32")
