"""A run's folder: what it was started with, and its trained model with the data it is for."""

import hashlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from experiments import datasets, saved_flags
from experiments.config import TrainConfig
from experiments.datasets.preprocessing import Preprocessing, preprocess
from experiments.journal import Journal
from experiments.places import require_folder
from experiments.processes import agree
from jaxvae.processes import from_first, together
from jaxvae.vae import VAE, Params

Which = Literal["best", "latest"]
CONFIG, CHECKPOINTS = "config.json", "checkpoints"
"""In a run's folder."""
DIGEST_BYTES = 2**24
"""How much of a split is made contiguous at once for its digest."""


class OpenRun(NamedTuple):
    """A trained run, ready to be used.

    Attributes:
        config: the flags it was started with.
        vae, params: the model and its parameters, on the host.
        step: of the checkpoint they are from.
        preprocessing, dataset: what it is for.
    """

    config: TrainConfig
    vae: VAE
    params: Params
    step: int
    preprocessing: Preprocessing
    dataset: datasets.Dataset


def read_config(run: Path) -> TrainConfig | None:
    """The flags that a run was started with, or None where there is no run.

    Raises:
        ValueError: config.json is there and cannot be read.
    """
    values = from_first(lambda: saved_flags.read(run / CONFIG))
    return None if values is None else saved_flags.from_json(values)


def read_own_config(config: TrainConfig) -> TrainConfig | None:
    """The flags that the run in a training run's folder was started with; None: a new run.

    Raises:
        ValueError: the folder cannot be a run's, or what is in it cannot be gone on with.
    """
    values = from_first(lambda: _read_own(config))
    return None if values is None else saved_flags.from_json(values)


def _read_own(config: TrainConfig) -> dict[str, Any] | None:
    folder = config.folder
    require_folder(folder, "--run")
    require_folder(folder / CHECKPOINTS, CHECKPOINTS)
    values = saved_flags.read(folder / CONFIG)
    if values is None and any((folder / CHECKPOINTS).glob("*")):
        raise ValueError(
            f"{folder} must have its {CONFIG}, which says what the run there was started with; "
            "there are checkpoints alone. Restore it, or use another --run."
        )
    Journal.check(folder)
    return values


def load_data(
    config: TrainConfig, dataset: str | None = None
) -> tuple[datasets.Dataset, Preprocessing]:
    """The data of a run, or another data set with the run's preprocessing."""
    data = datasets.load(
        dataset or config.dataset,
        manual_dir=config.manual_dir,
        data_dir=config.data_dir,
        num_validation=config.num_validation,
    )
    return preprocess(
        data,
        likelihood=config.likelihood,
        binarize=config.binarize,
        grey_probabilities=config.grey_probabilities,
        standardize=config.standardize,
    )


def agree_on_data(data: datasets.Dataset) -> None:
    """Refuse to go on unless all processes have read the same examples.

    Raises:
        ValueError: naming the split that differs.
    """
    if jax.process_count() > 1:
        splits = ("train", "validation", "test")
        agree("data", {f"{split} data": _contents(getattr(data, split)) for split in splits})


def _contents(examples: np.ndarray) -> str:
    """Shape, type and digest of a split."""
    total = hashlib.sha256()
    count = max(1, DIGEST_BYTES * len(examples) // max(1, examples.nbytes))
    for start in range(0, len(examples), count):
        piece = np.ascontiguousarray(examples[start : start + count])
        total.update(piece.reshape(-1).view(np.uint8).data)
    return f"{list(examples.shape)} {examples.dtype} with digest {total.hexdigest()[:12]}"


def open_run(run: Path, which: Which, dataset: str | None = None) -> OpenRun:
    """A trained run's model and data.

    Args:
        run: its folder.
        which: the best checkpoint by the validation bound, or the latest.
        dataset: another data set than the run's own.

    Raises:
        FileNotFoundError: no run, or no checkpoint yet.
        ValueError: a damaged run, or data of another shape than the model's.
    """
    from jaxvae.checkpoints import Checkpoints, load  # orbax: a new run needs it later

    config = read_config(run)
    with together():
        if config is None:
            raise FileNotFoundError(
                f"no run at {run}: give the folder that `python -m experiments.train` wrote."
            )
    vae, params = load(run, which)
    checkpoints = Checkpoints(run / "checkpoints", read_only=True)
    step = checkpoints.best_step() if which == "best" else checkpoints.latest_step()
    about = checkpoints.about(step or 0)
    checkpoints.close()
    with together():
        data, preprocessing = load_data(config, dataset)
        shape, trained = list(data.train.shape[1:]), about["data_shape"]
        if shape != trained:
            raise ValueError(
                f"the run's model takes examples of shape {trained}, {data.name} has {shape}. "
                "Give data of the run's shape."
            )
    agree_on_data(data)
    return OpenRun(config, vae, params, about["step"], preprocessing, data)
