"""What follows the training: final numbers, pictures, the report, the table on the screen."""

import shlex
import sys
from typing import Any

import jax

from experiments.data import identity
from experiments.flags.command import refusing
from experiments.machine.accelerators import describe
from experiments.machine.compilation_cache import give_back_memory
from experiments.machine.keys import root_key
from experiments.machine.versions import versions
from experiments.record import files
from experiments.run.build import evaluated_at_once
from experiments.run.loop import TrainingRun
from experiments.show import pictures, report
from experiments.show.drawing import draw, prepared_head, write_pictures
from experiments.show.numbers import make_scorer, print_numbers, summarize
from experiments.show.saved_results import read_results
from jaxvae.checkpoints.hosts import from_first, is_first
from jaxvae.models.vae import Params


def finish(run: TrainingRun) -> None:
    """Measure the best checkpoint, and write `results.json`, `pictures/` and `report.html`.

    Nothing is measured again when the folder holds this run's results already. Of several
    processes all measure and process 0 writes.
    """
    path = run.config.folder / "results.json"
    asked = {
        "steps": run.step,
        "eval_samples": run.config.eval_samples,
        "data": identity.to_json(run.data_identity),
    }
    results = from_first(lambda: read_results(path))
    before = {"data": asked["data"]} | results  # older releases did not record the data
    if any(before.get(name) != value for name, value in asked.items()):
        results = asked | _measure(run)
        if is_first():
            files.write_json(path, results)
    if not is_first():
        return
    give_back_memory()
    page = report.write_report(run.config.folder)
    if not run.config.quiet:
        for split in ("validation", "test"):
            if split in results:
                print_numbers(f"{split}, step {results['checkpoint']['step']:,}", results[split])
    print(f"report: {page}")


def _best_params(run: TrainingRun) -> tuple[int, Params]:
    """The step and the parameters (their average where there is one) of the best checkpoint.

    Best is by the validation ELBO; without a validation split, the latest.
    """
    run.checkpoints.wait()
    step = run.checkpoints.best_step()
    if step is None:
        raise ValueError(f"{run.config.folder} has no checkpoint to report on.")
    target = jax.eval_shape(run.vae.init, root_key(0))
    name = "params" if run.config.average_decay is None else "average"
    with refusing():  # a damaged one is the user's to move away
        return step, run.checkpoints.restore(step, {name: target})[name]


def _measure(run: TrainingRun) -> dict[str, Any]:
    """The numbers of the best checkpoint on every split kept apart from training, and pictures."""
    config, folder = run.config, run.config.folder / "pictures"
    give_back_memory()
    step, params = _best_params(run)
    results: dict[str, Any] = {
        "command": f"python -m experiments.train {shlex.join(sys.argv[1:])}".strip(),
        "versions": versions(),
        "device": describe(list(run.mesh.devices.flat)),
        "checkpoint": {"which": "best by the validation ELBO", "step": step},
        "preprocessing": run.preprocessing.name,
        "bits_per_dimension_of": run.preprocessing.unit,
    }
    if not len(run.dataset.validation):
        results["checkpoint"]["which"] = "latest"
    if is_first():
        folder.mkdir(exist_ok=True)
    scorer = make_scorer(
        run.vae,
        params,
        run.preprocessing,
        key=run.key_evaluation,
        mesh=run.mesh,
        num_samples=config.eval_samples,
        batch_size=config.eval_batch_size,
        microbatch_size=evaluated_at_once(config),
    )
    for split in ("validation", "test"):
        examples = getattr(run.dataset, split)
        if not len(examples):
            continue
        scores = scorer(examples)
        give_back_memory()
        results[split] = summarize(
            scores, examples.shape[1:], run.preprocessing, config.eval_samples
        )
        if scores.kl_per_latent is not None and is_first():
            pictures.latent_kl_bars(scores.kl_per_latent.mean(0), folder / "latent_kl.png")
    if is_first():
        xs = prepared_head(run.dataset, run.preprocessing)
        write_pictures(draw(run.vae, params, xs, run.key_pictures), folder)
    timing = {
        "seconds_to_first_step": run.seconds_to_first_step,
        "images_per_second": run.images_per_second,
    }
    return results | {"timing": timing}
