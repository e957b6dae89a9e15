"""Rows to use a trained run on: of its own data, or of another data set prepared the same way."""

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import data as datasets
from experiments.data import Dataset, Rows
from experiments.data.identity import (
    DataIdentity,
    RowsIdentity,
    describe_differences,
    identify,
    identify_splits,
    to_json,
    unusual_range,
)
from experiments.data.run_data import choose_preprocessing, own_data, picture_options
from experiments.data.splits import SPLITS, Source, assemble, select_rows
from experiments.flags.config import TrainConfig
from jaxvae.checkpoints.hosts import is_first
from jaxvae.preprocessing import RULES, Preprocessing
from jaxvae.preprocessing.description import Description
from jaxvae.preprocessing.support import require_support

LABEL_CHARACTERS, LABEL_DIGITS = 40, 8


class RunRows(NamedTuple):
    """Rows, and how they relate to the data that the run was trained on.

    Attributes:
        name: Name of the rows' data set.
        rows: The rows, ready for the run's `Preprocessing.prepare`.
        split: Name of the rows: test, validation, train or all.
        identity: Identity of the rows as they were loaded.
        trained: Identity of the run's data; None for older releases, which did not record it.
        is_of_run: Whether these are the rows of this split of the run's data. Without a record,
            the run's own data set is assumed to be unchanged.
        warnings: One line for each reason to doubt the results.
    """

    name: str
    rows: Rows
    split: str
    identity: RowsIdentity
    trained: DataIdentity | None
    is_of_run: bool
    warnings: list[str]

    @property
    def title(self) -> str:
        """Name of the rows for titles."""
        return f"{self.name} {self.split}" + ("" if self.is_of_run else " (not the run's data)")

    @property
    def label(self) -> list[str]:
        """Parts to add to file names: none for the run's data, else data set and digest."""
        if self.is_of_run:
            return []
        form, _, where = self.name.partition(":")
        name = where if form in ("tfds", "folder") else self.name
        short = Path(where).stem if form in ("npz", "npy") else name
        short = re.sub(r"[^A-Za-z0-9_]+", "-", short)[-LABEL_CHARACTERS:].strip("-")
        return [*filter(None, [short]), self.identity.digest[:LABEL_DIGITS]]

    def print_doubts(self) -> None:
        """Print the warnings and, for rows that are not the run's, their description."""
        if not self.is_of_run:
            print(f"not the run's data: {self.rows.about}")
        for line in self.warnings:
            print(f"warning: {line}", file=sys.stderr)

    def to_json(self) -> dict[str, Any]:
        """Describe the data for a file of results."""
        trained = self.trained
        return {
            "is_of_run": None if trained is None else self.is_of_run,
            "rows": self.identity._asdict(),
            "run": None if trained is None else to_json(trained),
            "warnings": self.warnings,
        }


class Loaded(NamedTuple):
    """Rows, their data set, and the preprocessing of their examples."""

    rows: RunRows
    dataset: Dataset
    preprocessing: Preprocessing


def load_run_rows(
    config: TrainConfig,
    data_shape: list[int] | None,
    trained: DataIdentity | None,
    dataset: str | None,
    split: str | None,
    description: Description | None = None,
    cache: Path | None = None,
) -> Loaded:
    """Load the rows to use a run on.

    Args:
        config: Flags of the run.
        data_shape: Shape of the model's examples.
        trained: Identity of the run's data, if it is known.
        dataset: Data set to use instead of the run's own, all rows in their order.
        split: Split of the run's data to take (None: test), or part of `dataset` (None: all).
        description: Preprocessing of the run, if it is known.
        cache: Folder for prepared pictures.

    Raises:
        ValueError: The rows have another shape or scale than the run's, or do not exist.
    """
    if dataset is None or (dataset == config.dataset and split is not None):
        name, split, source = config.dataset, split or "test", None
        data = own_data(config, cache)
        rows = data.rows(split)
    else:
        name, source = dataset, _read_others(config, data_shape, dataset, cache)
        rows = select_rows(source, split)
        nothing = rows.examples[:0]
        data = Dataset(name, rows.examples, nothing, nothing, rows.about, {})
    shape = list(rows.examples.shape[1:])
    if shape != data_shape:
        raise ValueError(
            f"the run's model takes examples of shape {data_shape}, but {name} has {shape}. "
            "Give data of the run's shape."
        )
    identity = identify(rows.examples, quiet=not is_first())
    split, is_of_run = _relation(config, source, split, identity, trained, cache)
    whole = description is not None and description.support.whole and source is not None
    warnings = [] if trained is None else _check_scale(name, config, identity, trained, whole)
    if source is not None and description is not None:
        # Few rows may look like data of another kind: all black, or counts of 0 and 1.
        require_support(rows.examples, description.support, name)
        preprocessing = description.preprocessing(rows.examples.shape[1:])
    else:
        data, preprocessing = choose_preprocessing(config, data)
    examples: np.ndarray = data.train if source is not None else getattr(data, split)
    rows = rows._replace(examples=examples)
    found = RunRows(name, rows, split, identity, trained, is_of_run, warnings)
    return Loaded(found, data, preprocessing)


