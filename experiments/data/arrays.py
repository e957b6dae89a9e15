"""npz:PATH and npy:PATH: the user's own arrays, in memory or on disk.

Images [N, H, W] or [N, H, W, C], or vectors [N, D]; uint8, bool (stored as uint8), integer counts
(stored as int32) or floats (stored as float32). `array_names` lists the names of data, splits and
labels that are recognised; an array of any name is the data if there is no other. Data without
splits, as in an .npy, are split 80/10/10 by a fixed permutation. Labels [N] or [N, 1] are whole
numbers, booleans or text.

npy:FOLDER reads the same names from files (train.npy, test.npy, ...) and memory-maps uint8, bool
and float32, for data that are larger than memory. Arrays of other types, and arrays that are split
or binarized once (--binarize=static), are copied into memory.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy_format
from numpy.lib.npyio import NpzFile

from experiments.data.array_names import Roles, find_roles
from experiments.data.integers import as_int32
from experiments.data.labels import GivenLabels, as_labels
from experiments.data.splits import Examples, Source
from experiments.flags.path_checks import path_of, require_file

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

    def describe(name: str) -> str:
        with contextlib.suppress(ValueError):
            array = _mapped(files[name])
            return f"{array.dtype} {list(array.shape)}"
        return "(not a plain array)"

    roles = find_roles(f"npy:{path}", list(files), describe, ".npy")
    return _arrays(path, roles, lambda name: _mapped(files[name]))


def read_npz(path: Path) -> Arrays:
    """Read the parts of an .npz file, each under the name of its split."""
    with contextlib.ExitStack() as stack:
        with _reading(path, "npz"):
            archive = np.load(stack.enter_context(path.open("rb")), allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError(f"npz:PATH must name an .npz file; {path} is an .npy. Use npy:{path}.")
        _require_plausible(path, archive)
        roles = find_roles(f"npz:{path}", archive.files, lambda name: _described(archive, name))
        return _arrays(path, roles, lambda name: _member(path, archive, name))


def _described(archive: NpzFile, name: str) -> str:
    """Return type and shape of an array of an .npz, from its header alone."""
    readers = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
    try:
        with archive.zip.open(f"{name}.npy") as file:  # type: ignore[union-attr]
            shape, _, dtype = readers[npy_format.read_magic(file)](file)
    except Exception:  # numpy and zipfile raise many types for damaged files
        return "(not a plain array)"
    return f"{dtype} {list(shape)}"


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
            kept = array if array.dtype == np.uint8 else as_int32(array, where)
        case "f":
            kept = _float32(array, where)
        case _:
            raise ValueError(
                f"{where} must be bool, integers or floats; it has type {array.dtype}. Convert it."
            )
    return kept[..., None] if kept.ndim == 3 else kept


def _float32(array: np.ndarray, where: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        kept = array if array.dtype == np.float32 else array.astype(np.float32, subok=False)
    for start in range(0, len(kept), EXAMPLES_AT_ONCE):
        some = kept[start : start + EXAMPLES_AT_ONCE]
        finite = np.isfinite(some.reshape(len(some), -1)).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"{where} must have finite float32 values; example {start + finite.argmin()} has "
                "NaN, an infinity or a value too large. Repair or drop such examples."
            )
    return kept


def _arrays(path: Path, roles: Roles, get: Callable[[str], np.ndarray]) -> Arrays:
    """Load the data and labels of every part."""
    values = {part: stored(get(name), f"{name} in {path}") for part, name in roles.data.items()}
    given = {
        part: GivenLabels(
            get(name), len(values[part]), f"The labels {name} of {roles.data[part]} in {path}"
        )
        for part, name in roles.labels.items()
    }
    codes, names = as_labels(given)
    parts = {
        part: Examples(array, codes.get(part), label_names=names if part in codes else None)
        for part, array in values.items()
    }
    return Arrays(parts, roles.left_out)


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


@contextlib.contextmanager
def _reading(path: Path, form: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # numpy and zipfile raise many types for damaged files
        reason = " ".join(str(error).split()).rstrip(".") or "the file ends too early"
        objects = "Convert text with array.astype(str), and save" if "Object" in reason else "Save"
        raise ValueError(
            f"{path} must be a whole .{form} file of plain arrays, without Python objects; "
            f"reading it gave: {reason}. {objects} it again with numpy."
        ) from error
