"""Plots of rounds: bars of medians with a dot for each round, and lines over sizes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from experiments.benchmark.tables import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Blue, grey and vermilion of Okabe and Ito, distinguishable with any colour vision.
_CHOSEN, _OTHER, _DOT = "#0072B2", "#A9B2BC", "#D55E00"
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_BAR_INCHES, _PANEL_INCHES, _WIDTH_INCHES = 0.32, 0.95, 9.0


class Panel(NamedTuple):
    """Bars on one axis.

    Attributes:
        title: text above the axis.
        bars: label -> number of each round.
        unit: unit of the axis.
    """

    title: str
    bars: Mapping[str, Sequence[float]]
    unit: str


class Line(NamedTuple):
    """One line of `lines`: its label, and the numbers of the rounds at each x."""

    label: str
    points: Mapping[float, Sequence[float]]
    dashed: bool = False


def bars(path: Path, title: str, panels: Sequence[Panel], *, highlighted: str) -> Path:
    """Draw horizontal bars as long as the median, one panel above another; return the path.

    Args:
        path: path of the PNG.
        title: title of the figure.
        panels: panels from top to bottom.
        highlighted: label whose bars have another colour.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    heights = [_PANEL_INCHES + _BAR_INCHES * len(panel.bars) for panel in panels]
    figure = Figure(figsize=(_WIDTH_INCHES, sum(heights) + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=12, fontweight="bold")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        labels = list(panel.bars)
        medians = [statistics.median(panel.bars[label]) for label in labels]
        colours = [_CHOSEN if label == highlighted else _OTHER for label in labels]
        axis.barh(labels, medians, color=colours, height=0.7)
        largest = max((max(values) for values in panel.bars.values()), default=1.0)
        for row, label in enumerate(labels):
            values = panel.bars[label]
            axis.plot(values, [row] * len(values), "o", color=_DOT, markersize=3, alpha=0.8)
            axis.annotate(
                number(medians[row]),
                (max(*values, medians[row]), row),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axis.set_xlim(0, 1.15 * largest)
        axis.set_title(panel.title, loc="left", fontsize=10)
        axis.set_xlabel(f"{panel.unit} (bar: median; dots: rounds)", fontsize=9)
        axis.tick_params(labelsize=9)
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    return _saved(figure, path)


def lines(path: Path, title: str, drawn: Sequence[Line], x_unit: str, y_unit: str) -> Path:
    """Draw lines through the medians over powers of two, with a dot per round; return the path."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_INCHES, 4.5), layout="constrained")
    figure.suptitle(title, fontsize=12, fontweight="bold")
    axis = figure.subplots()
    for line, colour in zip(drawn, cycle(_LINES)):
        xs = sorted(line.points)
        medians = [statistics.median(line.points[x]) for x in xs]
        style = "--" if line.dashed else "-"
        axis.plot(xs, medians, style, color=colour, label=line.label, linewidth=2)
        for x in xs:
            values = line.points[x]
            if len(values) > 1:
                axis.plot([x] * len(values), values, "o", color=colour, markersize=3.5, alpha=0.6)
    counts = sorted({x for line in drawn for x in line.points})
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [f"{count:g}" for count in counts])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set_xlabel(f"{x_unit} (line: median; dots: rounds)")
    axis.set_ylabel(y_unit)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return _saved(figure, path)


def _saved(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
