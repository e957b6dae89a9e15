"""Replay of a step of a run: from a checkpoint of the run, in a separate folder."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.data.identity import describe_differences
from experiments.flags.config import TrainConfig
from experiments.run.consent import check_prepared, check_same_sizes, consented
from experiments.run.folder import recorded_data
from experiments.run.loop import Loop
from jaxvae.checkpoints import Checkpoints
from jaxvae.checkpoints.rebuilding import rebuild
from jaxvae.leaves import at_rows
from jaxvae.models.vae import VAE
from jaxvae.training.devices import replicate
from jaxvae.training.state import from_items, to_items


class Step(NamedTuple):
    """Inputs of a training step.

    Attributes:
        vae: the model.
        options: arguments of `make_train_step`.
        params: parameters before the step.
        keys: [B] random keys of the rows.
        stored: [B, ...] examples as they are stored.
        indices: [B] rows of the training split.
        number: number of steps done before it.
    """

    vae: VAE
    options: dict[str, Any]
    params: Any
    keys: jax.Array
    stored: Any
    indices: np.ndarray
    number: int


def check_replayable(config: TrainConfig, run: Path, model: str | None) -> int:
    """Check that a run can be replayed with the model that the user consented to.

    Returns the step of the newest checkpoint, or 0: the run may have come further than the last
    step that it logged (--log-every).

    Args:
        config: flags from the run's config.json.
        run: folder of the run.
        model: --model as the user gave it.

    Raises:
        ValueError: the user has not consented to the model, or the newest checkpoint has another
            model.
    """
    models = consented(model, config.model, run)
    check_prepared(config)
    if not (run / "checkpoints").is_dir():
        return 0
    with contextlib.closing(Checkpoints(run / "checkpoints", read_only=True)) as checkpoints:
        newest = checkpoints.latest_step()
        about = {} if newest is None else checkpoints.about(newest)
    if newest is not None:
        check_same_sizes(config, about, run)
        rebuild(about, run / "checkpoints" / str(newest), models)
    return newest or 0


def start_before(loop: Loop, checkpoints: Path, step: int) -> int:
    """Restore the newest checkpoint before a step of another run into a loop; return its step.

    Args:
        loop: a new run with the flags of the original run, in a separate folder.
        checkpoints: folder of the original run's checkpoints.
        step: the step to replay.

    Raises:
        ValueError: the original run was trained on other data.
    """
    built = loop.built
    with contextlib.closing(Checkpoints(checkpoints, read_only=True)) as others:
        steps = others.steps()
        before = max((known for known in steps if known < step), default=0)
        # The data may change between checkpoints (--allow-other-data): the next one names the
        # step's data.
        trained = recorded_data(others, [s for s in steps if s >= step] or steps[::-1])
        other = describe_differences(trained, built.data_identity) if trained else ""
        if other:
            raise ValueError(
                f"the run was trained on other data: {other}. Restore the data to replay one of "
                "its steps."
            )
        if before:
            items = others.restore(before, to_items(built.state_shapes))
            loop.state, loop.step = replicate(from_items(items), built.mesh), before
    return before


def next_step(loop: Loop) -> Step:
    """Return the inputs of the next step of a run."""
    built, indices = loop.built, loop.batches.indices(loop.step, 1)
    return Step(
        built.vae,
        built.options,
        jax.device_get(loop.state.params),
        jax.random.split(jax.random.fold_in(built.keys.train, loop.step), len(indices)),
        at_rows(loop.batches.examples, indices),
        indices,
        loop.step,
    )
