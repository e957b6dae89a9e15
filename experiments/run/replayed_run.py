"""A step of a run computed again, from a checkpoint of the run and in a folder of its own."""

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
from jaxvae.models.vae import VAE
from jaxvae.training.devices import replicate
from jaxvae.training.state import from_items, to_items


class Step(NamedTuple):
    """What a training step is computed from.

    Attributes:
        vae: the model.
        options: of `make_train_step`.
        params: before the step.
        keys: [B] of the rows.
        stored: [B, ...] examples as they are stored.
        indices: [B] rows of the training split.
        number: of steps done before it.
    """

    vae: VAE
    options: dict[str, Any]
    params: Any
    keys: jax.Array
    stored: np.ndarray
    indices: np.ndarray
    number: int


def check_replayable(config: TrainConfig, run: Path, model: str | None) -> None:
    """Check the model of a run before config.json alone decides what is imported and made.

    Args:
        config: from the run's config.json.
        run: its folder.
        model: the user's --model.

    Raises:
        ValueError: the user has not consented to the model, or the newest checkpoint holds
            another one.
    """
    models = consented(model, config.model, run)
    check_prepared(config)
    if not (run / "checkpoints").is_dir():
        return
    with contextlib.closing(Checkpoints(run / "checkpoints", read_only=True)) as checkpoints:
        newest = checkpoints.latest_step()
        about = {} if newest is None else checkpoints.about(newest)
    if newest is not None:
        check_same_sizes(config, about, run)
        rebuild(about, run / "checkpoints" / str(newest), models)


def start_before(loop: Loop, checkpoints: Path, step: int) -> int:
    """Put a run before a step, at the newest of another folder's checkpoints; returns its step.

    Args:
        loop: a new run with the flags of the run that it repeats, in a folder of its own.
        checkpoints: of the run that it repeats.
        step: that is to be computed again.

    Raises:
        ValueError: the run was trained on other data.
    """
    built = loop.built
    with contextlib.closing(Checkpoints(checkpoints, read_only=True)) as others:
        steps = others.steps()
        before = max((known for known in steps if known < step), default=0)
        # The next checkpoint says which data the step was computed from.
        trained = recorded_data(others, [s for s in steps if s >= step] or steps[::-1])
        other = describe_differences(trained, built.data_identity) if trained else ""
        if other:
            raise ValueError(
                f"the run was trained on other data: {other}. Restore the data to compute one "
                "of its steps again."
            )
        if before:
            items = others.restore(before, to_items(built.state_shapes))
            loop.state, loop.step = replicate(from_items(items), built.mesh), before
    return before


def next_step(loop: Loop) -> Step:
    """Return what the next step of a run is computed from."""
    built, indices = loop.built, loop.batches.indices(loop.step, 1)
    return Step(
        built.vae,
        built.options,
        jax.device_get(loop.state.params),
        jax.random.split(jax.random.fold_in(built.keys.train, loop.step), len(indices)),
        loop.batches.examples[indices],
        indices,
        loop.step,
    )
