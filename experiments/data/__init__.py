"""Data sets as three disjoint arrays, in memory or on disk: train, validation and test.

`load` reads them from a source by name, in their stored type. Everything that is done to examples
before a model sees them (binarization, dequantization) is in `preprocessing`.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.flags.packages import require_packages

if TYPE_CHECKING:
    from experiments.data.splits import Source

__all__ = ["NAMES", "Dataset", "PictureOptions", "Rows", "load", "load_rows", "read"]

NAMES = (
    "mnist_small",
    "mnist",
    "fashion_mnist",
    "kmnist",
    "shapes:32",
    "shapes:64",
    "tfds:NAME",
    "tfds:NAME/CONFIG",
    "npz:PATH",
    "npy:PATH",
    "npy:FOLDER",
    "folder:PATH",
)


class PictureOptions(NamedTuple):
    """Options of folder:PATH.

    Attributes:
        resize: (H, W): scale every picture to cover it, and crop the centre. None: all pictures
            must have one size.
        skip_unreadable: Leave out pictures that cannot be read; without it they are an error.
        channels: 1 for grey, 3 for colour; None: 1 if all pictures are grey, else 3.
        cache: Folder for prepared pixels, which are then read from disk as needed; None: all
            pixels stay in memory.
        quiet: Show no progress.
    """

    resize: tuple[int, int] | None = None
    skip_unreadable: bool = False
    channels: int | None = None
    cache: Path | None = None
    quiet: bool = False


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
    pictures: PictureOptions | None = None,
) -> Dataset:
    """Load a data set by name.

    Args:
        name, manual_dir, data_dir, pictures: As for `read`.
        num_validation: Number of examples at the end of the training split that become the
            validation split. None: the source's own validation split if it has one, else 1,000
            for mnist_small and shapes, 5,000 for mnist, fashion_mnist and kmnist, and a tenth for
            others.

    Raises:
        ValueError, FileNotFoundError: As for `read`; or the data cannot be split.
    """
    from experiments.data.splits import assemble

    return assemble(_read(name, manual_dir, data_dir, pictures, to_split=True), num_validation)


def load_rows(
    name: str,
    split: str | None = None,
    *,
    manual_dir: str | None = None,
    data_dir: str | None = None,
    pictures: PictureOptions | None = None,
) -> Rows:
    """Load all rows of a data set, at least one, in the order of its source.

    Args:
        name, manual_dir, data_dir, pictures: As for `read`.
        split: The only part of the source to load: train, validation or test; None: all parts.

    Raises:
        ValueError, FileNotFoundError: As for `read`; or the source has no such part.
    """
    from experiments.data.splits import select_rows

    source = read(name, manual_dir=manual_dir, data_dir=data_dir, pictures=pictures)
    return select_rows(source, split)


def read(
    name: str,
    *,
    manual_dir: str | None = None,
    data_dir: str | None = None,
    pictures: PictureOptions | None = None,
) -> "Source":
    """Read a data set from its source, before it is split.

    Args:
        name: One of `NAMES`, with NAME, CONFIG and PATH filled in.
        manual_dir: Folder with the four official .gz files of mnist, fashion_mnist or kmnist, if
            there is no network.
        data_dir: Folder of data prepared by tensorflow-datasets; None: its own default,
            ~/tensorflow_datasets.
        pictures: Options of folder:PATH.

    Raises:
        ValueError: The name is unknown, a package is not installed, or the data are not suitable
            for a model.
        FileNotFoundError: The data are missing and cannot be downloaded.
    """
    return _read(name, manual_dir, data_dir, pictures, to_split=False)


def _read(
    name: str,
    manual_dir: str | None,
    data_dir: str | None,
    pictures: PictureOptions | None,
    *,
    to_split: bool,
) -> "Source":
    """Read a data set; `to_split`: pictures of one part are stored in the order of its splits."""
    form, colon, where = name.partition(":")
    takes_more = {known.partition(":")[0]: ":" in known for known in NAMES}
    if takes_more.get(form) != bool(colon) or bool(colon) != bool(where):
        raise ValueError(f"The data set must be one of {', '.join(NAMES)}; got {name!r}. Use one.")
    if form in ("mnist", "fashion_mnist", "kmnist", "tfds"):
        require_packages("tensorflow_datasets", "importlib_resources", "array_record", "PIL")
    if manual_dir is not None and form not in ("mnist", "fashion_mnist", "kmnist"):
        raise ValueError(
            f"manual_dir is for mnist, fashion_mnist and kmnist; the data set is {name!r}. "
            "Leave out --manual-dir."
        )
    if form == "folder":
        require_packages("PIL")
        from experiments.data.pictures import source

        return source.read_source(where, pictures or PictureOptions(), to_split=to_split)
    if pictures is not None and (pictures.resize is not None or pictures.skip_unreadable):
        raise ValueError(
            f"--resize and --skip-unreadable are for folder:PATH; the data set is {name!r}. "
            "Leave them out."
        )
    return _read_other(form, name, where, manual_dir, data_dir)


def _read_other(
    form: str, name: str, where: str, manual_dir: str | None, data_dir: str | None
) -> "Source":
    match form:
        case "mnist" | "fashion_mnist" | "kmnist":
            from experiments.data import official_idx

            return official_idx.read_source(name, manual_dir, data_dir)
        case "tfds":
            from experiments.data import tfds

            return tfds.read_source(where, data_dir)
        case "shapes":
            from experiments.data import shapes

            return shapes.read_source(where)
        case "npz" | "npy":
            from experiments.data import arrays

            return arrays.read_source(form, where)
        case _:
            from experiments.data import mnist_small

            return mnist_small.read_source()
