"""Finish a run after training: final numbers, pictures, the report, the table on the screen."""

import shlex
import sys
import time
from pathlib import Path
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
from experiments.record.progress import announced, counted
from experiments.run.build import Built
from experiments.run.final_samples import CHOICES, choose_num_samples
from experiments.run.loop import Loop
from experiments.run.optimization import evaluated_at_once
from experiments.show import plots, report
from experiments.show.drawing import (
    conditions_of,
    draw,
    make_decoder,
    prepared_head,
    shown_split,
    to_sphere,
    write_pictures,
)
from experiments.show.extremes import show_extremes
from experiments.show.latent_view import view_latents
from experiments.show.numbers import make_scorer, print_numbers, summarize
from experiments.show.saved_results import read_results
from jaxvae.checkpoints.hosts import from_first, is_first
from jaxvae.distributions import VonMisesFisher, flattened
from jaxvae.evaluation import Scores, scored_x
from jaxvae.leaves import count_rows
from jaxvae.models.vae import Params
from jaxvae.trained import Reference, spread_evenly

TRAINING = "training"
"""Name of the training examples whose scores new rows are ranked among."""


def finish(loop: Loop) -> None:
    """Measure the best checkpoint, and write `results.json`, `pictures/` and `report.html`.

    Results that the folder already holds are not measured again. With several processes, all
    measure and process 0 writes.
    """
    config, path = loop.built.config, loop.built.config.folder / "results.json"
    asked: dict[str, Any] = {
        "steps": loop.step,
        "data": identity.to_json(loop.built.data_identity),
    }
    if config.eval_samples is not None:
        asked["eval_samples"] = config.eval_samples
    results = from_first(lambda: read_results(path))
    before = {"data": asked["data"]} | results  # older releases did not record the data
    if any(before.get(name) != value for name, value in asked.items()):
        # The automatic number depends on the clock: a second measurement takes that of the first.
        same_steps = results.get("steps") == loop.step
        results = asked | _measure(loop, results.get("eval_samples") if same_steps else None)
        if is_first():
            files.write_json(path, results)
    if not is_first():
        return
    give_back_memory()
    with announced("Writing the report", quiet=config.quiet):
        page = report.write_report(config.folder)
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


def _measure(loop: Loop, samples_before: int | None) -> dict[str, Any]:
    """Measure the best checkpoint on the validation and test splits, and draw its pictures.

    Args:
        loop: the run.
        samples_before: number of samples of an earlier measurement at this step, if there is one.
    """
    folder = loop.built.config.folder / "pictures"
    quiet = loop.built.config.quiet or not is_first()
    give_back_memory()
    with announced("Reading the best checkpoint", quiet=quiet):
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
    loop.recorder.display.message(f"Measuring step {step:,}.")
    began = time.perf_counter()
    measured, num_samples = _score_splits(loop, params, samples_before)
    reference = Reference.of(measured.pop(TRAINING).log_likelihood, num_samples, step)
    if is_first() and reference is not None:
        from jaxvae.checkpoints import write_reference  # orbax, which loads while a step compiles

        write_reference(loop.built.config.folder, reference)
    for split, scores in measured.items():
        shape = getattr(loop.built.dataset, split).shape[1:]
        results[split] = summarize(scores, shape, loop.built.preprocessing, num_samples)
    timing = {
        "training_seconds": loop.recorder.seconds,
        "seconds_to_first_step": loop.seconds_to_first_step,
        "images_per_second": loop.images_per_second,
        "evaluation_seconds": time.perf_counter() - began,
    }
    if is_first():
        began = time.perf_counter()
        with announced("Drawing pictures", quiet=quiet):
            results |= _draw(loop.built, params, measured)
        timing["drawing_seconds"] = time.perf_counter() - began
    return results | {"eval_samples": num_samples, "timing": timing}


