"""Guard of a training step: a step with non-finite numbers changes only the counters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae.training.state import TrainState

Metrics = dict[str, jax.Array]


def guard(
    is_finite: jax.Array,
    update: Callable[[TrainState], TrainState],
    old: TrainState,
    metrics: Metrics,
) -> tuple[TrainState, Metrics]:
    """Return the updated state if all is finite, else the old one; the counters always advance.

    Args:
        is_finite: [] whether loss, gradient norm and the regularizer's new state are finite.
        update: the state before the step -> the state after it.
        old: the state before the step.
        metrics: metrics of the step, to which `skipped` and `skipped_in_row` are added.
    """

    # CPUs branch: an elementwise choice would make XLA copy the old state first. GPUs choose: a
    # branch would wait for the host, and the choice costs nothing.
    def branch(is_finite: jax.Array, old: TrainState) -> TrainState:
        return jax.lax.cond(is_finite, update, lambda old: old, old)

    def choice(is_finite: jax.Array, old: TrainState) -> TrainState:
        return jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), update(old), old)

    kept = jax.lax.platform_dependent(is_finite, old, cpu=branch, default=choice)
    skipped = 1 - is_finite.astype(jnp.int32)
    new = kept._replace(
        step=old.step + 1,
        skipped=old.skipped + skipped,
        skipped_in_row=(old.skipped_in_row + skipped) * skipped,
    )
    return new, metrics | {"skipped": new.skipped, "skipped_in_row": new.skipped_in_row}


def all_finite(tree: Any) -> jax.Array:
    """Return whether every entry of every leaf is finite: []."""
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))
