"""Likely causes of numbers that are not finite, and the flags to change."""

from collections.abc import Iterator
from typing import NamedTuple

from experiments.flags.combinations import LOCATION_SCALE
from experiments.flags.config import TrainConfig

LEAST_SIGMA = 1e-3
"""Smallest fixed sigma, in standard deviations of the data, that is not suspected: smaller ones
give terms of a million nats."""
LARGE = 1e3
"""Weight of a loss term, or order alpha, above which it is named as a likely cause."""


class Steps(NamedTuple):
    """Counts of the steps of a run so far.

    Attributes:
        done: all steps.
        skipped: steps whose loss or gradient norm was not finite.
        skipped_in_row: the latest of these in a row; 0 if the parameters are not finite instead.
    """

    done: int
    skipped: int
    skipped_in_row: int


def not_finite(config: TrainConfig, steps: Steps, last_saved: int, spread: float) -> str:
    """Error line of a run that stops because numbers are not finite, with likely remedies.

    Args:
        config: the flags.
        steps: counts of the run's steps.
        last_saved: step of the last checkpoint.
        spread: standard deviation of the data, in their own unit.
    """
    what = f"the loss or gradient norm of {steps.skipped_in_row} steps in a row was not finite"
    if not steps.skipped_in_row:
        what = "the parameters are not finite"
    causes = list(_in_the_loss(config, spread))
    if steps.skipped < steps.done:  # updates can be the cause only if there was an update
        causes += _in_the_updates(config)
    if not causes:
        own = " or in the model" if ":" in config.model else ""
        causes = [f"no step was finite, so the cause is in the data{own}, not in the updates"]
    text = "; ".join(causes)
    return (
        f"error: up to step {steps.done:,} {what}. The last checkpoint is step {last_saved:,}. "
        f"{text[0].upper()}{text[1:]}. Start with a new --run."
    )


def _in_the_loss(config: TrainConfig, spread: float) -> Iterator[str]:
    if config.likelihood in LOCATION_SCALE:
        sigma = config.sigma
        if not isinstance(sigma, str) and sigma < LEAST_SIGMA * spread:
            yield (
                f"raise --sigma (now {sigma:g}, and the data's standard deviation is {spread:.3g}),"
                " or use --sigma=learned"
            )
        if config.standardize == "none" and not 1 / LARGE < spread < LARGE:
            yield (
                f"use --standardize=columns, as the data's standard deviation is {spread:.3g}, or "
                "rescale the data"
            )
    for name in ("beta", "regularizer_weight", "capacity", "alpha"):
        value = getattr(config, name)
        if value is not None and abs(value) > LARGE:
            yield f"lower --{name.replace('_', '-')} (now {value:g})"


def _in_the_updates(config: TrainConfig) -> Iterator[str]:
    if config.weight_decay * config.learning_rate > 1:
        yield f"lower --weight-decay (now {config.weight_decay:g})"
    if config.learns_sigma and (config.sigma_rate or 1) > LARGE:
        yield f"lower --sigma-rate (now {config.sigma_rate:g})"
    clip = ", or set --gradient-clip" if config.gradient_clip is None else ""
    yield f"lower --learning-rate (now {config.learning_rate:g}){clip}"
