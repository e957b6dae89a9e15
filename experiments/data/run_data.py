"""The data of a training run: loaded, identified, with the preprocessing that its flags choose."""

from pathlib import Path
from typing import NamedTuple

import jax

from experiments import data as datasets
from experiments.data import Dataset, PictureOptions
from experiments.data.identity import DataIdentity, identify_splits
from experiments.flags.config import TrainConfig
from experiments.flags.path_checks import path_of
from experiments.flags.terminal import with_flags
from experiments.machine.processes import agree
from jaxvae.checkpoints.hosts import is_first
from jaxvae.preprocessing import Preprocessing, Splits, preprocess

BESIDE, PREPARED = "data", "pictures"
"""Folder for prepared pictures in a run's folder, and in --data-dir."""


class RunData(NamedTuple):
    """Data of a run, ready for training, and their identity as they were loaded."""

    dataset: Dataset
    preprocessing: Preprocessing
    identity: DataIdentity


def load_data(config: TrainConfig) -> tuple[Dataset, DataIdentity]:
    """Load the data of a run that trains, as they are, with their identity."""
    place = path_of(config.data_dir) / PREPARED if config.data_dir else config.folder / BESIDE
    data = own_data(config, place)
    return data, identify_splits(data, quiet=config.quiet or not is_first())


def agree_on_data(identity: DataIdentity) -> None:
    """Check that all processes have read the same examples.

    Raises:
        ValueError: they have not; the text names the split that differs.
    """
    if jax.process_count() > 1:
        facts = {
            f"{split} data": f"{rows.shape} {rows.dtype} with digest {rows.digest[:12]}"
            for split, rows in identity.items()
        }
        agree("data", facts)


def cache_of(config: TrainConfig, run: Path) -> Path:
    """Folder for prepared pictures of a trained run.

    In the --data-dir that its config.json names only if pictures have been prepared there before:
    a run's folder may come from anybody, and must not choose where files are written.
    """
    if config.data_dir is not None:
        place = path_of(config.data_dir) / PREPARED
        if place.is_dir():
            return place
    return run / BESIDE


def picture_options(
    config: TrainConfig, cache: Path | None, channels: int | None = None
) -> PictureOptions:
    """Options of folder:PATH that the flags of a run choose, for its own data or for others."""
    quiet = config.quiet or not is_first()
    return PictureOptions(config.resize, config.skip_unreadable, channels, cache, quiet)


def own_data(config: TrainConfig, cache: Path | None = None) -> Dataset:
    """Load the data set that the flags of a run name, with a folder for prepared pictures."""
    return datasets.load(
        config.dataset,
        manual_dir=config.manual_dir,
        data_dir=config.data_dir,
        num_validation=config.num_validation,
        pictures=picture_options(config, cache),
    )


def choose_preprocessing(config: TrainConfig, data: Dataset) -> tuple[Dataset, Preprocessing]:
    """Prepare data for the likelihood of a run, according to its flags."""
    try:
        splits, preprocessing = preprocess(
            Splits(data.name, data.train, data.validation, data.test),
            likelihood=config.likelihood,
            binarize=config.binarize,
            grey_probabilities=config.grey_probabilities,
            standardize=config.standardize,
        )
    except ValueError as error:
        raise ValueError(with_flags(str(error))) from error
    return data._replace(**splits._asdict()), preprocessing
