"""Pictures of data, samples, reconstructions and traversals, as arrays of pixels.

An example of shape [H, W, 1] or [H, W, 3] is drawn as an image, one of any other shape as a line
through its values, flattened. Pictures are arrays uint8 [height, width, 4], transparent around the
examples, so that they fit bright pages and dark ones. `limits` (lo, hi) are the values drawn black
and white, or at the bottom and the top of a line plot, numbers or arrays of an example's shape;
without them an image lies in (0, 1), and line plots span what all of them hold.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from experiments.show.plots import BLUE, ORANGE

if TYPE_CHECKING:
    pass

Limits = tuple[ArrayLike, ArrayLike]

LONGEST_NAME = 30
"""Most characters of a class's name in a picture."""

_LABEL, _LINE_BACKGROUND = "#7B838E", (0.5, 0.5, 0.5, 0.12)  # on bright pages and dark ones
_NOT_FINITE = (213, 94, 0)
_LEAST_SIDE, _GAP = 64, 2
_FONT_SIZE, _CAPTION_SIZE = 18, 14  # wide pictures shrink most on a phone
_LINE_TILE = (66, 84)


def grid(examples: ArrayLike, columns: int = 10, limits: Limits | None = None) -> np.ndarray:
    """Draw a grid of examples [N, *data_shape], row by row."""
    array = _examples("grid", examples)
    return _joined(_folded(_tiles([array], limits), columns))


def by_class(examples: ArrayLike, names: Sequence[str], limits: Limits | None = None) -> np.ndarray:
    """Draw rows [R, S, *data_shape], each with the name of its class."""
    short = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..." for name in names]
    return _labelled(_rows_of_tiles("by_class", examples, limits), short)


def reconstructions(
    originals: ArrayLike, means: ArrayLike, columns: int = 10, limits: Limits | None = None
) -> np.ndarray:
    """Draw rows of originals [N, *data_shape], each above the row of the means of p(x|z)."""
    above, below = _examples("reconstructions", originals), _examples("reconstructions", means)
    if above.shape != below.shape:
        raise ValueError(
            "reconstructions: originals and means must have the same shape, got "
            f"{above.shape} and {below.shape}. Decode every original once."
        )
    limits = limits or _span([above, below])
    tiles = (
        _folded(_tiles([above], limits), columns),
        _folded(_tiles([above, below], limits), columns),
    )
    bands = [np.stack(rows) for rows in zip(*tiles, strict=True)]
    labels, colours = ("original", "reconstruction"), (BLUE, ORANGE)
    return np.concatenate([_labelled(band, labels, colours=colours) for band in bands])


