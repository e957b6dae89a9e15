"""Plots of training curves and latents, as PNG files that are readable on bright and dark pages."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from experiments.flags.terminal import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue and vermilion of Okabe and Ito: distinct for colour-blind readers too, on white and black.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#5F6670"
_OTHERS = "#B8BDC4"
_MANY = 40  # curves with more points are drawn without dots, smoothed, and without their start

_PANELS = {
    "elbo": ("elbo", "nats"),
    "reconstruction": ("E log p(x|z)", "nats"),
    "kl": ("KL( q(z|x) || p(z) )", "nats"),
    "gradient_norm": ("gradient norm", "norm, log axis"),
    "active_units": ("active units", "latents"),
}


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


def latent_kl_bars(
    kl_per_latent: ArrayLike, path: Path | IO[bytes], of_each: str = "latent"
) -> None:
    """Draw the mean KL of each latent [Z] over a data set, in nats, largest first, as a PNG."""
    kl = np.asarray(kl_per_latent, dtype=np.float64)
    order = np.argsort(-np.nan_to_num(kl), kind="stable")
    figure = _figure(6.5, 2.6)
    axes = figure.add_subplot()
    axes.bar(np.arange(len(kl)), kl[order], color=BLUE, width=0.8)
    every = math.ceil(len(kl) / 32)
    axes.set_xticks(np.arange(len(kl))[::every], [str(i) for i in order[::every]])
    axes.set_xlim(-0.6, len(kl) - 0.4)
    _style(axes, f"KL of each {of_each}", f"{of_each}, largest KL first", "nats")
    _save(figure, path)


def latent_kl_places(kl_per_place: ArrayLike, path: Path | IO[bytes]) -> None:
    """Draw the mean KL at each place [h, w] of a feature map, in nats, as a PNG."""
    figure = _figure(4.5, 3.6)
    axes = figure.add_subplot()
    shown = axes.imshow(np.asarray(kl_per_place, dtype=np.float64), cmap="viridis", vmin=0)
    figure.colorbar(shown, ax=axes, label="nats")
    _style(axes, "KL at each place of the feature map", "column", "row")
    axes.grid(False)  # lines of `_style` would cross the places
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
    colours = [BLUE] if classes is None else list(palette[: len(known)])
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
    number = int(name) if name.removeprefix("-").isdecimal() else math.inf
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


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=200, layout="constrained", facecolor="white")


def _save(figure: Figure, path: Path | IO[bytes]) -> None:
    figure.savefig(path, format="png", metadata={"Software": None})


def _style(axes: Axes, title: str, across: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(across, color=GREY)
    axes.set_ylabel(unit, color=GREY)
    axes.tick_params(which="both", colors=GREY, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#C9CDD3")
    axes.grid(axis="y", color="#E6E8EB", linewidth=0.8)
    axes.set_axisbelow(True)


def _draw_panel(axes: Axes, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw one quantity of a run in its axes: train in blue, validation in orange."""
    title, unit = _PANELS[name]
    _style(axes, title, "steps", unit)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    for split, colour in (("train", BLUE), ("validation", ORANGE)):
        drawn = [row for row in rows if row.get("split") == split and name in row]
        if drawn:
            _draw_split(axes, name, drawn, split, colour)
    heights = np.concatenate([[np.nan], *(line.get_ydata() for line in axes.lines)])
    if not np.isfinite(heights).any():
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", color=GREY)
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
