"""folder:PATH: the user's own pictures, in every format that Pillow decodes, all of one size.

Pictures are found in all folders below PATH and sorted by path. If PATH has folders named train and
test, and perhaps validation, these are the splits; otherwise the pictures are split 80/10/10 by a
fixed permutation. Grey pictures have one channel; if any picture is in colour, all have three.

Pixels are as a viewer shows them: EXIF orientation applied, transparency on white, the first frame
of several. `about` counts such pictures, and the files that were left out.
"""

import functools
import os
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

import numpy as np
from PIL import ExifTags, Image, ImageOps

from experiments.data.splits import SPLITS, Examples, Source
from experiments.flags.path_checks import path_of, require_file

NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow recognises but does not decode by itself; for EPS it starts Ghostscript."""
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


TURNED = "turned as their EXIF orientation says"
TRANSPARENT = "with transparency, on white"
SEVERAL_FRAMES = "with several frames, of which the first is taken"
DEEP = "of 16 bits a channel, cut to 8"
NAMES_SHOWN = 5


class Picture(NamedTuple):
    """A decoded picture [H, W, C] uint8, and notes on the conversions that were applied."""

    pixels: np.ndarray
    notes: list[str]


class Found(NamedTuple):
    """Pictures below a folder, and the number of other files by kind."""

    paths: list[Path]
    others: Counter[str]


def read_source(where: str) -> Source:
    """Read the pictures below a folder, uint8 [H, W, 1] or [H, W, 3]."""
    folder = path_of(where)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"folder:PATH must name a folder of images; {folder} is not a folder. Correct the path."
        )
    parts = _find_parts(folder)
    pixels, notes = _pixels([path for found in parts.values() for path in found.paths])
    stops = np.cumsum([len(found.paths) for found in parts.values()])
    left_out = _left_out(folder, parts)
    return Source(
        f"folder:{where}",
        {
            part: Examples(values, None, _names(folder, found.paths))
            for (part, found), values in zip(
                parts.items(), np.split(pixels, stops[:-1]), strict=True
            )
        },
        what="own images",
        origin="; ".join([f"from {folder}", *notes, *left_out]),
    )


def decode(file: IO[bytes], mode: str) -> np.ndarray:
    """Decode the pixels of an image file as they are stored, converted to a mode of Pillow.

    Returns:
        [H, W, C] uint8.
    """
    with _open(file) as image:
        return _array(image, mode)


def decode_as_shown(file: Path) -> Picture:
    """Decode a picture as a viewer shows it: one channel if it is grey, else three."""
    with _open(file) as image:
        mode = "L" if image.mode in GREY_MODES else "RGB"
        notes = [DEEP] if ";16" in str(getattr(image, "tile", "")) else []
        notes += [SEVERAL_FRAMES] if getattr(image, "is_animated", False) else []
        shown: Image.Image = image
        if _has_orientation(image):
            shown = ImageOps.exif_transpose(image)
            notes.append(TURNED)
        if shown.has_transparency_data:
            shown = shown.convert("RGBA")
            if shown.getchannel("A").getextrema() != (255, 255):
                notes.append(TRANSPARENT)
            shown = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
        return Picture(_array(shown, mode), notes)


def _open(file: Path | IO[bytes]) -> Image.Image:
    with warnings.catch_warnings():
        # Accept pictures that are large enough for Pillow's warning, but not for its error.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(file, formats=_formats())
    if image.mode not in GREY_MODES + COLOUR_MODES:
        image.close()
        raise ValueError(f"pixels are not 8-bit, but of mode {image.mode}")
    return image


def _array(image: Image.Image, mode: str) -> np.ndarray:
    pixels = np.asarray(image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _has_orientation(image: Image.Image) -> bool:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # viewers, too, ignore EXIF data that they cannot read
        return False
    return orientation in range(2, 9)


@functools.cache
def _formats() -> list[str]:
    """Names of the formats that Pillow decodes by itself."""
    Image.init()
    return [name for name in Image.OPEN if name not in NOT_DECODED]


@functools.cache
def _suffixes() -> frozenset[str]:
    """Suffixes of these formats; Pillow opens MPO files as JPEG."""
    formats = {*_formats(), "MPO"}
    return frozenset(
        suffix for suffix, name in Image.registered_extensions().items() if name in formats
    )


def _names(folder: Path, paths: list[Path]) -> np.ndarray:
    return np.array([path.relative_to(folder).as_posix() for path in paths])


def _left_out(folder: Path, parts: dict[str, Found]) -> list[str]:
    """Describe files that are not pictures, and entries beside the folders of the splits."""
    others = sum((found.others for found in parts.values()), Counter[str]())
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common())
    plural = "s" * (others.total() != 1)
    lines = [f"{others.total():,} file{plural} left out: {kinds}"] if others else []
    if "all" in parts:
        return lines
    beside = sorted(
        repr(path.name)
        for path in folder.iterdir()
        if path.name not in parts and not path.name.startswith(".")
    )
    more = f" and {len(beside) - NAMES_SHOWN:,} more" if len(beside) > NAMES_SHOWN else ""
    if beside:
        shown = ", ".join(beside[:NAMES_SHOWN])
        lines.append(f"left out, as beside {', '.join(parts)}: {shown}{more}")
    return lines


def _find_parts(folder: Path) -> dict[str, Found]:
    named = [split for split in SPLITS if (folder / split).is_dir()]
    seen: set[str] = set()
    if len(named) < 2:
        parts = {"all": _find(folder, seen)}
    else:
        parts = {split: _find(folder / split, seen) for split in named}
    for part, found in parts.items():
        if not found.paths:
            place = folder if part == "all" else folder / part
            raise ValueError(
                f"{place} must have images (.png, .jpg or another suffix that Pillow decodes) that "
                "no other split has; it has no such image. Add some, or correct the path."
            )
    return parts


def _find(folder: Path, seen: set[str]) -> Found:
    """Find images below a folder, sorted; skip folders in `seen`, links to them included."""
    found = []
    others: Counter[str] = Counter()
    for here, folders, files in os.walk(folder, onerror=_unreadable_folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(here, name) for name in files):
            kind = _kind(path)
            if kind is None:
                found.append(path)
            else:
                others[kind] += 1
    return Found(sorted(found), others)


def _kind(path: Path) -> str | None:
    """Kind of a file that is not a picture, for counting; None for a picture."""
    suffix = path.suffix.lower()
    if path.name.startswith("."):
        return "hidden"
    if suffix in _suffixes():
        return None
    if not suffix:
        return "without a suffix"
    return suffix if re.fullmatch(r"\.\w{1,10}", suffix) else "others"


def _pixels(paths: list[Path]) -> tuple[np.ndarray, list[str]]:
    """Decode the images [N, H, W, C], with three channels if any has them, and describe changes."""
    images: dict[Path, np.ndarray] = {}
    notes: Counter[str] = Counter()
    unreadable = []
    for path in paths:
        try:
            require_file(path)
            images[path], done = decode_as_shown(path)
            notes.update(done)
        except Exception as error:  # Pillow raises many types for damaged files
            unreadable.append(f"{path} ({error})")
            continue
        _require_one_size(images, next(iter(images)), path)
    if unreadable:
        raise ValueError(
            f"All images must be readable; {len(unreadable)} of {len(paths)} are not: "
            f"{', '.join(unreadable[:3])}. Repair them or move them away."
        )
    channels = max(image.shape[2] for image in images.values())
    pixels = np.stack(
        [np.broadcast_to(image, (*image.shape[:2], channels)) for image in images.values()]
    )
    return pixels, [f"{count:,} {note}" for note, count in notes.items()]


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
