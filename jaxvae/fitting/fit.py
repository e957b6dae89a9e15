"""Train a VAE on an array with the functions of the library."""

import dataclasses
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import optax
from numpy.typing import ArrayLike

from jaxvae.bounds import elbo
from jaxvae.fitting.arguments import check_folder, check_functions, check_numbers
from jaxvae.fitting.problem import Problem, make_problem
from jaxvae.fitting.training import Best, Progress, train
from jaxvae.models.vae import VAE
from jaxvae.preprocessing.description import read_description
from jaxvae.trained import USUAL_SAMPLES, TrainedVAE
from jaxvae.training.devices import AXIS, make_mesh
from jaxvae.training.sigma import SIGMA_RATE, with_sigma_rate
from jaxvae.training.state import init_state
from jaxvae.training.step import Objective, make_train_step


def fit(
    x: ArrayLike,
    *,
    model: str | VAE = "mlp",
    likelihood: str = "auto",
    binarize: str = "auto",
    standardize: str = "auto",
    grey_probabilities: bool = False,
    objective: Objective = elbo,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 5000,
    batch_size: int = 128,
    validation: float | ArrayLike = 0.1,
    eval_every: int = 500,
    average_decay: float | None = 0.998,
    reference_samples: int = USUAL_SAMPLES,
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
        model: "mlp" (`jaxvae.mlp_vae`), "conv" (`jaxvae.conv_vae`), "resnet" (`jaxvae.resnet_vae`),
            or your own `jaxvae.VAE` of prepared examples; likelihood then only says how the rows
            are prepared.
        likelihood: a name in `jaxvae.models.likelihoods`; "auto": `choose_likelihood` chooses.
        binarize, standardize, grey_probabilities: as for `jaxvae.preprocessing.preprocess`.
        objective: `jaxvae.elbo`, or partial(jaxvae.iwae, num_samples=8), ...
        optimizer: None: Adam with learning rate 0.001, and 0.01 for sigma.
        num_steps, batch_size: number of training steps, and rows of each over all devices.
        validation: share of the rows to set aside, or such rows themselves. The parameters with the
            highest validation ELBO are returned; with 0, the last ones.
        eval_every: steps between evaluations on the validation rows.
        average_decay: decay of the running average of the parameters, which is returned; None: no
            average.
        reference_samples: samples of log p(x) for each of up to 2,000 training rows, among which
            `TrainedVAE.score` ranks new ones; fewer are quicker.
        key: random key; None: key(0).
        devices: devices to train on; None: all.
        folder: folder of the run to write, which `jaxvae.checkpoints.load_trained` reads; None: no
            files.
        progress: True: a line on the screen; or a function (steps done, number of steps,
            validation ELBO or None).
        arguments: more arguments of the model's function: latent_dim, hidden, posterior, prior, ...

    Raises:
        ValueError: the data, names or sizes are invalid, or the folder holds a run.
        FloatingPointError: the loss was not finite in 20 steps in a row, before any evaluation.

    After the first evaluation, Ctrl-C ends the training and returns the best parameters so far.

    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 2, (256, 8, 8))
    >>> trained = fit(images, latent_dim=2, hidden=(16,), num_steps=20, progress=False)
    >>> trained.reconstruct(images[:3]).shape
    (3, 8, 8, 1)
    """
    sizes: dict[str, Any] = {
        "num_steps": num_steps,
        "batch_size": batch_size,
        "eval_every": eval_every,
    }
    check_numbers(average_decay, key, reference_samples=reference_samples, **sizes)
    check_functions(objective, optimizer, devices, arguments.get("posterior"))
    if folder is not None:
        check_folder(Path(folder), model)
    key = jax.random.key(0, impl="threefry2x32") if key is None else key
    key_init, key_train, key_scores = jax.random.split(key, 3)
    flags = dict(binarize=binarize, standardize=standardize, grey_probabilities=grey_probabilities)
    problem = make_problem(x, validation, model, likelihood, flags, arguments)
    checkpoints = None if folder is None else _opened(Path(folder))
    mesh = make_mesh(jax.devices() if devices is None else devices)
    optimizer = with_sigma_rate(optax.adam(1e-3), SIGMA_RATE) if optimizer is None else optimizer
    state = init_state(problem.vae, optimizer, key_init, averaging=average_decay is not None)
    step = make_train_step(
        problem.vae,
        optimizer,
        objective=objective,
        prepare=problem.preprocessing.prepare,
        average_decay=average_decay,
        axis_name=AXIS,
        microbatch_size=problem.rows_at_once(objective, mesh, batch_size),
    )
    show = _Line(time.monotonic()).show if progress is True else progress or _silent
    of_run: dict[str, Any] = dict(mesh=mesh, key=key_train, key_scores=key_scores, show=show)
    best = train(problem, step, state, **of_run, **sizes)
    lines = _about(problem, model, objective, f"{num_steps:,} of {batch_size} rows", arguments)
    trained = _trained(problem, best, lines, devices)
    trained = trained.with_reference(problem.loaded, reference_samples, best.step)
    if folder is not None:
        _save(Path(folder), checkpoints, trained, problem, best)
    return trained


def _trained(
    problem: Problem, best: Best, about: dict[str, str], devices: list[jax.Device] | None
) -> TrainedVAE:
    description = read_description(problem.about)
    assert description is not None, "make_problem describes it"
    data_shape = problem.splits.train.shape[1:]
    return TrainedVAE(problem.vae, best.params, data_shape, description, about, devices=devices)


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


def _opened(folder: Path) -> Any:
    """Open the checkpoints of a new run; before training, so that an unwritable folder fails."""
    from jaxvae.checkpoints import Checkpoints  # orbax: only for files

    return Checkpoints(folder / "checkpoints")


def _save(
    folder: Path, checkpoints: Any, trained: TrainedVAE, problem: Problem, best: Best
) -> None:
    """Write the run's checkpoint and the scores of its training rows."""
    from jaxvae.checkpoints import write_reference

    about = problem.about | {
        "step": best.step,
        "data_shape": list(trained.data_shape),
        "vae": problem.recipe,
        "summary": trained.about,
    }
    try:
        checkpoints.save(best.step, {"params": best.params}, about, best.elbo)
        checkpoints.wait()
        if trained.reference is not None:
            write_reference(folder, trained.reference)
    except (OSError, ValueError) as error:  # the caller still gets the model
        warnings.warn(f"{folder} was not saved: {error}", stacklevel=3)
    finally:
        checkpoints.close()


@dataclasses.dataclass
class _Line:
    """Progress line that overwrites itself."""

    start: float
    elbo: str = ""

    def show(self, done: int, num_steps: int, elbo: float | None) -> None:
        if elbo is not None:
            self.elbo = f", best validation ELBO {elbo:.2f} nats"
        text = f"step {done:,} of {num_steps:,}, {time.monotonic() - self.start:.0f} s{self.elbo}"
        if done == 0:
            text = "compiling the training step"
        if done == num_steps:
            text += "; scoring training rows for reference\n"
        print(f"\r{text:<80}", end="", file=sys.stderr, flush=True)


def _silent(done: int, num_steps: int, elbo: float | None) -> None:
    pass
