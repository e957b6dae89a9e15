"""Rounds that measure every variant once, and statistics of their numbers."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Rounds = dict[str, list[dict[str, Any]]]
"""Variant -> its measurements, one per round, in order."""


class Summary(NamedTuple):
    """Summary of one number over the rounds.

    Attributes:
        median: median of the rounds.
        low, high: quartiles.
        worst: smallest value of rates and ratios, largest value of times.
    """

    median: float
    low: float
    high: float
    worst: float


def interleaved(
    names: Sequence[str],
    rounds: int,
    measure: Callable[[str], dict[str, Any] | None],
    progress: Callable[[str], None] = lambda text: None,
) -> Rounds:
    """Measure each of the names once a round, in turn; every other round in reverse order.

    A name for which `measure` returns None is dropped: from later rounds and from the results.

    >>> interleaved(["x", "y"], 2, lambda name: {"seconds": 1.0})["y"]
    [{'seconds': 1.0}, {'seconds': 1.0}]
    """
    results: Rounds = {name: [] for name in names}
    for index in range(rounds):
        progress(f"round {index + 1} of {rounds}")
        for name in names if index % 2 == 0 else reversed(names):
            measured = measure(name) if name in results else None
            if measured is None:
                results.pop(name, None)
            else:
                results[name].append(measured)
    return results


def summarize(values: Sequence[float], *, higher_is_better: bool = True) -> Summary:
    """Compute median, quartiles and the worst round.

    >>> summarize([3.0, 1.0, 2.0])
    Summary(median=2.0, low=1.5, high=2.5, worst=1.0)
    """
    worst = min(values) if higher_is_better else max(values)
    low, median, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    )
    return Summary(median, low, high, worst)


def ratios(
    numerator: Sequence[dict[str, Any]], denominator: Sequence[dict[str, Any]], field: str
) -> list[float]:
    """Ratio of one variant's number to another's, round by round.

    >>> ratios([{"rate": 6.0}, {"rate": 2.0}], [{"rate": 2.0}, {"rate": 1.0}], "rate")
    [3.0, 2.0]
    """
    pairs = zip(numerator, denominator, strict=True)
    return [above[field] / below[field] for above, below in pairs]


def column(measured: Sequence[dict[str, Any]], field: str) -> list[float]:
    """Return one number of every round."""
    return [round_[field] for round_ in measured]
