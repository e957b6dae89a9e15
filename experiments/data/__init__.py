"""Data sets as three disjoint arrays, in memory or on disk: train, validation and test.

`load` reads them from a source by name, in their stored type. Everything that is done to examples
before a model sees them (binarization, dequantization) is in `preprocessing`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.flags.packages import require_packages

if TYPE_CHECKING:
    from experiments.data.splits import Source

__all__ = ["NAMES", "Dataset", "Rows", "load", "load_rows", "read"]

NAMES = (
    "mnist_small",
    "mnist",
    "fashion_mnist",
    "kmnist",
    "tfds:NAME",
    "tfds:NAME/CONFIG",
    "npz:PATH",
    "npy:PATH",
    "folder:PATH",
)


class Rows(NamedTuple):
    """Some rows of a data set, with their labels and origin.

    Attributes:
        examples: [N, *data_shape] in their stored type.
        labels: [N] int32, or None.
        indices: [N] int64: each row's position in its array or list of files.
        files: [N] str: each row's file, relative to the folder; None if the data are arrays.
        parts: [N] str: part of the source that each index refers to; None if there is only one.
        about: One line: kind and number of the examples, source, and what was left out.
        label_names: Name of the class of each label; None if the labels are numbers.
    """

    examples: np.ndarray
    labels: np.ndarray | None
    indices: np.ndarray
    files: np.ndarray | None
    parts: np.ndarray | None
    about: str
    label_names: tuple[str, ...] | None = None


_NONE: Mapping[str, np.ndarray] = MappingProxyType({})


class Dataset(NamedTuple):
    """A data set in its stored type.

    Attributes:
        name: As given to `load`.
        train: [N, *data_shape], where data_shape is [H, W, C] or [D]; uint8 for 8-bit images,
            int32 for counts, float32 otherwise.
        validation: The same for the validation split; its length may be 0.
        test: The same for the test split.
        about: One line: kind and number of the examples, the source and its licence if known.
        labels: Split name -> [N] int32; empty if there are no labels.
        indices: Split name -> [N] int64: positions in the part of the source that a split is cut
            from; empty means 0 to N - 1.
        files: Split name -> [N] str: files of the examples; empty if the data are arrays.
        label_names: Name of the class of each label; None if the labels are numbers.
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    about: str
    labels: Mapping[str, np.ndarray]
    indices: Mapping[str, np.ndarray] = _NONE
    files: Mapping[str, np.ndarray] = _NONE
    label_names: tuple[str, ...] | None = None

    def rows(self, split: str) -> Rows:
        """Return the rows of a split."""
        examples = getattr(self, split)
        return Rows(
            examples,
            self.labels.get(split),
            self.indices.get(split, np.arange(len(examples))),
            self.files.get(split),
            None,
            self.about,
            self.label_names if split in self.labels else None,
        )


def load(
    name: str,
    *,
    manual_dir: str | None = None,
    data_dir: str | None = None,
    num_validation: int | None = None,
) -> Dataset:
    """Load a data set by name.

    Args:
        name, manual_dir, data_dir: As for `read`.
        num_validation: Number of examples at the end of the training split that become the
            validation split. None: the source's own validation split if it has one, else 1,000
            for mnist_small, 5,000 for mnist, fashion_mnist and kmnist, and a tenth for others.

    Raises:
        ValueError, FileNotFoundError: As for `read`; or the data cannot be split.
    """
    from experiments.data.splits import assemble

    return assemble(read(name, manual_dir=manual_dir, data_dir=data_dir), num_validation)


def load_rows(
    name: str,
    split: str | None = None,
    *,
    manual_dir: str | None = None,
    data_dir: str | None = None,
) -> Rows:
    """Load all rows of a data set, at least one, in the order of its source.

    Args:
        name, manual_dir, data_dir: As for `read`.
        split: The only part of the source to load: train, validation or test; None: all parts.

    Raises:
        ValueError, FileNotFoundError: As for `read`; or the source has no such part.
    """
    from experiments.data.splits import select_rows

    return select_rows(read(name, manual_dir=manual_dir, data_dir=data_dir), split)


def read(name: str, *, manual_dir: str | None = None, data_dir: str | None = None) -> "Source":
    """Read a data set from its source, before it is split.

    Args:
        name: One of `NAMES`, with NAME, CONFIG and PATH filled in.
        manual_dir: Folder with the four official .gz files of mnist, fashion_mnist or kmnist, if
            there is no network.
        data_dir: Folder of data prepared by tensorflow-datasets; None: its own default,
            ~/tensorflow_datasets.

    Raises:
        ValueError: The name is unknown, a package is not installed, or the data are not suitable
            for a model.
        FileNotFoundError: The data are missing and cannot be downloaded.
    """
    form, colon, where = name.partition(":")
    takes_more = {known.partition(":")[0]: ":" in known for known in NAMES}
    if takes_more.get(form) != bool(colon) or bool(colon) != bool(where):
        raise ValueError(f"The data set must be one of {', '.join(NAMES)}; got {name!r}. Use one.")
    if form in ("mnist", "fashion_mnist", "kmnist", "tfds"):
        require_packages("tensorflow_datasets", "importlib_resources", "array_record", "PIL")
    if form == "folder":
        require_packages("PIL")
    if form in ("mnist", "fashion_mnist", "kmnist"):
        from experiments.data import official_idx

        return official_idx.read_source(name, manual_dir, data_dir)
    if manual_dir is not None:
        raise ValueError(
            f"manual_dir is for mnist, fashion_mnist and kmnist; the data set is {name!r}. "
            "Leave out --manual-dir."
        )
    return _read_other(form, where, data_dir)


def _read_other(form: str, where: str, data_dir: str | None) -> "Source":
    match form:
        case "tfds":
            from experiments.data import tfds

            return tfds.read_source(where, data_dir)
        case "npz" | "npy":
            from experiments.data import arrays

            return arrays.read_source(form, where)
        case "folder":
            from experiments.data import picture_folder as folder

            return folder.read_source(where)
        case _:
            from experiments.data import mnist_small

            return mnist_small.read_source()
