"""Rounds: every variant once in each, and what is made of the numbers."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Rounds = dict[str, list[dict[str, Any]]]
"""Variant -> what it measured in each round, in order."""


class Summary(NamedTuple):
    """Of one number over the rounds.

    Attributes:
        median: of the rounds.
        low, high: quartiles.
        worst: smallest of rates and ratios, largest of times.
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

    One whose measure is None is lost: it is not measured again, nor among the results.

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
    """Median, quartiles and the worst round.

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
    """Round by round, one variant's number over another's.

    >>> ratios([{"rate": 6.0}, {"rate": 2.0}], [{"rate": 2.0}, {"rate": 1.0}], "rate")
    [3.0, 2.0]
    """
    pairs = zip(numerator, denominator, strict=True)
    return [above[field] / below[field] for above, below in pairs]


def column(measured: Sequence[dict[str, Any]], field: str) -> list[float]:
    """One number of every round."""
    return [round_[field] for round_ in measured]
