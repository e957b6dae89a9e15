"""npz:PATH and npy:PATH: the user's own arrays, in memory or on disk.

Images [N, H, W] or [N, H, W, C], or vectors [N, D]; uint8, bool (stored as uint8), integer counts
(stored as int32) or floats (stored as float32). The arrays train, validation and test of an .npz,
or x_train, x_val and x_test, are the splits. Otherwise its only array, or the one named images, x
or data, is split 80/10/10 by a fixed permutation; so is the array of an .npy. Labels are integers
[N] named labels or y, or after their split: y_train, train_labels.

npy:FOLDER reads the same names from files (train.npy, test.npy, ...) and memory-maps uint8, bool
and float32, for data that are larger than memory. Arrays of other types, and arrays that are split
or binarized once (--binarize=static), are copied into memory.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.npyio import NpzFile

from experiments.data.splits import Examples, Source
from experiments.flags.path_checks import path_of, require_file

NAMES_OF_SPLIT = {
    "train": ("train", "x_train"),
    "validation": ("validation", "val", "x_validation", "x_val"),
    "test": ("test", "x_test"),
}
NAMES_OF_DATA = ("images", "x", "data")
NAMES_OF_LABELS = ("labels", "y")
EXAMPLES_AT_ONCE = 4096
LARGEST_IN_ANY_CASE = 2**29
"""Decompressed bytes that every .npz file may have."""
LARGEST_RATIO = 200
"""Ratio of decompressed to compressed bytes that larger files may have; real data stay below."""


class Arrays(NamedTuple):
    """Contents of a file or folder of arrays.

    Attributes:
        parts: Name of a part -> its examples.
        left_out: Names of arrays that are neither data nor labels.
    """

    parts: dict[str, Examples]
    left_out: list[str]


def read_source(form: str, where: str) -> Source:
    """Read the arrays of npz:PATH or npy:PATH, given the form "npz" or "npy"."""
    path = path_of(where)
    if not path.exists():
        raise FileNotFoundError(
            f"{form}:PATH must name a .{form} file; there is no {path}. Correct the path."
        )
    if path.is_dir() and form == "npz":
        raise ValueError(
            f"npz:PATH must name an .npz file; {path} is a folder. Name a file in it, or use "
            f"npy:{path} for a folder of .npy files, folder:{path} for one of images."
        )
    if not path.is_dir():
        require_file(path)
    read = read_npz if form == "npz" else read_folder if path.is_dir() else read_npy
    parts, left_out = read(path)
    origin = f"from {path}" + (f"; arrays left out: {', '.join(left_out)}" if left_out else "")
    return Source(f"{form}:{where}", parts, what="own arrays", origin=origin)


def read_npy(path: Path) -> Arrays:
    """Read the array of an .npy file, as one part."""
    return Arrays({"all": Examples(stored(_mapped(path), str(path)), None)}, [])


def read_folder(path: Path) -> Arrays:
    """Memory-map the parts of a folder of .npy files."""
    files = {file.stem: file for file in sorted(path.glob("*.npy"))}
    names = _data_of_parts(f"npy:{path}", list(files), ".npy")
    return _arrays(path, names, list(files), lambda name: _mapped(files[name]))


def read_npz(path: Path) -> Arrays:
    """Read the parts of an .npz file, each under the name of its split."""
    with contextlib.ExitStack() as stack:
        with _reading(path, "npz"):
            archive = np.load(stack.enter_context(path.open("rb")), allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError(f"npz:PATH must name an .npz file; {path} is an .npy. Use npy:{path}.")
        _require_plausible(path, archive)
        names = _data_of_parts(f"npz:{path}", archive.files)
        return _arrays(path, names, archive.files, lambda name: _member(path, archive, name))


def _require_plausible(path: Path, archive: NpzFile) -> None:
    """Reject a small file that would fill the memory once it is decompressed.

    Raises:
        ValueError: the file expands too much; the text has both sizes.
    """
    members = archive.zip.infolist() if archive.zip is not None else []
    size, packed = (sum(getattr(member, name) for member in members)
                    for name in ("file_size", "compress_size"))  # fmt: skip
    if size > LARGEST_IN_ANY_CASE and size > LARGEST_RATIO * packed:
        raise ValueError(
            f"{path} must hold data; its {packed:,} bytes become {size:,} when they are "
            "decompressed, as those of one repeated number do. Save it with numpy.savez."
        )


def stored(array: np.ndarray, where: str) -> np.ndarray:
    """Convert an array [N, ...] to the type and rank of a `Dataset`.

    Args:
        array: [N, D], [N, H, W] or [N, H, W, C] of bool, integers or floats.
        where: Name of the array in messages.

    Returns:
        [N, D] or [N, H, W, C] of uint8, int32 or float32.

    Raises:
        ValueError: Another shape or type, or values that do not fit the type or are not finite.
    """
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"{where} must be [N, D], [N, H, W] or [N, H, W, C] with no empty axis; its shape is "
            f"{list(array.shape)}. Reshape it."
        )
    match array.dtype.kind:
        case "b":
            kept = array.view(np.uint8)
        case "i" | "u":
            kept = array if array.dtype == np.uint8 else _int32(array, where)
        case "f":
            kept = _float32(array, where)
        case _:
            raise ValueError(
                f"{where} must be bool, integers or floats; it has type {array.dtype}. Convert it."
            )
    return kept[..., None] if kept.ndim == 3 else kept


def _int32(array: np.ndarray, where: str) -> np.ndarray:
    low, high, limits = array.min(), array.max(), np.iinfo(np.int32)
    if low < limits.min or high > limits.max:
        raise ValueError(
            f"{where} must have integers that fit 32 bits; it has values from {low} to {high}. "
            "Rescale them or store floats."
        )
    return array.astype(np.int32)


def _float32(array: np.ndarray, where: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        kept = array.astype(np.float32, copy=False)
    for start in range(0, len(kept), EXAMPLES_AT_ONCE):
        some = kept[start : start + EXAMPLES_AT_ONCE]
        finite = np.isfinite(some.reshape(len(some), -1)).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"{where} must have finite float32 values; example {start + finite.argmin()} has "
                "NaN, an infinity or a value too large. Repair or drop such examples."
            )
    return kept


def _arrays(
    path: Path,
    data_of_parts: dict[str, str],
    names: Sequence[str],
    get: Callable[[str], np.ndarray],
) -> Arrays:
    """Load the parts, and list the named arrays that belong to none of them."""
    parts, used = {}, set()
    for split, data in data_of_parts.items():
        labels = next((name for name in _names_of_labels(data) if name in names), None)
        parts[split] = _examples(path, data, get(data), None if labels is None else get(labels))
        used |= {data, labels}
    return Arrays(parts, [name for name in names if name not in used])


def _member(path: Path, archive: NpzFile, name: str) -> np.ndarray:
    with _reading(path, "npz"):
        return archive[name]


def _mapped(path: Path) -> np.ndarray:
    """Memory-map the array of an .npy file: it is read from disk as it is used."""
    with _reading(path, "npy"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError(f"npy:PATH must name an .npy file; {path} is an .npz. Use npz:{path}.")
    return array


def _examples(path: Path, data: str, values: np.ndarray, labels: np.ndarray | None) -> Examples:
    values = stored(values, f"{data} in {path}")
    if labels is None:
        return Examples(values, None)
    what = f"The labels of {data} in {path}"
    if labels.dtype.kind not in "iu" or labels.shape != values.shape[:1]:
        raise ValueError(
            f"{what} must be integers [{len(values)}]; they are {labels.dtype} "
            f"{list(labels.shape)}. Convert them, or leave them out."
        )
    return Examples(values, _int32(labels, what))


def _data_of_parts(where: str, names: Sequence[str], suffix: str = "") -> dict[str, str]:
    by_split = {
        split: name
        for split, aliases in NAMES_OF_SPLIT.items()
        for name in aliases
        if name in names
    }
    if by_split:
        return by_split
    data = [name for name in names if name in NAMES_OF_DATA]
    data = data or [name for name in names if name not in NAMES_OF_LABELS]
    if len(data) != 1:
        found = ", ".join(f"{name}{suffix}" for name in names) or "none"
        raise ValueError(
            f"{where} must have arrays named train{suffix} and test{suffix}, or one named "
            f"images{suffix}, x{suffix} or data{suffix}; it has {found}. Rename them."
        )
    return {"all": data[0]}


def _names_of_labels(data: str) -> tuple[str, ...]:
    if data.startswith("x_"):
        return (f"y_{data.removeprefix('x_')}",)
    return (f"{data}_labels", f"y_{data}", *NAMES_OF_LABELS)


@contextlib.contextmanager
def _reading(path: Path, form: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # numpy and zipfile raise many types for damaged files
        reason = " ".join(str(error).split()).rstrip(".") or "the file ends too early"
        raise ValueError(
            f"{path} must be a whole .{form} file of plain arrays, without Python objects; "
            f"reading it gave: {reason}. Save it again with numpy."
        ) from error
