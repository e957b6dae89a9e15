"""Reading of a run's results.json, which may be from an older release, damaged or edited."""

from pathlib import Path
from typing import Any

from experiments.record.metrics import is_number_or_none

MOST_BYTES = 2**22
"""Largest results.json that is read; training writes ten kilobytes."""
RENAMED = {"log_likelihood_lower_bound": "log_likelihood", "log_likelihood": "reconstruction"}
"""Name in files of earlier releases -> today's name."""
KINDS = ("least_likely", "worst_reconstructions", "best_reconstructions")
"""Kinds of single examples in the entry "shown", and names of their pictures without suffix."""
TEXTS = ("command", "device", "preprocessing", "bits_per_dimension_of")


def read_results(path: Path) -> dict[str, Any]:
    """Read the results of a run; empty if they are missing or cannot be shown."""
    from jaxvae.checkpoints.contained import read_json  # here, since it loads jax

    try:
        results = read_json(path, MOST_BYTES)
    except (FileNotFoundError, ValueError):
        return {}
    return with_current_names(results) if _can_be_shown(results) else {}


def with_current_names(results: dict[str, Any]) -> dict[str, Any]:
    """Rename entries in results of earlier releases to today's names.

    There, log_likelihood_lower_bound was the estimate of log p(x), and log_likelihood was
    E_q log p(x|z), which is now `reconstruction`.
    """
    return {
        name: {RENAMED.get(key, key): entry for key, entry in value.items()}
        if isinstance(value, dict) and "log_likelihood_lower_bound" in value
        else value
        for name, value in results.items()
    }


def _can_be_shown(results: dict[str, Any]) -> bool:
    """Return True if all values that the report and the screen show have the right type."""
    checkpoint, versions, timing = (
        results.get(name, {}) for name in ("checkpoint", "versions", "timing")
    )
    if not all(isinstance(values, dict) for values in (checkpoint, versions, timing)):
        return False
    shown = _is_count(checkpoint.get("step")) and isinstance(checkpoint.get("which"), str)
    samples = results.get("eval_samples", 1)
    shown = shown and _is_count(samples) and samples >= 1
    shown = shown and all(isinstance(results.get(name, ""), str) for name in TEXTS)
    return (
        shown
        and all(map(is_number_or_none, timing.values()))
        and ("shown" not in results or is_shown(results["shown"]))
        and all(_is_split(results[split]) for split in ("validation", "test") if split in results)
    )


def _is_split(numbers: Any) -> bool:
    return (
        isinstance(numbers, dict)
        and _is_count(numbers.get("num_examples"))
        and all(_is_entry(entry) for entry in numbers.values() if isinstance(entry, dict))
    )


def _is_entry(entry: dict[str, Any]) -> bool:
    return (
        "value" in entry
        and is_number_or_none(entry["value"])
        and is_number_or_none(entry.get("standard_error"))
        and isinstance(entry.get("unit"), str)
        and _is_count(entry.get("num_samples", 0))
    )


def is_shown(shown: Any) -> bool:
    """Return True if the entry "shown", on single examples and latents, has the right types."""
    if not isinstance(shown, dict) or shown.get("split") not in ("validation", "test"):
        return False
    extremes, latents = shown.get("extremes"), shown.get("latents", {})
    return (
        isinstance(extremes, dict)
        and all(kind in KINDS and isinstance(rows, list) for kind, rows in extremes.items())
        and all(_is_example(row) for rows in extremes.values() for row in rows)
        and (latents == {} or _is_view(latents))
    )


def _is_example(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and _is_count(row.get("index"))
        and "score" in row
        and is_number_or_none(row["score"])
        and all(isinstance(row.get(name, ""), str) for name in ("file", "label"))
        and _is_count(row.get("columns", 0))
        and all(_is_list_of_numbers(row.get(name, [])) for name in ("x", "reconstruction"))
    )


def _is_list_of_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(is_number_or_none, values))


def _is_view(latents: Any) -> bool:
    indices = latents.get("latents") if isinstance(latents, dict) else None
    return (
        isinstance(indices, list)
        and len(indices) in (1, 2)
        and all(map(_is_count, indices))
        and isinstance(latents.get("ranked_by"), str)
        and _is_count(latents.get("num_examples"))
        and type(latents.get("labelled")) is bool
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