def captioned(
    rows: Sequence[ArrayLike],
    captions: Sequence[str],
    columns: int = 5,
    limits: Limits | None = None,
) -> np.ndarray:
    """Draw examples in rows of `columns`, each with a text below it.

    Args:
        rows: arrays [N, *data_shape] that are drawn below each other: examples, or examples and
            their reconstructions.
        captions: text of each example [N], in one or more lines.
        columns: examples side by side. With few, the texts stay legible on a phone.
        limits: as in the docstring of this module.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_CAPTION_SIZE)
    arrays = [_examples("captioned", examples) for examples in rows]
    lines = [line for caption in captions for line in caption.split("\n")]
    widest = math.ceil(max(map(font.getlength, lines))) + 6
    tiles = [_tiles([array], limits or _span(arrays)) for array in arrays]
    room = max(0, widest - tiles[0].shape[2])
    sides = ((0, 0), (0, 0), (room // 2, room - room // 2), (0, 0))
    bands = zip(*(_folded(np.pad(tile, sides), columns) for tile in tiles), strict=True)
    below = (_CAPTION_SIZE + 4) * max(caption.count("\n") + 1 for caption in captions) + 8
    drawn = []
    for first, band in enumerate(bands):
        picture = np.pad(_joined(np.stack(band)), ((0, below), (0, 0), (0, 0)))
        image = Image.fromarray(picture)
        draw, width = ImageDraw.Draw(image), band[0].shape[2] + _GAP
        for i, caption in enumerate(captions[first * columns : (first + 1) * columns]):
            place = (_GAP + (i + 0.5) * width - _GAP / 2, picture.shape[0] - below + 3)
            draw.multiline_text(place, caption, _LABEL, font, anchor="ma", align="center")
        drawn.append(np.asarray(image))
    return np.concatenate(drawn)


def interpolations(examples: ArrayLike, limits: Limits | None = None) -> np.ndarray:
    """Draw rows [R, S, *data_shape], each decoded along S points from one latent to another."""
    tiles = _rows_of_tiles("interpolations", examples, limits)
    steps = tiles.shape[1]
    return _labelled(tiles, column_labels=["start", *[""] * (steps - 2), "end"])


def traversals(
    examples: ArrayLike,
    latents: Sequence[int],
    values: Sequence[float],
    limits: Limits | None = None,
) -> np.ndarray:
    """Draw rows [L, S, *data_shape], each decoded while one latent changes and the others do not.

    Args:
        examples: decoded examples [L, S, *data_shape].
        latents: index of the latent that changes, for each row [L].
        values: value that it is set to, for each column [S].
        limits: as in the docstring of this module.
    """
    tiles = _rows_of_tiles("traversals", examples, limits)
    if tiles.shape[:2] != (len(latents), len(values)):
        raise ValueError(
            "traversals: examples must have a row for each latent and a column for each value, got "
            f"{tiles.shape[:2]} with {len(latents)} latents and {len(values)} values. "
            "Decode [L, S, Z] latents."
        )
    return _labelled(tiles, [f"z[{i}]" for i in latents], [f"{value:+.2g}" for value in values])


def noted(picture: np.ndarray, note: str) -> np.ndarray:
    """A picture with a line of text below it, wrapped to its width."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_FONT_SIZE)
    characters = max(12, int(picture.shape[1] / (font.getlength(note) / len(note))) - 1)
    lines = textwrap.wrap(note, characters)
    height, width = len(lines) * (_FONT_SIZE + 5) + 8, max(map(font.getlength, lines)) + 8
    wider = max(0, math.ceil(width) - picture.shape[1])
    image = Image.fromarray(np.pad(picture, ((0, height), (0, wider), (0, 0))))
    text = "\n".join(lines)
    ImageDraw.Draw(image).multiline_text((4, picture.shape[0] + 4), text, _LABEL, font, spacing=5)
    return np.asarray(image)


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture uint8 [height, width, 4] as a PNG file."""
    from PIL import Image

    Image.fromarray(picture).save(path, format="PNG", optimize=True)


def _examples(name: str, values: ArrayLike, leading: int = 1) -> np.ndarray:
    """Convert to floats [..., *data_shape] with `leading` axes before the data's, none empty."""
    array = np.asarray(values, dtype=np.float32)
    if array.ndim <= leading or array.size == 0:
        raise ValueError(
            f"{name}: there must be at least one example, of at least one axis, after "
            f"{leading} leading axes, got shape {array.shape}. Stack the examples."
        )
    return array


def is_image(examples: np.ndarray) -> bool:
    """Return True if examples [N, *data_shape] are drawn as images."""
    return examples.ndim == 4 and examples.shape[-1] in (1, 3)


def _rows_of_tiles(name: str, values: ArrayLike, limits: Limits | None) -> np.ndarray:
    examples = _examples(name, values, leading=2)
    tiles = _tiles([examples.reshape(-1, *examples.shape[2:])], limits)
    return tiles.reshape(*examples.shape[:2], *tiles.shape[1:])


def _span(arrays: Sequence[np.ndarray]) -> Limits:
    if is_image(arrays[0]):
        return 0.0, 1.0
    finite = np.concatenate([array[np.isfinite(array)] for array in arrays])
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def _tiles(overlaid: Sequence[np.ndarray], limits: Limits | None) -> np.ndarray:
    """Draw examples [N, *data_shape] as tiles uint8 [N, h, w, 4], later arrays on top."""
    limits = limits or _span(overlaid)
    if is_image(overlaid[0]):
        return _image_tiles(overlaid[-1], limits)
    return _line_tiles([examples.reshape(len(examples), -1) for examples in overlaid], limits)


