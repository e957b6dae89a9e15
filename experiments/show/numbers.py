"""Evaluation numbers of a trained model on one split, with standard errors."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.record import display
from jaxvae.evaluation import (
    Estimate,
    Scores,
    bits_per_dimension,
    count_active_units,
    estimate,
    make_score,
    map_dataset,
)
from jaxvae.models.vae import VAE, Params
from jaxvae.preprocessing import Preprocessing
from jaxvae.training.devices import make_map, replicate

SAMPLES_AT_ONCE = 10
"""Draws of an example that are decoded at once."""


def make_scorer(
    vae: VAE,
    params: Params,
    preprocessing: Preprocessing,
    *,
    key: jax.Array,
    mesh: Mesh,
    most_samples: int,
    batch_size: int,
    microbatch_size: int | None = None,
) -> Callable[..., Scores]:
    """Make the function (examples [N, ...], num_samples, progress) -> Scores, of numpy arrays.

    One compiled program serves every number of samples, which is `most_samples` by default.
    """
    chunk = min(SAMPLES_AT_ONCE, most_samples)

    def score(of_run: tuple[Params, jax.Array], key: jax.Array, stored: jax.Array) -> Scores:
        params, num_samples = of_run
        score_one = make_score(
            vae,
            prepare=preprocessing.prepare,
            num_samples=num_samples,
            sample_chunk_size=chunk,
        )
        return score_one(params, key, stored)

    mapped = make_map(score, mesh, microbatch_size)
    params, key = replicate(params, mesh), replicate(key, mesh)

    def scorer(examples: Any, num_samples: int = most_samples, **progress: Any) -> Scores:
        of_run = params, replicate(np.int32(num_samples), mesh)
        return map_dataset(
            mapped,
            of_run,
            key,
            examples,
            mesh=mesh,
            batch_size=batch_size,
            microbatch_size=microbatch_size,
            **progress,
        )

    return scorer


def summarize(
    scores: Scores, data_shape: tuple[int, ...], preprocessing: Preprocessing, num_samples: int
) -> dict[str, Any]:
    """Summarize the scores of a split as named numbers with standard errors and units."""
    bound = estimate(scores.log_likelihood)
    num_dimensions = math.prod(data_shape)
    shape = scores.posterior_mean.shape[1:]
    latents = math.prod(shape if len(shape) % 2 else shape[:-1])  # one-hot latents have classes
    numbers = {
        "elbo": _number(estimate(scores.elbo), "nats"),
        "log_likelihood": _number(bound, "nats") | {"num_samples": num_samples},
        "reconstruction": _number(estimate(scores.reconstruction), "nats"),
        "kl": _number(estimate(scores.kl), "nats"),
        "bits_per_dimension": _number(
            bits_per_dimension(bound, num_dimensions, preprocessing.offset_bits),
            f"bits, of {preprocessing.unit}",
        ),
        "num_examples": len(scores.elbo),
    }
    if len(scores.elbo) > 1:  # one example has no variance, so none would be active
        active = count_active_units(scores.posterior_mean)
        numbers["active_units"] = {"value": active, "unit": f"of {latents} latents"}
    if scores.sigma_squared is not None:
        unit = "the data's unit squared, mean over dimensions"
        numbers["sigma_squared"] = _number(estimate(scores.sigma_squared), unit)
    return numbers


def summarize_classes(
    scores: Scores, labels: np.ndarray, categories: Sequence[str]
) -> dict[str, Any]:
    """Summarize log p(x|y) of the examples of each category that has any."""
    rows = {name: labels == code for code, name in enumerate(categories)}
    return {
        name: _number(estimate(scores.log_likelihood[mine]), "nats") | {"examples": int(mine.sum())}
        for name, mine in rows.items()
        if mine.any()
    }


def _print_classes(title: str, classes: dict[str, Any]) -> None:
    """Print the result of `summarize_classes` as a table."""
    rows = [
        (name, entry["value"], entry.get("standard_error"), f"nats, {entry['examples']:,} examples")
        for name, entry in classes.items()
    ]
    display.table(title, rows)


def validation_row(scores: Scores) -> dict[str, float]:
    """Return the values of a validation row of metrics.jsonl, in nats."""
    elbo = estimate(scores.elbo)
    return {
        "elbo": elbo.value,
        "standard_error": elbo.standard_error,
        "reconstruction": estimate(scores.reconstruction).value,
        "kl": estimate(scores.kl).value,
        "active_units": count_active_units(scores.posterior_mean),
    }


def print_numbers(title: str, numbers: dict[str, Any]) -> None:
    """Print the result of `summarize` as a table."""
    rows = [
        (name.replace("_", " "), entry["value"], entry.get("standard_error"), entry["unit"])
        for name, entry in numbers.items()
        if isinstance(entry, dict) and name != "classes"
    ]
    display.table(f"{title}, {numbers['num_examples']:,} examples", rows)
    if "classes" in numbers:
        _print_classes(f"log p(x|y) of {title}", numbers["classes"])


def _number(number: Estimate, unit: str) -> dict[str, Any]:
    return {**number._asdict(), "unit": unit}
