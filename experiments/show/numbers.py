"""Evaluation numbers of a trained model on one split, with standard errors."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
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


def make_scorer(
    vae: VAE,
    params: Params,
    preprocessing: Preprocessing,
    *,
    key: jax.Array,
    mesh: Mesh,
    num_samples: int,
    batch_size: int,
    microbatch_size: int | None = None,
) -> Callable[..., Scores]:
    """Return the function (examples [N, ...], progress) -> Scores with numpy arrays [N, ...]."""
    score = make_score(vae, prepare=preprocessing.prepare, num_samples=num_samples)
    return partial(
        map_dataset,
        make_map(score, mesh, microbatch_size),
        replicate(params, mesh),
        replicate(key, mesh),
        mesh=mesh,
        batch_size=batch_size,
        microbatch_size=microbatch_size,
    )


def summarize(
    scores: Scores, data_shape: tuple[int, ...], preprocessing: Preprocessing, num_samples: int
) -> dict[str, Any]:
    """Summarize the scores of a split as named numbers with standard errors and units."""
    bound = estimate(scores.log_likelihood)
    num_dimensions = math.prod(data_shape)
    latents = scores.posterior_mean.shape[1]
    numbers = {
        "elbo": _number(estimate(scores.elbo), "nats"),
        "log_likelihood": _number(bound, "nats") | {"num_samples": num_samples},
        "reconstruction": _number(estimate(scores.reconstruction), "nats"),
        "kl": _number(estimate(scores.kl), "nats"),
        "bits_per_dimension": _number(
            bits_per_dimension(bound, num_dimensions, preprocessing.offset_bits),
            f"bits, of {preprocessing.unit}",
        ),
        "active_units": {
            "value": count_active_units(scores.posterior_mean),
            "unit": f"of {latents} latents",
        },
        "num_examples": len(scores.elbo),
    }
    if scores.sigma_squared is not None:
        unit = "the data's unit squared, mean over dimensions"
        numbers["sigma_squared"] = _number(estimate(scores.sigma_squared), unit)
    return numbers


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
        if isinstance(entry, dict)
    ]
    display.table(f"{title}, {numbers['num_examples']:,} examples", rows)


def _number(number: Estimate, unit: str) -> dict[str, Any]:
    return {**number._asdict(), "unit": unit}
