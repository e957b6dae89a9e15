"""Units in which a run's model sees the data: chosen when the run starts, then never changed."""

import contextlib
from pathlib import Path

from experiments.data import Dataset
from jaxvae.checkpoints.hosts import from_first
from jaxvae.models.units import Units
from jaxvae.preprocessing import Preprocessing
from jaxvae.preprocessing.columns import ColumnUnits, units_of


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
