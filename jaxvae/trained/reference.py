"""Log-likelihoods of training rows, against which the scores of new rows are ranked."""

from typing import Any, NamedTuple

import numpy as np

from jaxvae.evaluation import Scores
from jaxvae.leaves import at_rows, count_rows
from jaxvae.preprocessing.statistics import evenly

MOST_ROWS = 2000
"""Training rows, spread evenly over the data, that are scored for reference."""
USUAL_SAMPLES = 100
"""Samples per row of an estimate of log p(x), if nothing else is said."""
MOST_SAMPLES = 1_000_000


class Reference(NamedTuple):
    """Estimates of log p(x) of training rows.

    Attributes:
        log_likelihood: [N] float32, ascending, in nats.
        num_samples: K of each estimate.
        step: step of the checkpoint that was used.
    """

    log_likelihood: np.ndarray
    num_samples: int
    step: int

    @classmethod
    def of(cls, log_likelihood: np.ndarray, num_samples: int, step: int) -> "Reference | None":
        """Make the reference of scores in any order, without those that are NaN; None if all are.

        >>> Reference.of(np.array([2.0, np.nan, 1.0]), 10, 0).log_likelihood.tolist()
        [1.0, 2.0]
        """
        known = log_likelihood[~np.isnan(log_likelihood)]
        return cls(np.sort(known), num_samples, step) if len(known) else None

    def quantile(self, values: np.ndarray) -> np.ndarray:
        """Share of the training rows whose estimate is at most each value: in [0, 1].

        >>> Reference(np.array([1.0, 2.0, 3.0, 4.0]), 10, 0).quantile(np.array([2.5])).tolist()
        [0.5]
        """
        ranks = np.searchsorted(self.log_likelihood, values, side="right")
        return ranks / len(self.log_likelihood)

    def to_json(self) -> dict[str, Any]:
        """Describe the reference as JSON values."""
        return {**self._asdict(), "log_likelihood": np.round(self.log_likelihood, 4).tolist()}

    @classmethod
    def from_json(cls, values: Any) -> "Reference":
        """Read a reference from JSON values, which anybody may have written.

        Raises:
            ValueError: they do not have the form that `to_json` writes.
        """
        try:
            scores = values["log_likelihood"]
            with np.errstate(over="ignore"):
                numbers = np.array(scores, np.float32)
            found = cls(numbers, values["num_samples"], values["step"])
            valid = found.log_likelihood.ndim == 1 and 1 <= len(scores) <= MOST_ROWS
            valid = valid and not np.isnan(found.log_likelihood).any()
            valid = valid and all(type(number) is int for number in found[1:])
            valid = valid and 1 <= found.num_samples <= MOST_SAMPLES
        except (TypeError, KeyError, ValueError, OverflowError):
            valid = False
        if not valid:
            raise ValueError(
                "the reference must have log_likelihood, num_samples and step, as training writes "
                f"them, got {str(values)[:60]}."
            )
        return found._replace(log_likelihood=np.sort(found.log_likelihood))


class Score(NamedTuple):
    """Scores of rows, arrays [N] in nats.

    Attributes:
        elbo: ELBO with one draw of q.
        log_likelihood: estimate of log p(x).
        standard_error: its Monte Carlo error.
        quantile: share of the training rows that are at most as likely; NaN if not known.
    """

    elbo: np.ndarray
    log_likelihood: np.ndarray
    standard_error: np.ndarray
    quantile: np.ndarray


def ranked(scores: Scores, reference: Reference | None) -> Score:
    """Rank the scores of rows among those of training rows, where these are known."""
    values = scores.log_likelihood
    unknown = np.full(len(values), np.nan)
    quantile = unknown if reference is None else reference.quantile(values)
    return Score(scores.elbo, values, scores.log_likelihood_error, quantile)


def spread_evenly(rows: Any) -> Any:
    """Return at most `MOST_ROWS` rows of arrays [N, ...], spread evenly over all."""
    return at_rows(rows, evenly(count_rows(rows), MOST_ROWS))
