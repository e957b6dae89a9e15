"""Data sets as three arrays, in memory or on disk: train, validation and test, always disjoint.

`load` reads them from a source by name; what is done to the examples before a model sees them
(binarization, dequantization) is in `preprocessing`, and is never done here.
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
    """Some rows of a data set, each with what belongs to it.

    Attributes:
        examples: [N, *data_shape] in their stored type.
        labels: [N] int32, or None.
        indices: [N] int64: each row's position in the array or list of files that it is from.
        files: [N] str: its file, relative to the folder; None where the data are arrays.
        parts: [N] str: the part of the source that `indices` refer to; None if it is one part.
        about: One line: what they are, how many, from where, and what was left out.
    """

    examples: np.ndarray
    labels: np.ndarray | None
    indices: np.ndarray
    files: np.ndarray | None
    parts: np.ndarray | None
    about: str


_NONE: Mapping[str, np.ndarray] = MappingProxyType({})


class Dataset(NamedTuple):
    """A data set in its stored type.

    Attributes:
        name: As given to `load`.
        train: [N, *data_shape], where data_shape is [H, W, C] or [D]; uint8 for 8-bit images,
            int32 for counts, float32 otherwise.
        validation: The same for the validation split; its length may be 0.
        test: The same for the test split.
        about: One line: what it is, how many examples, the source and its licence where known.
        labels: Split name -> [N] int32; empty where there are none.
        indices: Split name -> [N] int64: positions in the part of the source that a split is cut
            from; empty is 0 to N - 1.
        files: Split name -> [N] str: files of the examples; empty where the data are arrays.
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    about: str
    labels: Mapping[str, np.ndarray]
    indices: Mapping[str, np.ndarray] = _NONE
    files: Mapping[str, np.ndarray] = _NONE

    def rows(self, split: str) -> Rows:
        """The rows of a split."""
        examples = getattr(self, split)
        return Rows(
            examples,
            self.labels.get(split),
            self.indices.get(split, np.arange(len(examples))),
            self.files.get(split),
            None,
            self.about,
        )


def load(
    name: str,
    *,
    manual_dir: str | None = None,
    data_dir: str | None = None,
    num_validation: int | None = None,
) -> Dataset:
    """A data set by name.

    Args:
        name, manual_dir, data_dir: As for `read`.
        num_validation: How many examples, the last of the training split, are taken out of it to
            form the validation split; 0 is none. None is the source's default: its own
            validation split if it has one, else 1,000 for mnist_small, 5,000 for mnist,
            fashion_mnist and kmnist, and a tenth elsewhere.

    Raises:
        ValueError, FileNotFoundError: As `read`; or it cannot be split.
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
    """All rows of a data set in the order of its source; a single one is enough.

    Args:
        name, manual_dir, data_dir: As for `read`.
        split: Take this part of the source only: train, validation or test.

    Raises:
        ValueError, FileNotFoundError: As `read`; or the source has no such part.
    """
    from experiments.data.splits import select_rows

    return select_rows(read(name, manual_dir=manual_dir, data_dir=data_dir), split)


def read(name: str, *, manual_dir: str | None = None, data_dir: str | None = None) -> "Source":
    """A data set as its source has it, before it is split.

    Args:
        name: One of `NAMES`, with NAME, CONFIG and PATH filled in.
        manual_dir: The folder with the four official .gz files, for mnist, fashion_mnist and
            kmnist where there is no network.
        data_dir: Where tensorflow-datasets keeps prepared data; None is its own default,
            ~/tensorflow_datasets.

    Raises:
        ValueError: If there is no such name, a package is not installed, or the data are not
            what a model can take.
        FileNotFoundError: If the data are neither here nor to be had.
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
            from experiments.data import folder

            return folder.read_source(where)
        case _:
            from experiments.data import mnist_small

            return mnist_small.read_source()
