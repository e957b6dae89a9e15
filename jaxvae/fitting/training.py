"""Training of a fit: dispatches of steps, evaluations between them, and the best parameters."""

import math
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxvae.evaluation import make_score, map_dataset
from jaxvae.fitting.problem import Problem
from jaxvae.models.vae import Params
from jaxvae.training.batches import Batches
from jaxvae.training.devices import local_positions, make_chunk_step, make_map, replicate, shard
from jaxvae.training.state import TrainState

CHUNK_STEPS, CHUNK_BYTES = 100, 2**26
"""Most steps and bytes of data in one dispatch."""
SECONDS = 1.0
"""Duration of a dispatch, between two messages."""
MOST_SKIPPED = 20
"""Steps in a row without a finite loss after which training ends."""

Progress = Callable[[int, int, float | None], None]
"""(steps done, number of steps, best validation ELBO at an evaluation, else None) -> None."""


class Best(NamedTuple):
    """Parameters with the highest validation ELBO so far, or the last without validation rows."""

    elbo: float | None
    step: int
    params: Params


def train(
    problem: Problem,
    train_step: Any,
    state: TrainState,
    *,
    mesh: Mesh,
    key: jax.Array,
    key_scores: jax.Array,
    num_steps: int,
    batch_size: int,
    eval_every: int,
    show: Progress,
) -> Best:
    """Run the steps, and keep the best parameters.

    Ctrl-C, and steps that are no longer finite, end the training with the best so far.

    Raises:
        KeyboardInterrupt, FloatingPointError: there was no evaluation yet.
    """
    rows, validation = problem.splits.train, problem.splits.validation
    bytes_of_batch = rows[:1].nbytes * batch_size
    capacity = max(1, min(CHUNK_STEPS, eval_every, num_steps, CHUNK_BYTES // bytes_of_batch))
    chunk_step = make_chunk_step(train_step, mesh, batch_size, capacity)
    batches = Batches(rows, batch_size, 0, mesh.size, local_positions(mesh))
    score = make_map(make_score(problem.vae, prepare=problem.preprocessing.prepare), mesh)
    state, key = replicate(state, mesh), replicate(key, mesh)
    best: Best | None = None
    done, seconds_per_step = 0, SECONDS
    show(0, num_steps, None)
    try:
        while done < num_steps:
            wanted = max(1, int(SECONDS / seconds_per_step))
            count = min(wanted, capacity, num_steps - done, eval_every - done % eval_every)
            chunk = shard(batches.chunk(done, count, capacity), mesh)
            start = time.monotonic()
            state, _ = chunk_step(state, key, chunk, replicate(np.int32(count), mesh))
            jax.block_until_ready(state.step)  # two dispatches may deadlock on simulated devices
            if done:  # the first dispatch also compiles
                seconds_per_step = (time.monotonic() - start) / count
            done += count
            at_evaluation = done % eval_every == 0 or done == num_steps
            if at_evaluation:
                _check_finite(state)
                best = _better(best, done, state, score, validation, mesh, key_scores)
            show(done, num_steps, best.elbo if at_evaluation and best is not None else None)
    except (KeyboardInterrupt, FloatingPointError) as error:
        if best is None:
            raise
        reason = str(error) or "Training was interrupted."
        warnings.warn(f"{reason} The result is that of step {best.step:,}.", stacklevel=3)
    assert best is not None, "num_steps is at least 1"
    return best


def _check_finite(state: TrainState) -> None:
    """Check that training has not come to a halt.

    Raises:
        FloatingPointError: the last `MOST_SKIPPED` steps were all skipped.
    """
    skipped = int(state.skipped_in_row)
    if skipped >= MOST_SKIPPED:
        raise FloatingPointError(
            f"the loss or gradient norm was not finite in {skipped} steps in a row. Use a smaller "
            "learning rate or a larger sigma."
        )


def _better(
    best: Best | None,
    step: int,
    state: TrainState,
    score: Any,
    validation: np.ndarray,
    mesh: Mesh,
    key: jax.Array,
) -> Best:
    """Score the parameters on the validation rows; return them if they are the best so far."""
    params = state.evaluation_params()
    if not len(validation):
        return Best(None, step, jax.device_get(params))
    scores = map_dataset(score, params, replicate(key, mesh), validation, mesh=mesh, batch_size=500)
    value = float(scores.elbo.mean())
    before = math.nan if best is None or best.elbo is None else best.elbo
    if best is not None and value <= before:
        return best
    return Best(value, step, jax.device_get(params))
