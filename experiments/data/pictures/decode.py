"""Decode one picture as a viewer shows it, in the size and number of channels of a data set."""

import functools
import math
import warnings
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from jaxvae.preprocessing import cover

NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow recognises but does not decode by itself; for EPS it starts Ghostscript."""
USUAL = frozenset({"BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"})
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
MODE_OF_CHANNELS = {1: "L", 3: "RGB"}
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what shows the picture upright (Exif 2.3, tag 274)."""
ON_ITS_SIDE = 5
"""EXIF orientations from this one on swap width and height."""
REDUCING_GAP = 3.0
"""JPEG decoding and reducing by whole factors stop at this multiple of the wanted size; one bicubic
resampling does the rest. From 3 on no pixel differs by more than 1 of 255 from a full decoding, and
a picture of 12 megapixels takes 9 ms instead of 110."""

TURNED = "turned as their EXIF orientation says"
TRANSPARENT = "with transparency, on white"
SEVERAL_FRAMES = "with several frames, of which the first is taken"
DEEP = "of 16 bits a channel, cut to 8"
MADE_GREY = "in colour, converted to grey"


class Picture(NamedTuple):
    """A decoded picture [H, W, C] uint8, and notes on the conversions that were applied."""

    pixels: np.ndarray
    notes: list[str]


def decode(file: IO[bytes], mode: str) -> np.ndarray:
    """Decode the pixels of an image file as they are stored, converted to a mode of Pillow.

    Returns:
        [H, W, C] uint8.
    """
    with warnings.catch_warnings():
        accept_large()
        with _open(file) as image:
            return _array(image.convert(mode))


def decode_as_shown(
    file: Path, channels: int | None = None, size: tuple[int, int] | None = None
) -> Picture:
    """Decode a picture as a viewer shows it.

    Args:
        file: The picture's file.
        channels: 1 for grey, 3 for colour; None: one channel if the picture is grey, else three.
        size: (H, W) to scale the picture to cover and to crop the centre of; None: as it is.
    """
    with _open(file) as image:
        own = 1 if _is_grey(image) else 3
        notes = [DEEP] if ";16" in f"{image.mode} {getattr(image, 'tile', '')}" else []
        orientation = _orientation(image)  # loads a PNG, and so empties `tile`
        notes += [SEVERAL_FRAMES] if getattr(image, "is_animated", False) else []
        notes += [TURNED] if orientation in TRANSPOSE else []
        wanted = None
        if size is not None:  # (W, H) before turning: turning a small picture is quicker
            wanted = size if orientation >= ON_ITS_SIDE else size[::-1]
        extent = _draft(image, wanted)
        image.load()
        # Pillow turns TIFF files as it loads them.
        if orientation in TRANSPOSE and _orientation(image) != orientation:
            orientation, extent = 1, image.size
            wanted = None if size is None else size[::-1]
        shown = _on_white(image, notes)
    if own == 3 and channels == 1:
        notes.append(MADE_GREY)
    shown = shown.convert(MODE_OF_CHANNELS[channels or own])
    if wanted is not None:
        shown = _cover(shown, extent, wanted)
    if orientation in TRANSPOSE:
        shown = shown.transpose(TRANSPOSE[orientation])
    return Picture(_array(shown), notes)


def accept_large() -> None:
    """Accept pictures that are large enough for Pillow's warning, but not for its error.

    It changes the filters of the whole process, so call it inside `warnings.catch_warnings` and
    outside of threads.
    """
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


@functools.cache
def formats() -> list[str]:
    """Names of the formats that Pillow decodes by itself, the usual ones first."""
    Image.init()
    known = [name for name in Image.OPEN if name not in NOT_DECODED]
    # Pillow tries formats in this order, and opens a file for each that has no quick check.
    return sorted(known, key=lambda name: name not in USUAL)


def _open(file: Path | IO[bytes]) -> Image.Image:
    image = Image.open(file, formats=formats())
    if image.mode not in GREY_MODES + COLOUR_MODES and not _is_deep(image):
        image.close()
        raise ValueError(f"pixels are not 8-bit or 16-bit, but of mode {image.mode}")
    return image


def _is_deep(image: Image.Image) -> bool:
    """Return True for grey levels of 16 bits; older releases of Pillow open them with mode I."""
    return image.mode.startswith("I;16") or (
        image.mode == "I" and ";16" in str(getattr(image, "tile", ""))
    )


def _is_grey(image: Image.Image) -> bool:
    return image.mode in GREY_MODES or _is_deep(image)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 (upright) if the picture does not give one."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # viewers, too, ignore EXIF data that they cannot read
        return 1
    return found if found in TRANSPOSE else 1


def _draft(image: Image.Image, wanted: tuple[int, int] | None) -> tuple[float, float]:
    """Let a JPEG decode at 1/2, 1/4 or 1/8 of its size if that is enough; return its extent.

    The extent may be fractional: the last column and row then hold less than a whole pixel.
    """
    width, height = image.size
    if wanted is None:
        return width, height
    factor = REDUCING_GAP * max(wanted[0] / width, wanted[1] / height)
    drafted = image.draft(None, (math.ceil(width * factor), math.ceil(height * factor)))
    return image.size if drafted is None else drafted[1][2:]


def _on_white(image: Image.Image, notes: list[str]) -> Image.Image:
    """Return 8-bit pixels on white; note if some were transparent."""
    if image.mode.startswith("I"):
        deep = np.asarray(image)
        transparent = deep == image.info.get("transparency", -1)
        if transparent.any():
            notes.append(TRANSPARENT)
        return Image.fromarray(np.where(transparent, 255, deep >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image
    shown = image.convert("RGBA")
    if shown.getchannel("A").getextrema() != (255, 255):
        notes.append(TRANSPARENT)
    return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)


def _cover(image: Image.Image, extent: tuple[float, float], wanted: tuple[int, int]) -> Image.Image:
    """Resample the largest centred box of the wanted proportions, in one step."""
    top, left, height, width = cover(extent[::-1], wanted[::-1])
    box = (
        max(left, 0.0),
        max(top, 0.0),
        min(left + width, extent[0]),
        min(top + height, extent[1]),
    )
    return image.resize(wanted, Image.Resampling.BICUBIC, box=box, reducing_gap=REDUCING_GAP)


def _array(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]
