"""`fit`: train a VAE on an array in a few lines, with the functions of the library."""

import dataclasses
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from jaxvae.bounds import elbo
from jaxvae.evaluation import make_score, map_dataset
from jaxvae.models.registry import MODELS, build
from jaxvae.models.stored_parameters import trainable
from jaxvae.models.vae import VAE, Params
from jaxvae.preprocessing import (
    Preprocessing,
    Splits,
    choose_likelihood,
    preprocess,
    units_of,
)
from jaxvae.preprocessing.description import ABOUT, describe, read_description
from jaxvae.preprocessing.statistics import data_scale, pseudo_inputs
from jaxvae.preprocessing.support import Trained
from jaxvae.trained import TrainedVAE
from jaxvae.training.batches import Batches
from jaxvae.training.devices import AXIS, make_chunk_step, make_map, make_mesh, replicate, shard
from jaxvae.training.devices import local_positions as positions_of
from jaxvae.training.sigma import with_sigma_rate
from jaxvae.training.state import TrainState, init_state
from jaxvae.training.step import Objective, make_train_step

NAMES = {"mlp": "mlp_vae", "conv": "conv_vae"}
CHUNK_BYTES = 2**26
MOST_SKIPPED = 20
"""Steps in a row without a finite loss after which training ends."""
REFERENCE_SAMPLES = 100

Progress = Callable[[int, int, float | None], None]
"""(steps done, number of steps, validation ELBO or None) -> None."""


class Problem(NamedTuple):
    """A model and its data, ready for training."""

    vae: VAE
    recipe: dict[str, Any] | None
    splits: Splits
    preprocessing: Preprocessing
    about: dict[str, Any]


class Best(NamedTuple):
    """Parameters with the highest validation ELBO so far."""

    elbo: float
    step: int
    params: Params


def fit(
    x: ArrayLike,
    *,
    model: str | VAE = "mlp",
    likelihood: str = "auto",
    binarize: str = "auto",
    standardize: str = "auto",
    objective: Objective = elbo,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 5000,
    batch_size: int = 128,
    validation: float | ArrayLike = 0.1,
    eval_every: int = 500,
    average_decay: float | None = 0.998,
    key: jax.Array | None = None,
    devices: list[jax.Device] | None = None,
    folder: str | Path | None = None,
    progress: bool | Progress = True,
    **arguments: Any,
) -> TrainedVAE:
    """Train a VAE on an array, and return it with its preprocessing.

    Args:
        x: rows as stored: [N, D] vectors, [N, H, W] or [N, H, W, C] images, of bool, integers or
            floats.
        model: "mlp" (`jaxvae.mlp_vae`), "conv" (`jaxvae.conv_vae`), or your own `jaxvae.VAE` of
            prepared examples.
        likelihood: a name in `jaxvae.models.likelihoods`; "auto": `choose_likelihood` chooses.
        binarize, standardize: as for `jaxvae.preprocessing.preprocess`.
        objective: `jaxvae.elbo`, or partial(jaxvae.iwae, num_samples=8), ...
        optimizer: None: Adam with learning rate 0.001, and 0.01 for sigma.
        num_steps, batch_size: number of training steps, and rows of each over all devices.
        validation: share of the rows to set aside, or such rows themselves. The parameters with the
            highest validation ELBO are returned; with 0, the last ones.
        eval_every: steps between evaluations on the validation rows.
        average_decay: decay of the running average of the parameters, which is returned; None: no
            average.
        key: random key; None: key(0).
        devices: devices to train on; None: all.
        folder: folder of the run to write, which `jaxvae.checkpoints.load_trained` reads; None: no
            files.
        progress: True: a line on the screen; or a function (steps done, number of steps,
            validation ELBO or None).
        arguments: more arguments of the model's function: latent_dim, hidden, posterior, prior, ...

    Raises:
        ValueError: the data, names or sizes are invalid; or the loss was not finite in 20 steps in
            a row; or the folder exists.

    >>> images = np.random.default_rng(0).integers(0, 2, (256, 8, 8))
    >>> trained = fit(images, latent_dim=2, hidden=(16,), num_steps=20, progress=False)
    >>> trained.reconstruct(images[:3]).shape
    (3, 8, 8, 1)
    """
    if folder is not None and (Path(folder) / "checkpoints").exists():
        raise ValueError(f"{folder} holds a run already. Give a new folder.")
    key = jax.random.key(0) if key is None else key
    key_init, key_train, key_scores = jax.random.split(key, 3)
    problem = _problem(x, validation, model, likelihood, binarize, standardize, arguments)
    mesh = make_mesh(jax.devices() if devices is None else devices)
    optimizer = with_sigma_rate(optax.adam(1e-3), 10.0) if optimizer is None else optimizer
    state = init_state(problem.vae, optimizer, key_init, averaging=average_decay is not None)
    step = make_train_step(
        problem.vae,
        optimizer,
        objective=objective,
        prepare=problem.preprocessing.prepare,
        average_decay=average_decay,
        axis_name=AXIS,
    )
    show = _Line(time.monotonic()).show if progress is True else progress or _silent
    run = partial(_train, problem, step, mesh, eval_every, show)
    best = run(state, key_train, key_scores, num_steps, batch_size)
    lines = _about(problem, model, objective, f"{num_steps:,} of {batch_size} rows", arguments)
    description = read_description(problem.about)
    assert description is not None
    trained = TrainedVAE(
        problem.vae,
        best.params,
        problem.splits.train.shape[1:],
        description,
        lines,
        devices=devices,
    ).with_reference(problem.splits.train, REFERENCE_SAMPLES, best.step)
    if folder is not None:
        _save(Path(folder), trained, problem, best)
    return trained


