"""Number of samples of the final log-likelihood estimate, where the flags leave it open."""

import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from experiments.record.display import duration
from jaxvae.checkpoints.hosts import from_first
from jaxvae.evaluation import Scores
from jaxvae.trained import USUAL_SAMPLES

CHOICES = (USUAL_SAMPLES, 50, 20, 10)
"""Numbers of samples to choose from, the usual one first; round, so that machines of about the same
speed choose the same."""
SHORT_SECONDS = 30.0
"""An estimate that takes no longer than this has the usual number of samples after any training."""


def choose_num_samples(
    scorer: Callable[..., Scores],
    splits: Sequence[np.ndarray],
    batch_size: int,
    training_seconds: float,
    say: Callable[[str], None],
) -> int:
    """Choose the largest of `CHOICES` whose estimate takes no longer than training did.

    The time is that of one batch with the smallest number of samples, on the program that the
    estimate uses too. With several processes, process 0 decides for all.

    Args:
        scorer: from `make_scorer`.
        splits: examples of each split to measure.
        batch_size: examples measured at once.
        training_seconds: time that training took, in process 0.
        say: shows a line if the usual number would take longer.
    """
    if not splits:
        return CHOICES[0]
    batch, least = max(splits, key=len)[:batch_size], CHOICES[-1]
    scorer(batch, num_samples=least)  # compiles
    started = time.perf_counter()
    scorer(batch, num_samples=least)
    batches = sum(math.ceil(len(split) / batch_size) for split in splits)
    per_sample = (time.perf_counter() - started) * batches / least
    return from_first(lambda: _choose(per_sample, max(training_seconds, SHORT_SECONDS), say))


def _choose(per_sample: float, most_seconds: float, say: Callable[[str], None]) -> int:
    fits = (number for number in CHOICES if number * per_sample <= most_seconds)
    chosen, usual = next(fits, CHOICES[-1]), CHOICES[0]
    if chosen != usual:
        say(
            f"{chosen} samples per example: {usual} would take about "
            f"{duration(usual * per_sample)}, longer than training did. To take {usual} all the "
            f"same, give --eval-samples={usual}."
        )
    return chosen
