"""State of a training run: its initialization, and its conversion to items of a checkpoint."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxvae.leaves import is_trained, partition
from jaxvae.models.stored_parameters import check_stored
from jaxvae.models.vae import VAE, Params
from jaxvae.regularizers import Regularizer, no_state

REGULARIZER_KEY = 2**31
"""Folded into the key of `init_state`, so that a regularizer does not change the VAE's start."""


class TrainState(NamedTuple):
    """State of a run between steps; it contains no random key.

    Attributes:
        step: [] int32, steps done, skipped ones included.
        params: parameters of the VAE.
        opt_state: state of the optax optimizer.
        average: running average of params, or None without averaging.
        squared_error: [] running mean over the training batches of the squared error per
            dimension, which is the optimal sigma^2; 0 for every other likelihood.
        skipped: [] int32, steps skipped because a number was not finite.
        skipped_in_row: [] int32, number of skipped steps since the last one that was not.
        regularizer: state of the regularizer; () if it has none.

    >>> TrainState._fields[:3]
    ('step', 'params', 'opt_state')
    """

    step: jax.Array
    params: Params
    opt_state: Any
    average: Params | None
    squared_error: jax.Array
    skipped: jax.Array
    skipped_in_row: jax.Array
    regularizer: Any = ()

    def evaluation_params(self) -> Params:
        """Parameters to evaluate with: the average if there is one, else params."""
        return self.params if self.average is None else self.average


def init_state(
    vae: VAE,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    *,
    averaging: bool = False,
    regularizer: Regularizer | None = None,
) -> TrainState:
    """Make the state before the first step.

    Integer and boolean arrays stay as they are, and the optimizer has no state for them.

    Args:
        vae: the model; wrap it with `jaxvae.trainable` if its parameters have leaves that are not
            arrays, or floats narrower than float32.
        optimizer: any optax transformation.
        key: consumed by `vae.init`, and folded for `regularizer.init`.
        averaging: whether to keep a running average of the parameters.
        regularizer: the regularizer of the training step.

    Raises:
        TypeError: a parameter needs `jaxvae.trainable`; the message names the leaf.

    >>> from jaxvae import mlp_vae
    >>> vae = mlp_vae(data_shape=(8,), latent_dim=2, hidden=())
    >>> state = init_state(vae, optax.sgd(0.1), jax.random.key(0), averaging=True)
    >>> int(state.step), sorted(state.average)
    (0, ['decoder', 'encoder', 'likelihood'])
    """
    params = vae.init(key)
    check_stored(params, averaging=averaging)
    init_regularizer = no_state if regularizer is None else regularizer.init
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(partition(params, is_trained)[0]),
        average=params if averaging else None,
        squared_error=jnp.zeros(()),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_row=jnp.zeros((), jnp.int32),
        regularizer=init_regularizer(jax.random.fold_in(key, REGULARIZER_KEY)),
    )
    # Training steps donate the state, so no two leaves may share memory, nor may it be `vae`'s own.
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf, state)


def to_items(state: TrainState) -> dict[str, Any]:
    """Split a state into items of a checkpoint: params, average, and the rest for training."""
    items = {"params": state.params, "training": state._replace(params=None, average=None)}
    return items if state.average is None else items | {"average": state.average}


def from_items(items: dict[str, Any]) -> TrainState:
    """Rebuild the state from the items that `to_items` returned."""
    return items["training"]._replace(params=items["params"], average=items.get("average"))


def check_state(
    state: TrainState, average_decay: float | None, regularizer: Regularizer | None
) -> None:
    """Check, at trace time, that a state has the average and regularizer of this step."""
    if (state.average is None) != (average_decay is None):
        raise ValueError(
            "a state with an average needs a step with average_decay, and one without needs "
            f"None; got average_decay={average_decay}. Give init_state averaging="
            f"{average_decay is not None}."
        )
    init = no_state if regularizer is None else regularizer.init
    expected: Any = jax.tree.structure(jax.eval_shape(init, jax.random.key(0)))
    if jax.tree.structure(state.regularizer) != expected:
        raise ValueError(
            f"the state of the step's regularizer must have the structure {expected}, got "
            f"{jax.tree.structure(state.regularizer)}. Give init_state and make_train_step the "
            "same regularizer."
        )