def _problem(
    x: ArrayLike,
    validation: float | ArrayLike,
    model: str | VAE,
    likelihood: str,
    binarize: str,
    standardize: str,
    arguments: dict[str, Any],
) -> Problem:
    """Split and prepare the data, and build the model."""
    splits = _split(_stored(x), validation)
    if likelihood == "auto":
        choice = choose_likelihood(splits.train)
        likelihood, binarize = (
            choice.likelihood,
            choice.binarize if binarize == "auto" else binarize,
        )
    if not isinstance(model, str):
        standardize = "none"  # the model is built already
    splits, preprocessing = preprocess(
        splits, likelihood=likelihood, binarize=binarize, standardize=standardize
    )
    loaded = Trained(str(splits.train.dtype), float(splits.train.min()), float(splits.train.max()))
    about = {ABOUT: describe(preprocessing, loaded, resizes=False)}
    if not isinstance(model, str):
        return Problem(trainable(model), None, splits, preprocessing, about)
    if model not in NAMES:
        raise ValueError(
            f"model must be {' or '.join(NAMES)}, or a jaxvae.VAE; got {model!r}. Use one of them."
        )
    vectors = splits.train.ndim == 2
    made: dict[str, Any] = {
        "data_shape": list(splits.train.shape[1:]),
        "likelihood": likelihood,
        "sigma": "per_channel" if vectors else "learned",
        **arguments,
    }
    unit = np.ones((), np.float32)
    if preprocessing.standardizes:
        columns = units_of(splits.train, splits.name)
        made |= {"data_loc": columns.loc, "data_unit": columns.unit}
        unit = np.asarray(columns.unit, np.float32)
    recipe = {"function": NAMES[model], "arguments": made}
    start: dict[str, Any] = {
        "data_mean": preprocessing.mean,
        "data_scale": data_scale(preprocessing, splits.train, unit),
    }
    if made.get("prior") == "vamp":
        count = made.get("num_components", 50)
        start["pseudo_inputs"] = pseudo_inputs(preprocessing, splits.train, count, seed=0)
    vae = build(recipe, MODELS, **start)
    return Problem(trainable(vae), recipe, splits, preprocessing, about)


def _stored(x: ArrayLike) -> np.ndarray:
    """Rows [N, D] or [N, H, W, C] as uint8, int32 or float32.

    Raises:
        ValueError: another shape or type, no rows, or values that are not finite in float32.
    """
    rows = np.asarray(x)
    if rows.ndim not in (2, 3, 4) or 0 in rows.shape or rows.dtype.kind not in "biuf":
        raise ValueError(
            "x must be numbers of shape [N, D], [N, H, W] or [N, H, W, C], got "
            f"{list(rows.shape)} of {rows.dtype}. Reshape or convert it."
        )
    rows = rows[..., None] if rows.ndim == 3 else rows
    if rows.dtype.kind == "f":
        with np.errstate(over="ignore"):
            rows = rows.astype(np.float32)
        if not np.isfinite(rows).all():
            raise ValueError("x must be finite in float32. Repair or drop the other rows.")
        return rows
    if rows.dtype.kind == "b" or rows.dtype == np.uint8:
        return rows.view(np.uint8)
    if rows.min() < -(2**31) or rows.max() >= 2**31:
        raise ValueError("x must have integers that fit 32 bits. Rescale them, or give floats.")
    return rows.astype(np.int32)


def _split(rows: np.ndarray, validation: float | ArrayLike) -> Splits:
    """Set aside validation rows: a share, in an order that is always the same, or those given."""
    if not np.isscalar(validation):
        others = _stored(validation)
        if others.shape[1:] != rows.shape[1:]:
            raise ValueError(
                f"validation must have rows of shape {list(rows.shape[1:])} as x has, got "
                f"{list(others.shape[1:])}."
            )
        return Splits("x", rows, others.astype(rows.dtype), rows[:0])
    share = float(validation)  # type: ignore[arg-type]
    if not 0 <= share < 1:
        raise ValueError(f"validation must be a share from 0 to below 1, or rows; got {share}.")
    count = min(len(rows) - 1, round(share * len(rows)))
    order = np.random.default_rng(0).permutation(len(rows))
    return Splits("x", rows[order[count:]], rows[order[:count]], rows[:0])


