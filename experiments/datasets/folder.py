"""folder:PATH: one's own pictures, png, jpg or bmp, all of one size.

They are found in all folders below PATH and sorted by path. If PATH has folders named train and
test, and perhaps validation, these are the splits; otherwise the pictures are split 80/10/10 by a
fixed permutation. Grey pictures have one channel; with one in colour among them, all have three.
"""

import os
import warnings
from pathlib import Path
from typing import IO, NoReturn

import numpy as np
from PIL import Image

from experiments.datasets import Dataset
from experiments.datasets.splits import SPLITS, Examples, assemble
from experiments.places import path_of, require_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


def load(where: str, num_validation: int | None) -> Dataset:
    """The pictures below a folder, uint8 [H, W, 1] or [H, W, 3]."""
    folder = path_of(where)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"folder:PATH must name a folder of images; {folder} is none. Correct the path."
        )
    paths = _paths_of_parts(folder)
    pixels = _pixels([path for part in paths.values() for path in part])
    stops = np.cumsum([len(part) for part in paths.values()])
    return assemble(
        f"folder:{where}",
        {
            part: Examples(values, None)
            for part, values in zip(paths, np.split(pixels, stops[:-1]), strict=True)
        },
        what="own images",
        source=f"from {folder}",
        num_validation=num_validation,
    )


def decode(file: Path | IO[bytes], mode: str | None = None) -> np.ndarray:
    """The pixels of an image file.

    Args:
        file: Its path or contents.
        mode: Of pillow's, to convert to; None is grey for a grey image and RGB for others.

    Returns:
        [H, W, C] uint8.
    """
    with warnings.catch_warnings():
        # A picture large enough for pillow's warning, not for its error, is one all the same.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(file)
    with image:
        if image.mode not in GREY_MODES + COLOUR_MODES:
            raise ValueError(f"pixels are not 8-bit, but of mode {image.mode}")
        mode = mode or ("L" if image.mode in GREY_MODES else "RGB")
        pixels = np.asarray(image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _paths_of_parts(folder: Path) -> dict[str, list[Path]]:
    named = [split for split in SPLITS if (folder / split).is_dir()]
    seen: set[str] = set()
    if len(named) < 2:
        parts = {"all": _paths(folder, seen)}
    else:
        parts = {split: _paths(folder / split, seen) for split in named}
    for part, paths in parts.items():
        if not paths:
            place = folder if part == "all" else folder / part
            raise ValueError(
                f"{place} must have images ({', '.join(SUFFIXES)}) that no other split has; "
                "there are none. Add some, or correct the path."
            )
    return parts


def _paths(folder: Path, seen: set[str]) -> list[Path]:
    """The images below folder, sorted; folders in seen, by any link to them, are left out."""
    found = []
    for here, folders, files in os.walk(folder, onerror=_unreadable_folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = (Path(here, name) for name in files if not name.startswith("."))
        found += [path for path in visible if path.suffix.lower() in SUFFIXES]
    return sorted(found)


def _pixels(paths: list[Path]) -> np.ndarray:
    """The images [N, H, W, C], with three channels if any has them."""
    images: dict[Path, np.ndarray] = {}
    unreadable = []
    for path in paths:
        try:
            require_file(path)
            images[path] = decode(path)
        except Exception as error:  # pillow has one for each way in which bytes are wrong
            unreadable.append(f"{path} ({error})")
            continue
        _require_one_size(images, next(iter(images)), path)
    if unreadable:
        raise ValueError(
            f"All images must be readable; {len(unreadable)} of {len(paths)} are not: "
            f"{', '.join(unreadable[:3])}. Repair them or move them away."
        )
    channels = max(image.shape[2] for image in images.values())
    return np.stack(
        [np.broadcast_to(image, (*image.shape[:2], channels)) for image in images.values()]
    )


def _require_one_size(images: dict[Path, np.ndarray], first: Path, path: Path) -> None:
    (height, width), (other_height, other_width) = (
        images[which].shape[:2] for which in (first, path)
    )
    if (height, width) != (other_height, other_width):
        raise ValueError(
            f"All images must have one size; {first} is {width} x {height} and {path} is "
            f"{other_width} x {other_height}. Resize or crop them."
        )


def _unreadable_folder(error: OSError) -> NoReturn:
    raise ValueError(
        f"All folders below folder:PATH must be readable; {error.filename} gave: {error.strerror}."
        " Change its permissions or move it away."
    )
