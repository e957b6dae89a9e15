"""Flags that a new run's data choose; a continued run takes them from its first start."""

import dataclasses
from typing import Any, Literal

from experiments.data import Dataset
from experiments.flags.combinations import LOCATION_SCALE, implied_likelihood
from experiments.flags.config import TrainConfig
from experiments.flags.terminal import with_flags
from experiments.run.model import takes_units
from jaxvae.preprocessing import Preprocessing, choose_likelihood, doubt
from jaxvae.training.sigma import SIGMA_RATE

OPEN: dict[str, Any] = {
    "likelihood": "auto",
    "binarize": "auto",
    "sigma": "auto",
    "standardize": "auto",
    "sigma_rate": None,
}
"""Flag -> the value that leaves the choice to the data."""


def choices_of(saved: TrainConfig, config: TrainConfig) -> TrainConfig:
    """Fill in the open flags of a continued run with the values that it was started with."""
    open_flags = [name for name, value in OPEN.items() if getattr(config, name) == value]
    return dataclasses.replace(config, **{name: getattr(saved, name) for name in open_flags})


def choose(config: TrainConfig, dataset: Dataset) -> tuple[TrainConfig, list[str]]:
    """Fill in the open flags of a new run to suit its data.

    --standardize may stay open: `as_done` fills it in when the data are prepared.

    Args:
        config: the flags as given.
        dataset: data of the run, as loaded.

    Returns:
        The flags, and lines that say what was chosen and why.

    Raises:
        ValueError: there is no such model, or flags do not go together.
    """
    lines, choice = [], choose_likelihood(dataset.train)
    if config.likelihood == "auto":
        implied = implied_likelihood(config)
        if implied is None:
            binarize = choice.binarize if config.binarize == "auto" else config.binarize
            config = dataclasses.replace(config, likelihood=choice.likelihood, binarize=binarize)
            lines.append(
                f"likelihood: {choice.likelihood}, as the data are {choice.reason} "
                "(--likelihood chooses another)."
            )
        else:
            config = dataclasses.replace(config, likelihood=implied)
    problem = doubt(config.likelihood, choice)
    lines += [] if problem is None else [f"warning: {with_flags(problem)}"]
    if config.sigma == "auto":
        vectors = dataset.train.ndim == 2 and config.likelihood in LOCATION_SCALE
        config = dataclasses.replace(config, sigma="per_channel" if vectors else "learned")
    if config.likelihood in LOCATION_SCALE:
        if config.standardize == "auto" and not takes_units(config):
            config = dataclasses.replace(config, standardize="none")
        if config.sigma_rate is None and config.learns_sigma:
            config = dataclasses.replace(config, sigma_rate=SIGMA_RATE)
    config.check()
    return config, lines


def as_done(config: TrainConfig, preprocessing: Preprocessing) -> TrainConfig:
    """Replace --standardize=auto by what is done to the data."""
    done: Literal["columns", "none"] = "columns" if preprocessing.standardizes else "none"
    return dataclasses.replace(config, standardize=done)