def _score_splits(
    loop: Loop, params: Params, samples_before: int | None
) -> tuple[dict[str, Scores], int]:
    """Score the examples of each split that has any, and some training examples.

    Returns:
        The scores by split, and the number of samples.
    """
    config, dataset = loop.built.config, loop.built.dataset
    quiet = config.quiet or not is_first()
    held_out = [split for split in ("validation", "test") if len(getattr(dataset, split))]
    splits = {split: loop.built.examples(split) for split in held_out}
    splits[TRAINING] = spread_evenly(loop.built.examples("train"))
    scorer = make_scorer(
        loop.built.vae,
        params,
        loop.built.preprocessing,
        key=loop.built.keys.evaluation,
        mesh=loop.built.mesh,
        most_samples=config.eval_samples or CHOICES[0],
        batch_size=config.eval_batch_size,
        microbatch_size=evaluated_at_once(config),
    )
    num_samples, first = config.eval_samples or samples_before, "compiling"
    if num_samples is None:
        with announced("Compiling the estimate of log p(x)", quiet=quiet):
            num_samples = choose_num_samples(
                scorer,
                list(splits.values()),
                config.eval_batch_size,
                loop.recorder.seconds,
                loop.recorder.display.message,
            )
        first = ""  # choosing has compiled the program
    measured = {}
    for split, examples in splits.items():
        what = f"Evaluating {split} examples, {num_samples:,} samples each"
        with counted(what, count_rows(examples), first=first, quiet=quiet) as progress:
            measured[split] = scorer(examples, num_samples, progress=progress)
        give_back_memory()
    return measured, num_samples


def _draw(built: Built, params: Params, measured: dict[str, Scores]) -> dict[str, Any]:
    """Draw all pictures of a run, and return what the report says about them.

    Args:
        built: the run.
        params: parameters of the model.
        measured: split -> scores of its examples; the last one is shown.
    """
    folder, names = built.config.folder / "pictures", built.dataset.label_names
    decode = make_decoder(built.vae, params)
    head = prepared_head(built.examples(shown_split(built.dataset)), built.preprocessing)
    drawing = draw(
        built.vae, params, head, built.keys.pictures, decode=decode, categories=built.categories
    )
    write_pictures(drawing, folder)
    if not measured:
        return {}
    split, scores = list(measured.items())[-1]
    rows = built.dataset.rows(split)
    given, x = built.vae.of_example(jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), head))
    on_sphere = isinstance(flattened(given.encode(params, x)), VonMisesFisher)
    conditions = conditions_of(built.examples(split))

    def prepared(numbers: np.ndarray) -> np.ndarray:
        stored = rows.examples[numbers]
        prepare = built.preprocessing.prepare
        return np.asarray(scored_x(prepare, built.keys.evaluation, jnp.asarray(numbers), stored))

    def reconstructed(numbers: np.ndarray) -> np.ndarray:
        z = scores.posterior_mean[numbers]
        z = to_sphere(z.reshape(len(z), -1)).reshape(z.shape) if on_sphere else z
        return decode(z, None if conditions is None else conditions[numbers])

    extremes = show_extremes(rows, scores, prepared, reconstructed, names, folder)
    if scores.kl_per_latent is not None:
        _draw_kl(np.asarray(scores.kl_per_latent).mean(axis=0), folder)
    shown: dict[str, Any] = {"split": split, "extremes": extremes}
    view = view_latents(rows, scores, names)
    if view is not None:
        axes = [f"z[{i}]" for i in view.latents]
        plots.latent_plot(view.points, axes, view.classes, folder / "latents.png")
        shown["latents"] = view.about()
    return {"shown": shown}


def _draw_kl(kl: np.ndarray, folder: Path) -> None:
    """Draw the KL of each latent [Z], or of each channel and place of a feature map [h, w, c]."""
    if kl.ndim == 1:
        plots.latent_kl_bars(kl, folder / "latent_kl.png")
        return
    plots.latent_kl_bars(kl.sum(axis=(0, 1)), folder / "latent_kl.png", "channel")
    plots.latent_kl_places(kl.sum(axis=2), folder / "latent_kl_places.png")
