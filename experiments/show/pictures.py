"""Pictures of data, samples, reconstructions and latents, and training curves.

An example of shape [H, W, 1] or [H, W, 3] is drawn as an image, one of any other shape as a line
through its values, flattened. Pictures are arrays uint8 [height, width, 4], transparent around the
examples, so that they fit bright pages and dark ones. `limits` (lo, hi) are the values drawn black
and white, or at the bottom and the top of a line plot, numbers or arrays of an example's shape;
without them an image lies in (0, 1), and line plots span what all of them hold.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from experiments.flags.terminal import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Limits = tuple[ArrayLike, ArrayLike]

# Blue and vermilion of Okabe and Ito: distinct for colour-blind readers too, on white and black.
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#5F6670"
_LABEL, _LINE_BACKGROUND = "#7B838E", (0.5, 0.5, 0.5, 0.12)  # on bright pages and dark ones
_OTHERS = "#B8BDC4"
_NOT_FINITE = (213, 94, 0)
_LEAST_SIDE, _GAP = 64, 2
_FONT_SIZE, _CAPTION_SIZE = 18, 14  # wide pictures shrink most on a phone
_LINE_TILE = (66, 84)
_MANY = 40  # curves with more points are drawn without dots, smoothed, and without their start

_PANELS = {
    "elbo": ("elbo", "nats"),
    "reconstruction": ("E log p(x|z)", "nats"),
    "kl": ("KL( q(z|x) || p(z) )", "nats"),
    "gradient_norm": ("gradient norm", "norm, log axis"),
    "active_units": ("active units", "latents"),
}


def grid(examples: ArrayLike, columns: int = 10, limits: Limits | None = None) -> np.ndarray:
    """Draw a grid of examples [N, *data_shape], row by row."""
    array = _examples("grid", examples)
    return _joined(_folded(_tiles([array], limits), columns))


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
    labels, colours = ("original", "reconstruction"), (_BLUE, _ORANGE)
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


def quantities(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of `curves` that rows of metrics hold, the elbo first, whether they hold it or not.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError(
            "curves: there must be at least one row of metrics, got none. Train first."
        )
    return ["elbo", *(name for name in list(_PANELS)[1:] if any(name in row for row in rows))]


def curves(rows: Sequence[Mapping[str, Any]], name: str, path: Path | IO[bytes]) -> None:
    """Draw the training curve of one quantity as a PNG.

    Args:
        rows: rows of a metrics file, splits "train" and "validation"; NaN and None leave gaps.
        name: one of `quantities`.
        path: the file to write, or one open for bytes.
    """
    figure = _figure(*((6.5, 2.8) if name == "elbo" else (4.5, 2.4)))
    _draw_panel(figure.add_subplot(), name, rows)
    _save(figure, path)


def latent_kl_bars(kl_per_latent: ArrayLike, path: Path | IO[bytes]) -> None:
    """Draw the mean KL of each latent [Z] over a data set, in nats, largest first, as a PNG."""
    kl = np.asarray(kl_per_latent, dtype=np.float64)
    order = np.argsort(-np.nan_to_num(kl), kind="stable")
    figure = _figure(6.5, 2.6)
    axes = figure.add_subplot()
    axes.bar(np.arange(len(kl)), kl[order], color=_BLUE, width=0.8)
    every = math.ceil(len(kl) / 32)
    axes.set_xticks(np.arange(len(kl))[::every], [str(i) for i in order[::every]])
    axes.set_xlim(-0.6, len(kl) - 0.4)
    _style(axes, "KL of each latent", "latent, largest KL first", "nats")
    _save(figure, path)


def latent_plot(
    points: np.ndarray,
    names: Sequence[str],
    classes: Sequence[str] | None,
    path: Path | IO[bytes],
) -> None:
    """Draw posterior means as a scatter plot, or of one latent as a histogram, as a PNG.

    Args:
        points: [N, 2] or [N, 1]; rows that are not finite are left out.
        names: name of each axis [2] or [1].
        classes: class of each point, of at most 20, which gets a colour; None: no classes.
        path: the file to write, or one open for bytes.
    """
    from matplotlib import colormaps

    finite = np.isfinite(points).all(axis=1)
    points = points[finite]
    known = sorted(set(classes or [""]), key=_by_number)
    index = {name: i for i, name in enumerate(known)}
    of_points = np.array([index[name] for name in classes or [""] * len(finite)])[finite]
    palette = colormaps["tab10" if len(known) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    colours = [_BLUE] if classes is None else list(palette[: len(known)])
    colours = [_OTHERS if name == "others" else c for name, c in zip(known, colours, strict=True)]
    figure = _figure(6.5, 4.6 if len(names) == 2 else 2.8)
    axes = figure.add_subplot()
    if len(names) == 2:
        across, up = points.T
        shades = [colours[i] for i in of_points]
        axes.scatter(across, up, c=shades, s=7, linewidths=0, alpha=0.8)
    else:
        parts = [points[of_points == i, 0] for i in range(len(known))]
        axes.hist(parts, bins=50, stacked=True, color=colours)
    _style(axes, "Posterior means", names[0], names[1] if len(names) == 2 else "examples")
    if classes is not None:
        _legend(axes, known, colours)
    with warnings.catch_warnings():  # a class may have a name that the font has no letters for
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        _save(figure, path)


def _by_number(name: str) -> tuple[bool, float, str]:
    """Sort key of class names: numbers by value, then names, then the class of all others."""
    number = int(name) if name.lstrip("-").isdecimal() else math.inf
    return name == "others", number, name


def _legend(axes: Axes, names: Sequence[str], colours: Sequence[Any]) -> None:
    """Draw a legend right of the axes; names may hold anything, such as names of folders."""
    handles = [axes.plot([], [], "o", color=colour)[0] for colour in colours]
    shown = [one_line(name) for name in names]
    # The space keeps matplotlib from leaving out names that begin with "_".
    cut = [f" {name[:19]}…" if len(name) > 20 else f" {name}" for name in shown]
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    for text in axes.legend(handles, cut, frameon=False, fontsize=9, **place).get_texts():
        text.set_parse_math(False)


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
    styles = ((_BLUE, 1.8 if len(lines) == 1 else 4), (_ORANGE, 1.5))
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


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=200, layout="constrained", facecolor="white")


def _save(figure: Figure, path: Path | IO[bytes]) -> None:
    figure.savefig(path, format="png", metadata={"Software": None})


def _style(axes: Axes, title: str, across: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(across, color=_GREY)
    axes.set_ylabel(unit, color=_GREY)
    axes.tick_params(which="both", colors=_GREY, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#C9CDD3")
    axes.grid(axis="y", color="#E6E8EB", linewidth=0.8)
    axes.set_axisbelow(True)


def _draw_panel(axes: Axes, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw one quantity of a run in its axes: train in blue, validation in orange."""
    title, unit = _PANELS[name]
    _style(axes, title, "steps", unit)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    for split, colour in (("train", _BLUE), ("validation", _ORANGE)):
        drawn = [row for row in rows if row.get("split") == split and name in row]
        if drawn:
            _draw_split(axes, name, drawn, split, colour)
    heights = np.concatenate([[np.nan], *(line.get_ydata() for line in axes.lines)])
    if not np.isfinite(heights).any():
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", color=_GREY)
    elif name == "gradient_norm" and (heights > 0).any():
        axes.set_yscale("log", nonpositive="mask")
    elif unit == "nats" and len(heights) > _MANY:
        _leave_out_the_start(axes)
    if name == "elbo" and axes.lines:
        axes.legend(loc="lower right", frameon=False, fontsize=9)


