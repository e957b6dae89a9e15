"""The data of a training run: loaded, identified, with the preprocessing that its flags choose."""

from typing import NamedTuple

import jax

from experiments import data as datasets
from experiments.data import Dataset
from experiments.data.identity import DataIdentity, identify_splits
from experiments.flags.config import TrainConfig
from experiments.machine.processes import agree
from jaxvae.checkpoints.hosts import is_first
from jaxvae.preprocessing import Preprocessing, Splits, preprocess


class RunData(NamedTuple):
    """Data of a run, ready for training, and their identity as they were loaded."""

    dataset: Dataset
    preprocessing: Preprocessing
    identity: DataIdentity


def load_data(config: TrainConfig) -> tuple[Dataset, DataIdentity]:
    """Load the data of a run as they are, with their identity."""
    data = own_data(config)
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


def own_data(config: TrainConfig) -> Dataset:
    """Load the data set that the flags of a run name."""
    return datasets.load(
        config.dataset,
        manual_dir=config.manual_dir,
        data_dir=config.data_dir,
        num_validation=config.num_validation,
    )


def choose_preprocessing(config: TrainConfig, data: Dataset) -> tuple[Dataset, Preprocessing]:
    """Prepare data for the likelihood of a run, according to its flags."""
    splits, preprocessing = preprocess(
        Splits(data.name, data.train, data.validation, data.test),
        likelihood=config.likelihood,
        binarize=config.binarize,
        grey_probabilities=config.grey_probabilities,
        standardize=config.standardize,
    )
    return data._replace(**splits._asdict()), preprocessing
