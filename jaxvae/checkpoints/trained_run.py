"""A run's folder as a `TrainedVAE`: model, parameters, preprocessing and reference scores."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxvae.checkpoints.categories import read_categories
from jaxvae.checkpoints.checkpoints import Loaded, load_described
from jaxvae.checkpoints.contained import read_json, require_contained
from jaxvae.checkpoints.hosts import from_first
from jaxvae.models.registry import MODELS
from jaxvae.models.vae import VAE
from jaxvae.preprocessing.description import read_description
from jaxvae.trained import Reference, TrainedVAE

REFERENCE = "reference.json"
"""File in a run's folder with the scores of training rows."""
MOST_LINES, LONGEST_LINE = 10, 200


def load_trained(
    run: str | Path,
    which: Literal["best", "latest"] = "best",
    models: Mapping[str, Callable[..., VAE]] = MODELS,
    *,
    devices: list[jax.Device] | None = None,
    given: str | None = None,
) -> TrainedVAE:
    """Load a trained VAE with its preprocessing, ready for rows as they are stored.

        trained = jaxvae.checkpoints.load_trained("runs/mnist_small-mlp")
        trained.score(images)

    Args:
        run, which, models: as for `load`.
        devices: devices to use; None: all.
        given: name of the label y of a conditional run, whose p(x|y) is loaded: "7", "circle".

    Raises:
        FileNotFoundError, ValueError: as `load`; the run is conditional and has no such label; or
            the release that trained the run did not store its preprocessing.
    """
    loaded = load_described(run, which, models)
    run = Path(run) if (Path(run) / "checkpoints").is_dir() else Path(run).parent
    description = read_description(loaded.about)
    if description is None:
        raise ValueError(
            f"{run} is of a release of jaxvae that did not store its preprocessing. Continue it "
            "for a few steps with --num-steps, or use jaxvae.checkpoints.load."
        )
    return TrainedVAE(
        _given(loaded, run, given),
        loaded.params,
        tuple(loaded.about["data_shape"]),
        description,
        _summary(loaded),
        read_reference(run, loaded.step),
        devices,
    )


def _given(loaded: Loaded, run: Path, name: str | None) -> VAE:
    """The model of one label of a conditional run."""
    if loaded.vae.condition is None:
        if name is not None:
            raise ValueError(f"{run} is a model without labels. Leave out given={name!r}.")
        return loaded.vae
    known = read_categories(loaded.about, loaded.vae.condition)
    if known is None:
        raise ValueError(
            f"{run} is a model of p(x|y) whose y has no names. Use jaxvae.checkpoints.load and "
            "vae.given(y)."
        )
    if name not in known:
        listed = ", ".join(known)[:LONGEST_LINE]
        raise ValueError(
            f"{run} is a model of p(x|y) for the labels {listed!r}: given={name!r} is none of "
            "them. Give one, or use jaxvae.checkpoints.load."
        )
    return loaded.vae.given(jnp.int32(known.index(name)))


def read_reference(run: Path, step: int) -> Reference | None:
    """Read the scores of training rows; None if the folder has none for this step.

    Raises:
        ValueError: the file is not as training writes it.
    """

    def read() -> dict[str, Any] | None:
        require_contained(run, [REFERENCE])
        path = run / REFERENCE
        if not path.is_file():
            return None
        try:
            values = read_json(path)
            Reference.from_json(values)  # here, where an error can name the file
        except ValueError as error:
            reason = str(error).rstrip(".")
            raise ValueError(f"{path} cannot be read: {reason}. Delete it.") from error
        return values

    values = from_first(read)
    if values is None:
        return None
    reference = Reference.from_json(values)
    return reference if reference.step == step else None


def write_reference(run: Path, reference: Reference) -> None:
    """Write the scores of training rows into a run's folder, whole or not at all."""
    unfinished = run / f"{REFERENCE}.unfinished"
    unfinished.unlink(missing_ok=True)
    with unfinished.open("x", encoding="utf-8") as file:  # "x" never writes through a link
        file.write(json.dumps(reference.to_json()))
    unfinished.replace(run / REFERENCE)


def _summary(loaded: Loaded) -> dict[str, str]:
    """Lines that describe a run; a checkpoint may come from anybody, so they are cut to size."""
    lines = loaded.about.get("summary")
    if not isinstance(lines, dict):
        return {"step": str(loaded.step)}
    shown = list(lines.items())[:MOST_LINES]
    return {str(name)[:LONGEST_LINE]: str(text)[:LONGEST_LINE] for name, text in shown}
