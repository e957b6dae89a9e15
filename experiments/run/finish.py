"""Finish a run after training: final numbers, pictures, the report, the table on the screen."""

import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import identity
from experiments.flags.command import as_user_errors
from experiments.machine.accelerators import describe
from experiments.machine.compilation_cache import give_back_memory
from experiments.machine.keys import root_key
from experiments.machine.versions import versions
from experiments.record import files
from experiments.record.progress import counted
from experiments.run.build import Built
from experiments.run.loop import Loop
from experiments.run.optimization import evaluated_at_once
from experiments.show import pictures, report
from experiments.show.drawing import (
    draw,
    make_decoder,
    prepared_head,
    to_sphere,
    write_pictures,
)
from experiments.show.extremes import show_extremes
from experiments.show.latent_view import view_latents
from experiments.show.numbers import make_scorer, print_numbers, summarize
from experiments.show.saved_results import read_results
from jaxvae.checkpoints.hosts import from_first, is_first
from jaxvae.distributions import VonMisesFisher
from jaxvae.evaluation import Scores, scored_x
from jaxvae.models.vae import Params
from jaxvae.trained import Reference, spread_evenly


def finish(loop: Loop) -> None:
    """Measure the best checkpoint, and write `results.json`, `pictures/` and `report.html`.

    Results that the folder already holds are not measured again. With several processes, all
    measure and process 0 writes.
    """
    path = loop.built.config.folder / "results.json"
    asked = {
        "steps": loop.step,
        "eval_samples": loop.built.config.eval_samples,
        "data": identity.to_json(loop.built.data_identity),
    }
    results = from_first(lambda: read_results(path))
    before = {"data": asked["data"]} | results  # older releases did not record the data
    if any(before.get(name) != value for name, value in asked.items()):
        results = asked | _measure(loop)
        if is_first():
            files.write_json(path, results)
    if not is_first():
        return
    give_back_memory()
    page = report.write_report(loop.built.config.folder)
    if not loop.built.config.quiet:
        for split in ("validation", "test"):
            if split in results:
                print_numbers(f"{split}, step {results['checkpoint']['step']:,}", results[split])
    print(f"report: {page}")


def _best_params(loop: Loop) -> tuple[int, Params]:
    """Return step and parameters (their running average if there is one) of the best checkpoint.

    The best has the highest validation ELBO; without a validation split, it is the latest.
    """
    loop.folder.checkpoints.wait()
    step = loop.folder.checkpoints.best_step()
    if step is None:
        raise ValueError(f"{loop.built.config.folder} has no checkpoint to evaluate.")
    target = jax.eval_shape(loop.built.vae.init, root_key(0))
    name = "params" if loop.built.config.average_decay is None else "average"
    with as_user_errors():  # a damaged checkpoint is an error that the user can fix
        return step, loop.folder.checkpoints.restore(step, {name: target})[name]


def _measure(loop: Loop) -> dict[str, Any]:
    """Measure the best checkpoint on the validation and test splits, and draw its pictures."""
    config, folder = loop.built.config, loop.built.config.folder / "pictures"
    give_back_memory()
    step, params = _best_params(loop)
    results: dict[str, Any] = {
        "command": f"python -m experiments.train {shlex.join(sys.argv[1:])}".strip(),
        "versions": versions(),
        "device": describe(list(loop.built.mesh.devices.flat)),
        "checkpoint": {"which": "best by the validation ELBO", "step": step},
        "preprocessing": loop.built.preprocessing.name,
        "bits_per_dimension_of": loop.built.preprocessing.unit,
    }
    if not len(loop.built.dataset.validation):
        results["checkpoint"]["which"] = "latest"
    if is_first():
        folder.mkdir(exist_ok=True)
    scorer = make_scorer(
        loop.built.vae,
        params,
        loop.built.preprocessing,
        key=loop.built.keys.evaluation,
        mesh=loop.built.mesh,
        num_samples=config.eval_samples,
        batch_size=config.eval_batch_size,
        microbatch_size=evaluated_at_once(config),
    )
    message = loop.recorder.display.message
    message(
        f"Measuring step {step:,} with {config.eval_samples} samples per example: compiling, "
        "then evaluating."
    )
    began = time.perf_counter()
    measured: dict[str, Scores] = {}
    for split in ("validation", "test"):
        examples = getattr(loop.built.dataset, split)
        if not len(examples):
            continue
        quiet = config.quiet or not is_first()
        with counted(f"{split} examples", len(examples), quiet=quiet) as progress:
            measured[split] = scorer(examples, progress=progress)
        give_back_memory()
        results[split] = summarize(
            measured[split], examples.shape[1:], loop.built.preprocessing, config.eval_samples
        )
    _score_training_rows(loop, scorer, step)
    timing = {
        "training_seconds": loop.recorder.seconds,
        "seconds_to_first_step": loop.seconds_to_first_step,
        "images_per_second": loop.images_per_second,
        "evaluation_seconds": time.perf_counter() - began,
    }
    if is_first():
        began = time.perf_counter()
        message("Drawing pictures: compiling the decoder.")
        results |= _draw(loop.built, params, measured)
        timing["drawing_seconds"] = time.perf_counter() - began
    return results | {"timing": timing}


def _score_training_rows(loop: Loop, scorer: Callable[..., Scores], step: int) -> None:
    """Write the scores of some training rows, which the quantiles of other rows refer to."""
    from jaxvae.checkpoints import write_reference  # orbax, which loads while a step compiles

    config, rows = loop.built.config, spread_evenly(loop.built.dataset.train)
    with counted("training examples", len(rows), quiet=config.quiet or not is_first()) as progress:
        scores = scorer(rows, progress=progress).log_likelihood
    if is_first():
        write_reference(config.folder, Reference(np.sort(scores), config.eval_samples, step))


def _draw(built: Built, params: Params, measured: dict[str, Scores]) -> dict[str, Any]:
    """Draw all pictures of a run, and return what the report says about them.

    Args:
        built: the run.
        params: parameters of the model.
        measured: split -> scores of its examples; the last one is shown.
    """
    folder, names = built.config.folder / "pictures", built.dataset.label_names
    decode = make_decoder(built.vae, params)
    xs = prepared_head(built.dataset, built.preprocessing)
    write_pictures(draw(built.vae, params, xs, built.keys.pictures, decode=decode), folder)
    if not measured:
        return {}
    split, scores = list(measured.items())[-1]
    rows = built.dataset.rows(split)
    on_sphere = isinstance(built.vae.encode(params, jnp.asarray(xs[0])), VonMisesFisher)

    def prepared(numbers: np.ndarray) -> np.ndarray:
        stored = rows.examples[numbers]
        prepare = built.preprocessing.prepare
        return np.asarray(scored_x(prepare, built.keys.evaluation, jnp.asarray(numbers), stored))

    def reconstructed(numbers: np.ndarray) -> np.ndarray:
        z = scores.posterior_mean[numbers]
        return decode(to_sphere(z) if on_sphere else z)

    extremes = show_extremes(rows, scores, prepared, reconstructed, names, folder)
    if scores.kl_per_latent is not None:
        pictures.latent_kl_bars(scores.kl_per_latent.mean(0), folder / "latent_kl.png")
    shown: dict[str, Any] = {"split": split, "extremes": extremes}
    view = view_latents(rows, scores, names)
    if view is not None:
        axes = [f"z[{i}]" for i in view.latents]
        pictures.latent_plot(view.points, axes, view.classes, folder / "latents.png")
        shown["latents"] = view.about()
    return {"shown": shown}
