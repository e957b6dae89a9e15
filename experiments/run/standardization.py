"""Units in which a run's model sees the data: chosen when the run starts, then never changed."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Literal

from experiments.data import Dataset
from experiments.data.preprocessing import Preprocessing
from experiments.data.units import ColumnUnits, units_of
from experiments.flags.combinations import LOCATION_SCALE
from experiments.flags.config import TrainConfig
from experiments.run.model import takes_units
from experiments.run.optimization import SIGMA_RATE
from jaxvae.checkpoints.hosts import from_first
from jaxvae.models.units import Units


def with_choices(config: TrainConfig, saved: TrainConfig | None) -> TrainConfig:
    """Fill in --standardize and --sigma-rate if they are left open.

    Args:
        config: the flags as given.
        saved: flags that the run was started with; None: a new run. For a new run, "auto" may
            stay, as it depends on the data, which are not read yet.

    Raises:
        ValueError: there is no such model.
    """
    standardize, sigma_rate = config.standardize, config.sigma_rate
    if saved is not None:
        standardize = saved.standardize if standardize == "auto" else standardize
        sigma_rate = saved.sigma_rate if sigma_rate is None else sigma_rate
    elif config.likelihood in LOCATION_SCALE:
        standardize = "none" if standardize == "auto" and not takes_units(config) else standardize
        default = SIGMA_RATE if config.learns_sigma else None
        sigma_rate = default if sigma_rate is None else sigma_rate
    return dataclasses.replace(config, standardize=standardize, sigma_rate=sigma_rate)


def as_done(config: TrainConfig, preprocessing: Preprocessing) -> TrainConfig:
    """Replace --standardize=auto by what is done to the data."""
    done: Literal["columns", "none"] = "columns" if preprocessing.standardizes else "none"
    return dataclasses.replace(config, standardize=done)


def units_of_run(
    folder: Path, preprocessing: Preprocessing, dataset: Dataset
) -> ColumnUnits | None:
    """Return the units in a run's newest checkpoint, else those of its training split.

    Units never change during a run, not even with other data: its parameters depend on them.

    Args:
        folder: folder of the run.
        preprocessing, dataset: data of the run.

    Raises:
        ValueError: float32 cannot represent the unit of a column.
    """
    if not preprocessing.standardizes:
        return None
    stored = _stored(folder)
    if stored is not None:
        return stored
    return ColumnUnits(*from_first(lambda: list(units_of(dataset.train, dataset.name))))


def in_words(preprocessing: Preprocessing, units: ColumnUnits | None) -> str:
    """Name the preprocessing, with a note on unusual columns."""
    about = "" if units is None else units.about
    return f"{preprocessing.name} ({about})" if about else preprocessing.name


def _stored(folder: Path) -> ColumnUnits | None:
    """Return the units in the recipe of the newest readable checkpoint."""
    checkpoints = folder / "checkpoints"
    if not from_first(lambda: any(checkpoints.glob("*"))):
        return None
    from jaxvae.checkpoints import Checkpoints  # orbax: a new run needs it later

    with contextlib.closing(Checkpoints(checkpoints, read_only=True)) as saved:
        for step in reversed(saved.steps()):
            # Unreadable checkpoints are skipped here: restoring one reports what is wrong with it.
            with contextlib.suppress(ValueError, KeyError, TypeError):
                arguments = saved.about(step)["vae"]["arguments"]
                loc, unit = arguments["data_loc"], arguments["data_unit"]
                Units.of(loc, unit, len(unit))
                return ColumnUnits(loc, unit, "")
    return None
