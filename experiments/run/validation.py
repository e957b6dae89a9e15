"""Evaluation of a model on the validation split during training."""

from collections.abc import Callable

from experiments.run.build import Built
from experiments.run.optimization import evaluated_at_once
from experiments.show.numbers import validation_row
from jaxvae.evaluation import make_score, map_dataset
from jaxvae.training.devices import make_map, replicate
from jaxvae.training.state import TrainState


def make_validation(
    built: Built,
) -> Callable[[TrainState, Callable[[int], None]], dict[str, float]] | None:
    """Return the function (state, progress) -> numbers of the validation split, if there is one.

    All evaluations of a run use the same key, so that they differ only because the model does.
    `progress` is called with the number of examples done.
    """
    if not len(built.dataset.validation):
        return None
    examples = built.examples("validation")
    microbatch_size = evaluated_at_once(built.config)
    score = make_score(built.vae, prepare=built.preprocessing.prepare)
    mapped = make_map(score, built.mesh, microbatch_size)
    key = replicate(built.keys.evaluation, built.mesh)

    def validate(state: TrainState, progress: Callable[[int], None]) -> dict[str, float]:
        scores = map_dataset(
            mapped,
            state.evaluation_params(),
            key,
            examples,
            mesh=built.mesh,
            batch_size=built.config.eval_batch_size,
            microbatch_size=microbatch_size,
            progress=progress,
        )
        return validation_row(scores)

    return validate
