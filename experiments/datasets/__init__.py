"""Data sets as three arrays, in memory or on disk: train, validation and test, always disjoint.

`load` reads them from a source by name; what is done to the examples before a model sees them
(binarization, dequantization) is in `preprocessing`, and is never done here.
"""

from typing import NamedTuple

import numpy as np

from experiments.packages import require_packages

__all__ = ["NAMES", "Dataset", "load"]

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
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    about: str
    labels: dict[str, np.ndarray]


def load(
    name: str,
    *,
    manual_dir: str | None = None,
    data_dir: str | None = None,
    num_validation: int | None = None,
) -> Dataset:
    """A data set by name.

    Args:
        name: One of `NAMES`, with NAME, CONFIG and PATH filled in.
        manual_dir: The folder with the four official .gz files, for mnist, fashion_mnist and
            kmnist where there is no network.
        data_dir: Where tensorflow-datasets keeps prepared data; None is its own default,
            ~/tensorflow_datasets.
        num_validation: How many examples, the last of the training split, are taken out of it to
            form the validation split; 0 is none. None is the source's default: its own
            validation split if it has one, else 1,000 for mnist_small, 5,000 for mnist,
            fashion_mnist and kmnist, and a tenth elsewhere.

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
        from experiments.datasets import official_idx

        return official_idx.load(name, manual_dir, data_dir, num_validation)
    if manual_dir is not None:
        raise ValueError(
            f"manual_dir is for mnist, fashion_mnist and kmnist; the data set is {name!r}. "
            "Leave out --manual-dir."
        )
    return _load_other(form, where, data_dir, num_validation)


def _load_other(form: str, where: str, data_dir: str | None, num_validation: int | None) -> Dataset:
    match form:
        case "tfds":
            from experiments.datasets import tfds

            return tfds.load(where, data_dir, num_validation)
        case "npz" | "npy":
            from experiments.datasets import arrays

            return arrays.load(form, where, num_validation)
        case "folder":
            from experiments.datasets import folder

            return folder.load(where, num_validation)
        case _:
            from experiments.datasets import mnist_small

            return mnist_small.load(num_validation)