def _draw_split(
    axes: Axes, name: str, rows: Sequence[Mapping[str, Any]], split: str, colour: str
) -> None:
    steps, values = _series(rows, "step"), _series(rows, name)
    marker = "o" if len(values) <= _MANY else ""
    if split == "train" and not marker:
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        values = _smoothed(values)
    axes.plot(steps, values, color=colour, marker=marker, markersize=3.5, label=split)
    errors = _series(rows, "standard_error")
    if name == "elbo" and np.isfinite(errors).any():
        band = (values - 2 * errors, values + 2 * errors)
        label = f"{split} ± 2 standard errors"
        axes.fill_between(steps, *band, color=colour, alpha=0.2, linewidth=0, label=label)


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Values of one name as floats; NaN if missing or not finite."""
    values = np.array([row.get(name) for row in rows], dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Centred running mean over about a twentieth of the run; NaN values have no weight."""
    kernel = np.hanning(2 * (len(values) // 40) + 3)
    there = np.isfinite(values).astype(np.float64)
    weight = np.convolve(there, kernel, mode="same")
    total = np.convolve(np.nan_to_num(values), kernel, mode="same")
    return np.where(there > 0, total / np.maximum(weight, 1e-12), np.nan)


def _leave_out_the_start(axes: Axes) -> None:
    """Fit the vertical range to all but the first steps, which would flatten the rest."""
    points = np.concatenate([line.get_xydata() for line in axes.lines])
    start, end = points[:, 0].min(), points[:, 0].max()
    later = points[points[:, 0] >= start + 0.05 * (end - start), 1]
    lo, hi = np.nanquantile(later, (0, 1)) if np.isfinite(later).any() else (0, 0)
    if lo < hi:
        axes.set_ylim(lo - 0.06 * (hi - lo), hi + 0.06 * (hi - lo))