def _train(
    problem: Problem,
    train_step: Any,
    mesh: Mesh,
    eval_every: int,
    show: Progress,
    state: TrainState,
    key: jax.Array,
    key_scores: jax.Array,
    num_steps: int,
    batch_size: int,
) -> Best:
    """Run the steps, and keep the best parameters."""
    rows, validation = problem.splits.train, problem.splits.validation
    bytes_of_batch = rows[:1].nbytes * batch_size
    capacity = max(1, min(100, eval_every, num_steps, CHUNK_BYTES // bytes_of_batch))
    chunk_step = make_chunk_step(train_step, mesh, batch_size, capacity)
    batches = Batches(rows, batch_size, 0, mesh.size, positions_of(mesh))
    score = make_map(make_score(problem.vae, prepare=problem.preprocessing.prepare), mesh)
    state, key = replicate(state, mesh), replicate(key, mesh)
    best: Best | None = None
    done = 0
    while done < num_steps:
        count = min(capacity, num_steps - done, eval_every - done % eval_every)
        chunk = shard(batches.chunk(done, count, capacity), mesh)
        state, _ = chunk_step(state, key, chunk, replicate(np.int32(count), mesh))
        done += count
        at_evaluation = done % eval_every == 0 or done == num_steps
        if at_evaluation:
            if int(state.skipped_in_row) >= MOST_SKIPPED:
                raise ValueError(
                    f"the loss or gradient was not finite in {int(state.skipped_in_row)} steps in "
                    "a row. Use a smaller learning rate or a larger sigma."
                )
            best = _better(best, done, state, score, validation, mesh, key_scores)
        show(done, num_steps, best.elbo if at_evaluation and best is not None else None)
    assert best is not None, "num_steps is at least 1"
    return best


def _better(
    best: Best | None,
    step: int,
    state: TrainState,
    score: Any,
    validation: np.ndarray,
    mesh: Mesh,
    key: jax.Array,
) -> Best:
    """Measure the parameters on the validation rows, and return the better of both."""
    params = state.evaluation_params()
    if not len(validation):
        return Best(float("nan"), step, jax.device_get(params))
    scores = map_dataset(score, params, replicate(key, mesh), validation, mesh=mesh, batch_size=500)
    value = float(scores.elbo.mean())
    if best is not None and not value > best.elbo:
        return best
    return Best(value, step, jax.device_get(params))


def _about(
    problem: Problem,
    model: str | VAE,
    objective: Objective,
    steps: str,
    arguments: dict[str, Any],
) -> dict[str, str]:
    """Lines that describe the model."""
    train = problem.splits.train
    likelihood = "" if problem.recipe is None else problem.recipe["arguments"]["likelihood"]
    given = ", ".join(f"{name}={value}" for name, value in arguments.items())
    name = getattr(getattr(objective, "func", objective), "__name__", "own")
    options = getattr(objective, "keywords", {})
    return {
        "data": f"{len(train):,} rows of shape {list(train.shape[1:])}, "
        f"{problem.preprocessing.name}",
        "networks": ", ".join(
            filter(None, [model if isinstance(model, str) else "own", likelihood, given])
        ),
        "bound": ", ".join([name, *(f"{key}={value}" for key, value in options.items())]),
        "steps": steps,
    }


def _save(folder: Path, trained: TrainedVAE, problem: Problem, best: Best) -> None:
    """Write the run's checkpoint and the scores of its training rows."""
    from jaxvae.checkpoints import Checkpoints, write_reference  # orbax: only for files

    if problem.recipe is None:
        raise ValueError(
            "folder needs a model by name, as a checkpoint stores a recipe and no code. Leave it "
            "out, or save trained.params yourself."
        )
    checkpoints = Checkpoints(folder / "checkpoints")
    about = problem.about | {
        "step": best.step,
        "data_shape": list(trained.data_shape),
        "vae": problem.recipe,
        "summary": trained.about,
    }
    metric = None if np.isnan(best.elbo) else best.elbo
    checkpoints.save(best.step, {"params": best.params}, about, metric)
    checkpoints.wait()
    checkpoints.close()
    assert trained.reference is not None
    write_reference(folder, trained.reference)


@dataclasses.dataclass
class _Line:
    """A line on the screen that is written anew."""

    start: float
    elbo: str = ""

    def show(self, done: int, num_steps: int, elbo: float | None) -> None:
        if elbo is not None:
            self.elbo = f", best validation ELBO {elbo:.2f} nats"
        seconds = time.monotonic() - self.start
        end = "\n" if done == num_steps else ""
        text = f"\rstep {done:,} of {num_steps:,}, {seconds:.0f} s{self.elbo}{end}"
        print(text, end="", file=sys.stderr, flush=True)


def _silent(done: int, num_steps: int, elbo: float | None) -> None:
    pass