def _read_others(
    config: TrainConfig, data_shape: list[int] | None, dataset: str, cache: Path | None
) -> Source:
    """Read another data set; pictures are prepared as those of the run."""
    if not dataset.startswith("folder:"):
        return datasets.read(dataset, data_dir=config.data_dir)
    shape = data_shape or []
    channels = shape[2] if len(shape) == 3 and shape[2] in (1, 3) else None
    options = picture_options(config, cache, channels)
    return datasets.read(dataset, pictures=options)


def _relation(
    config: TrainConfig,
    source: Source | None,
    split: str | None,
    identity: RowsIdentity,
    trained: DataIdentity | None,
    cache: Path | None,
) -> tuple[str, bool]:
    """Name the rows, and find out if they are a split of the run's data or all of its data."""
    if trained is None:
        return split or "all", source is None
    same = [name for name in SPLITS if trained[name].digest == identity.digest]
    if split in same or source is None:
        assert split is not None, "the run's own data have splits"
        return split, split in same
    if same:
        return same[0], True
    if _is_all_of_run(config, source, identity, trained, cache):
        return "all", True
    return split or "all", False


def _is_all_of_run(
    config: TrainConfig,
    source: Source,
    identity: RowsIdentity,
    trained: DataIdentity,
    cache: Path | None,
) -> bool:
    """Check if a source gives the run's data when it is split as the run splits them."""
    count = sum(trained[split].shape[0] for split in SPLITS)
    if identity.shape != [count, *trained["train"].shape[1:]]:
        return False
    try:
        if source.name == config.dataset and source.name.startswith("folder:"):
            data = own_data(config, cache)  # on disk; `assemble` would copy it into memory
        else:
            data = assemble(source, config.num_validation)
    except ValueError:  # it cannot be split this way
        return False
    return not describe_differences(trained, identify_splits(data, quiet=True))


def _check_scale(
    name: str, config: TrainConfig, rows: RowsIdentity, trained: DataIdentity, whole: bool
) -> list[str]:
    """Check that equal stored values mean equal x; warn of values that are far from the run's.

    Args:
        name, config, rows, trained: as for `load_run_rows`.
        whole: True if the run is known to prepare whole numbers alike, whatever their type.
    """
    usual = trained["train"]
    counts = RULES[config.likelihood] is RULES["poisson"]  # counts of every type are not rescaled
    low, high = usual.range or [0.0, 0.0]
    alike = counts or (whole and rows.dtype != "float32")
    if rows.dtype != usual.dtype and "uint8" in (rows.dtype, usual.dtype) and not alike:
        raise ValueError(
            f"{name} is stored as {rows.dtype}, the run's training data as {usual.dtype} from "
            f"{low:.6g} to {high:.6g}: 8-bit data are rescaled, other types are not. Convert it to "
            f"{usual.dtype} on that scale."
        )
    highest = max((split.range[1] for split in trained.values() if split.range), default=0.0)
    given = rows.range[1] if rows.range else 0.0
    binary = config.likelihood == "bernoulli" and rows.dtype == "uint8"
    if binary and given > 0 and (given > 1) != (highest > 1):
        raise ValueError(
            f"{name} has values up to {given:g}, the run's data up to {highest:g}: white is 1 in "
            "one of them and 255 in the other. Rescale the rows to the scale of the run's data."
        )
    warning = unusual_range(name, rows, usual)
    return [] if warning is None else [warning]
