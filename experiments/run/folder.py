"""Read a run's folder: its flags, its data, and its trained model."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from experiments import data as datasets
from experiments.data.conditions import with_condition
from experiments.data.identity import DataIdentity, from_json
from experiments.data.run_data import agree_on_data, cache_of
from experiments.data.run_rows import RunRows, load_run_rows
from experiments.flags import saved_flags
from experiments.flags.config import TrainConfig
from experiments.flags.path_checks import require_folder
from experiments.record.recorder import Recorder
from experiments.run.own_files import require_own_files
from jaxvae.checkpoints.categories import read_categories
from jaxvae.checkpoints.hosts import from_first, raise_on_all_processes
from jaxvae.models.vae import VAE, Params
from jaxvae.preprocessing import Preprocessing
from jaxvae.preprocessing.description import read_description

if TYPE_CHECKING:
    from jaxvae.checkpoints import (
        Checkpoints,  # orbax, which loads while a step compiles
    )

Which = Literal["best", "latest"]
CONFIG, CHECKPOINTS = "config.json", "checkpoints"
"""Names in a run's folder."""


class OpenRun(NamedTuple):
    """A trained run, ready for use.

    Attributes:
        config: flags that the run was started with.
        vae, params: the model and its parameters, on the host.
        step: step of the checkpoint that holds them.
        preprocessing, dataset: the data set and the preparation of its examples for the model.
        data: the requested rows of the data set.
        categories: names of the labels that the model is conditioned on; None: no condition.
        examples: examples of the requested rows as the model takes them, with their labels if it is
            conditioned on them.
    """

    config: TrainConfig
    vae: VAE
    params: Params
    step: int
    preprocessing: Preprocessing
    dataset: datasets.Dataset
    data: RunRows
    categories: list[str] | None
    examples: Any


def read_config(run: Path) -> TrainConfig | None:
    """Read the flags that a run was started with; None if there is no run.

    Raises:
        ValueError: config.json exists but is invalid.
    """
    values = from_first(lambda: _read_config(run))
    return None if values is None else saved_flags.from_json(values)


def _read_config(run: Path) -> dict[str, Any] | None:
    require_own_files(run)
    return saved_flags.read(run / CONFIG)


def read_own_config(config: TrainConfig) -> TrainConfig | None:
    """Read the flags of the run that a training command continues; None if the run is new.

    Raises:
        ValueError: the folder cannot be used, or the run in it cannot be continued.
    """
    values = from_first(lambda: _read_own(config))
    return None if values is None else saved_flags.from_json(values)


def _read_own(config: TrainConfig) -> dict[str, Any] | None:
    folder = config.folder
    require_folder(folder, "--run")
    require_folder(folder / CHECKPOINTS, CHECKPOINTS)
    values = _read_config(folder)
    if values is None and any((folder / CHECKPOINTS).glob("*")):
        raise ValueError(
            f"{folder} must have its {CONFIG}, which holds the flags of the run; it has only "
            "checkpoints. Restore the file, or use another --run."
        )
    Recorder.check(folder)
    return values


def recorded_data(checkpoints: "Checkpoints", steps: Iterable[int]) -> DataIdentity | None:
    """Identity of the data that a run was trained on, from the first readable checkpoint.

    Unreadable checkpoints are skipped here: restoring one reports what is wrong with it. None if
    there is no readable checkpoint, or if it is from a release that did not record its data.

    Args:
        checkpoints: checkpoints of the run.
        steps: steps of the checkpoints to try, in this order.

    Raises:
        ValueError: the record is malformed.
    """
    for step in steps:
        try:
            about = checkpoints.about(step)
        except ValueError:
            continue
        return from_json(about)
    return None


def open_run(
    run: Path,
    which: Which,
    dataset: str | None = None,
    split: str | None = None,
    model: str | None = None,
) -> OpenRun:
    """Open a trained run: its model and the data to use it on.

    Args:
        run: folder of the run.
        which: the best checkpoint by the validation bound, or the latest.
        dataset: data set to use instead of the run's own.
        split: rows to take, as for `load_run_rows`.
        model: --model as the user gave it; no other function outside jaxvae is imported.

    Raises:
        FileNotFoundError: there is no run, or it has no checkpoint yet.
        ValueError: the run is damaged, or the data have another shape than the model's.
    """
    from experiments.run.consent import check_prepared, check_same_model, consented
    from jaxvae.checkpoints.checkpoints import load_described  # orbax: a new run needs it later

    config = read_config(run)
    with raise_on_all_processes():
        if config is None:
            raise FileNotFoundError(
                f"no run at {run}: give the folder that `python -m experiments.train` wrote."
            )
        models = consented(model, config.model, run)
    loaded_run = load_described(run, which, models)
    about = loaded_run.about
    with raise_on_all_processes():
        check_same_model(config, about, run)
        check_prepared(config, dataset)
        trained = from_json(about)
        description, cache = read_description(about), cache_of(config, run)
        categories = read_categories(about, loaded_run.vae.condition)
        loaded = load_run_rows(
            config, about.get("data_shape"), trained, dataset, split, description, cache
        )
        examples = with_condition(loaded.rows.rows, categories, loaded.rows.name)
    data = loaded.rows
    agree_on_data({data.split: data.identity})
    return OpenRun(
        config,
        loaded_run.vae,
        loaded_run.params,
        loaded_run.step,
        loaded.preprocessing,
        loaded.dataset,
        data,
        categories,
        examples,
    )