def _image_tiles(images: np.ndarray, limits: Limits) -> np.ndarray:
    lo, hi = map(np.asarray, limits)
    finite = np.isfinite(images).all(axis=-1)
    levels = np.clip((np.nan_to_num(images) - lo) / np.where(hi > lo, hi - lo, 1), 0, 1)
    pixels = np.full((*images.shape[:-1], 4), 255, np.uint8)
    pixels[..., :3] = (levels * 255).round()
    pixels[~finite, :3] = _NOT_FINITE
    factor = math.ceil(_LEAST_SIDE / max(images.shape[1:3]))
    return pixels.repeat(factor, axis=1).repeat(factor, axis=2)


def _line_tiles(lines: Sequence[np.ndarray], limits: Limits) -> np.ndarray:
    """Draw N line plots below each other in one tall figure, and cut it into tiles."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    (lo, hi), (height, width) = map(np.ravel, limits), _LINE_TILE
    count, size = lines[0].shape
    figure = Figure((width / 64, count * height / 64), dpi=64, facecolor=_LINE_BACKGROUND)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(count * height, 0))
    axes.set_axis_off()
    across = np.linspace(8, width - 8, size) if size > 1 else np.array([width / 2])
    tops = height * np.arange(count)[:, None]
    styles = ((BLUE, 1.8 if len(lines) == 1 else 4), (ORANGE, 1.5))
    for values, (colour, linewidth) in zip(lines, styles, strict=False):
        level = np.clip((values - lo) / np.where(hi > lo, hi - lo, 1), -0.05, 1.05)
        down = (tops + 8 + (1 - level) * (height - 16)).T
        marker = "." if size <= 16 else ""
        alpha = 0.4 if linewidth == 4 else 1
        axes.plot(across, down, color=colour, alpha=alpha, linewidth=linewidth, marker=marker)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).reshape(count, height, width, 4)


def _folded(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Arrange tiles [N, h, w, 4] in rows [R, C, h, w, 4]; fill the last row with background."""
    columns = min(columns, len(tiles))
    missing = -len(tiles) % columns
    filled = np.pad(tiles, ((0, missing), *[(0, 0)] * 3))
    return filled.reshape(-1, columns, *tiles.shape[1:])


def _joined(tiles: np.ndarray) -> np.ndarray:
    """Join rows of tiles [R, C, h, w, 4] into one picture, with gaps between and around them."""
    gaps = ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0))
    padded = np.pad(tiles, gaps)
    rows, columns, height, width, _ = padded.shape
    picture = padded.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 4)
    return np.pad(picture, ((_GAP, 0), (_GAP, 0), (0, 0)))


def _labelled(
    tiles: np.ndarray,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    colours: Sequence[str] = (),
) -> np.ndarray:
    """Join rows of tiles [R, C, h, w, 4], with labels left of the rows and above the columns."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_FONT_SIZE)
    left = math.ceil(max(map(font.getlength, row_labels))) + 10 if row_labels else 0
    top = _FONT_SIZE + 8 if column_labels else 0
    margins = ((top, 0), (left, 0), (0, 0))
    image = Image.fromarray(np.pad(_joined(tiles), margins))
    draw = ImageDraw.Draw(image)
    height, width = tiles.shape[2] + _GAP, tiles.shape[3] + _GAP
    for i, (label, colour) in enumerate(zip(row_labels, colours or repeat(_LABEL), strict=False)):
        draw.text((left - 6, top + (i + 0.5) * height), label, colour, font, anchor="rm")
    for i, label in enumerate(column_labels):
        draw.text((left + (i + 0.5) * width, top / 2), label, _LABEL, font, anchor="mm")
    return np.asarray(image)
