"""Choice of a likelihood that suits the data."""

from typing import Any, NamedTuple

import numpy as np

from jaxvae.preprocessing.rules import MOST_COUNTS
from jaxvae.preprocessing.statistics import evenly
from jaxvae.preprocessing.support import EXAMPLES_AT_ONCE, are_whole

MOST_ROWS = 2000
"""Rows, spread evenly over the data, whose share of extreme values is measured."""
EXTREME = 0.4
"""Share of values that are black or white from which grey images count as drawings: MNIST has 0.82,
Fashion-MNIST 0.51, photographs almost none."""
MOST_COLOURS = 4
"""Largest number of channels that count as a colour: red, green, blue and opacity."""
OF_WHOLE_NUMBERS = ("logistic_mixture", "color_logistic_mixture", "negative_binomial")
NEAR = 0.02
"""Distance from black or white, as a share of the range, that counts as extreme."""


class Choice(NamedTuple):
    """A likelihood and the reason for it.

    Attributes:
        likelihood: a key of `jaxvae.preprocessing.RULES`.
        binarize: "auto", or "dynamic" for grey levels in [0, 1].
        reason: the data, in words.
        two_values: True if the data have only two values.
    """

    likelihood: Any
    binarize: Any
    reason: str
    two_values: bool = False


def choose_likelihood(train: np.ndarray) -> Choice:
    """Choose the likelihood for a training split.

        values 0 and 1, or black and white       bernoulli
        grey levels that are mostly extreme      bernoulli, drawn anew at each use
        8-bit images in colour                   color_logistic_mixture
        other 8-bit images                       logistic_mixture
        other whole numbers from 0 to 2^24       negative_binomial
        all others                               gaussian

    uint8 vectors without a value above 127 are counts.

    Args:
        train: [N, *data_shape] of uint8, int32 or float32. Images are [N, H, W, C].

    >>> choose_likelihood(np.arange(1000).reshape(100, 10)).likelihood
    'negative_binomial'
    """
    low, high = float(train.min()), float(train.max())
    whole = are_whole(train) and low >= 0
    colour = train.ndim == 4 and train.shape[3] > 1
    if whole and (high <= 1 or _are_black_or_white(train)):
        return Choice("bernoulli", "auto", "values of two kinds", two_values=True)
    vectors = train.ndim == 2
    pixels = whole and (128 <= high <= 255 or (train.dtype == np.uint8 and not vectors))
    if (pixels or (low >= 0 and high <= 1)) and not colour and _are_drawings(train, low, high):
        dynamic = "auto" if pixels else "dynamic"
        return Choice("bernoulli", dynamic, "grey levels that are mostly black or white")
    if pixels:
        if colour and train.shape[3] <= MOST_COLOURS:
            return Choice("color_logistic_mixture", "auto", "8-bit colours")
        return Choice(
            "logistic_mixture", "auto", f"8-bit {'channels' if colour else 'grey levels'}"
        )
    if whole and vectors and high <= MOST_COUNTS:
        return Choice("negative_binomial", "auto", f"counts from {low:g} to {high:g}")
    return Choice("gaussian", "auto", f"real numbers from {low:.3g} to {high:.3g}")


def doubt(likelihood: str, suited: Choice) -> str | None:
    """Return a reason why a likelihood plainly does not suit the data, or None.

    Args:
        likelihood: a key of `jaxvae.preprocessing.RULES`.
        suited: what `choose_likelihood` chooses for the data.
    """
    if likelihood == suited.likelihood:
        return None
    if likelihood == "bernoulli" and suited.likelihood in OF_WHOLE_NUMBERS:
        return (
            f"likelihood=bernoulli turns the data, {suited.reason}, into random black and white "
            f"pixels; likelihood={suited.likelihood} models them as they are."
        )
    if suited.two_values and likelihood != "categorical":
        return (
            f"likelihood={likelihood} does not suit data of only two values; "
            "likelihood=bernoulli does."
        )
    return None


def _are_black_or_white(train: np.ndarray) -> bool:
    return train.dtype == np.uint8 and all(
        np.isin(train[start : start + EXAMPLES_AT_ONCE], (0, 255)).all()
        for start in range(0, len(train), EXAMPLES_AT_ONCE)
    )


def _are_drawings(train: np.ndarray, low: float, high: float) -> bool:
    top = 255 if high > 1 else 1
    # Small counts and shares are near 0 as well, but nothing among them is white.
    if low > NEAR * top or high < (1 - NEAR) * top:
        return False
    share = train[evenly(len(train), MOST_ROWS)] / np.float32(top)
    return bool(((share <= NEAR) | (share >= 1 - NEAR)).mean() >= EXTREME)
