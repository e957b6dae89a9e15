"""Report on an objective that may be a bound on log p(x), and the rules that judge it."""

from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

STANDARD_ERRORS = 4
SLOPE_ERROR = 1e-3
"""Error of finite differences in float32, relative to the mean slope."""

Trend = Literal["tightens", "constant", "loosens"]


class Comparison(NamedTuple):
    """A mean over keys, its expected value, and the deviation allowed for noise and rounding.

    Attributes:
        where: the model ("D from Z"), the number of samples, and q.
        measured: the mean, in nats.
        expected: the exact value, or the finite difference.
        allowance: four standard errors plus rounding.
    """

    where: str
    measured: float
    expected: float
    allowance: float

    def __str__(self) -> str:
        values = f"{self.measured:.4f} against {self.expected:.4f}"
        return f"{values}, allowing {self.allowance:.4f} ({self.where})"

    @property
    def is_equal(self) -> bool:
        """True if measured and expected agree; False for NaN."""
        return abs(self.measured - self.expected) <= self.allowance

    @property
    def is_below(self) -> bool:
        """True if measured is at most expected, within the allowance; False for NaN."""
        return self.measured - self.expected <= self.allowance


class BoundReport(NamedTuple):
    """Result of `check_bound`. Printing it gives a line for each finding, with its worst case.

    Attributes:
        is_lower_bound: the objective's mean is nowhere above log p(x).
        is_tight: its mean is log p(x) if q is the true posterior.
        with_samples: trend of its mean with the number of samples if q is not the true posterior.
        has_right_gradient: its gradient is that of its mean, by the parameters of q, p(x|z), p(z).
        highest: the case in which its mean is furthest above log p(x), or least below.
        at_posterior: the case in which its mean is furthest from log p(x), for the true posterior.
        gain: the smallest gain in its mean from the first to the last number of samples.
        gradients: for encoder, decoder and prior, the largest error along a random direction.
    """

    is_lower_bound: bool
    is_tight: bool
    with_samples: Trend
    has_right_gradient: bool
    highest: Comparison
    at_posterior: Comparison
    gain: Comparison
    gradients: dict[str, Comparison]

    @property
    def passed(self) -> bool:
        """True for a tight lower bound that samples do not loosen, with the right gradient."""
        fine = self.is_lower_bound and self.is_tight and self.has_right_gradient
        return fine and self.with_samples != "loosens"

    def __str__(self) -> str:
        lines = [
            ("lower bound", _yes(self.is_lower_bound), self.highest),
            ("tight", _yes(self.is_tight), self.at_posterior),
            ("more samples", self.with_samples, self.gain),
        ]
        for name, found in self.gradients.items():
            lines.append((f"{name} gradient", _yes(found.is_equal), found))
        return "\n".join(f"{what:<17}{verdict:<9}{found}" for what, verdict, found in lines)


class Draws(NamedTuple):
    """Values and gradients of an objective on one model, for each key, in float64.

    Attributes:
        model: name of the model.
        log_prob: log p(x).
        rounding: rounding error of a value.
        at_posterior, off: [N] for each number of samples, with the posterior or another q.
        slopes, gradients: [N] for each group of parameters, along one direction.
    """

    model: str
    log_prob: float
    rounding: float
    at_posterior: dict[int, np.ndarray]
    off: dict[int, np.ndarray]
    slopes: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]


def judge(draws: list[Draws]) -> BoundReport:
    """Judge an objective by its draws on every model."""
    highest = max((c for d in draws for c in _against_log_prob(d)), key=_excess)
    at_posterior = max((c for d in draws for c in _at_posterior(d)), key=_distance)
    gains = [_gain(d, min(d.off), max(d.off)) for d in draws]
    steps = [_gain(d, few, many) for d in draws for few, many in pairwise(d.off)]
    holds = all(step.measured >= -step.allowance for step in steps + gains)
    tightens = all(gain.measured > gain.allowance for gain in gains)
    gradients = {
        name: max((_gradient(d, name) for d in draws), key=_distance) for name in draws[0].slopes
    }
    return BoundReport(
        is_lower_bound=highest.is_below,
        is_tight=at_posterior.is_equal,
        with_samples=("tightens" if tightens else "constant") if holds else "loosens",
        has_right_gradient=all(found.is_equal for found in gradients.values()),
        highest=highest,
        at_posterior=at_posterior,
        gain=min(gains, key=lambda gain: gain.measured / gain.allowance),
        gradients=gradients,
    )


def _against_log_prob(draws: Draws) -> list[Comparison]:
    return [
        _compare(f"{draws.model}, {count} samples, {which}", values, draws.log_prob, draws.rounding)
        for which, by_count in (("q exact", draws.at_posterior), ("q off", draws.off))
        for count, values in by_count.items()
    ]


def _at_posterior(draws: Draws) -> list[Comparison]:
    return _against_log_prob(draws)[: len(draws.at_posterior)]


def _gain(draws: Draws, few: int, many: int) -> Comparison:
    where = f"{draws.model}, {few} to {many} samples, q off"
    return _compare(where, draws.off[many] - draws.off[few], 0.0, draws.rounding)


def _gradient(draws: Draws, name: str) -> Comparison:
    slopes = draws.slopes[name]
    where = f"{draws.model}, {max(draws.off)} samples, q off"
    rounding = SLOPE_ERROR * np.mean(np.abs(slopes))
    excess = _compare(where, draws.gradients[name] - slopes, 0.0, rounding)
    slope = float(np.mean(slopes))
    return excess._replace(measured=excess.measured + slope, expected=slope)


def _compare(where: str, values: np.ndarray, expected: float, rounding: float) -> Comparison:
    error = np.std(values) / np.sqrt(len(values))
    return Comparison(
        where, float(np.mean(values)), expected, float(STANDARD_ERRORS * error + rounding)
    )


def _excess(found: Comparison) -> float:
    """Excess of measured over expected, in allowances; infinite for NaN."""
    excess = (found.measured - found.expected) / found.allowance
    return np.inf if np.isnan(excess) else excess


def _distance(found: Comparison) -> float:
    return abs(_excess(found))


def _yes(verdict: bool) -> str:
    return "yes" if verdict else "NO"
