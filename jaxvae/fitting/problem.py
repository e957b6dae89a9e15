"""Check, split and prepare the rows of a fit, and build the model that starts from them."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxvae.models.registry import MODELS, build
from jaxvae.models.stored_parameters import trainable
from jaxvae.models.vae import VAE
from jaxvae.preprocessing import (
    Preprocessing,
    Splits,
    choose_likelihood,
    preprocess,
    units_of,
)
from jaxvae.preprocessing.description import ABOUT, describe
from jaxvae.preprocessing.statistics import data_scale, pseudo_inputs
from jaxvae.preprocessing.support import Trained

NAMES = {"mlp": "mlp_vae", "conv": "conv_vae"}
"""Name of a model -> name in `jaxvae.models.registry.MODELS`."""


class Problem(NamedTuple):
    """A model and its data, ready for training.

    Attributes:
        vae: the model.
        recipe: its recipe for checkpoints; None for your own model.
        splits: training and validation rows.
        loaded: the training rows as given: `binarize="static"` replaces those of `splits`.
        preprocessing: preprocessing of the splits.
        about: its description for checkpoints.
    """

    vae: VAE
    recipe: dict[str, Any] | None
    splits: Splits
    loaded: np.ndarray
    preprocessing: Preprocessing
    about: dict[str, Any]


def make_problem(
    x: ArrayLike,
    validation: float | ArrayLike,
    model: str | VAE,
    likelihood: str,
    binarize: str,
    standardize: str,
    arguments: dict[str, Any],
) -> Problem:
    """Split and prepare the data, and build the model."""
    splits = _split(_stored(x, "x"), validation)
    if likelihood == "auto":
        choice = choose_likelihood(splits.train)
        likelihood, binarize = (
            choice.likelihood,
            choice.binarize if binarize == "auto" else binarize,
        )
    if not isinstance(model, str):
        standardize = "none"  # the model is built already
    loaded = splits.train
    splits, preprocessing = preprocess(
        splits, likelihood=likelihood, binarize=binarize, standardize=standardize
    )
    trained = Trained(str(loaded.dtype), float(loaded.min()), float(loaded.max()))
    about = {ABOUT: describe(preprocessing, trained, resizes=False)}
    if not isinstance(model, str):
        return Problem(trainable(model), None, splits, loaded, preprocessing, about)
    if model not in NAMES:
        raise ValueError(
            f"model must be {' or '.join(NAMES)}, or a jaxvae.VAE; got {model!r}. Use one of them."
        )
    vectors = splits.train.ndim == 2
    made: dict[str, Any] = {
        "data_shape": list(splits.train.shape[1:]),
        "likelihood": likelihood,
        "sigma": "per_channel" if vectors else "learned",
        **arguments,
    }
    unit = np.ones((), np.float32)
    if preprocessing.standardizes:
        columns = units_of(splits.train, splits.name)
        made |= {"data_loc": columns.loc, "data_unit": columns.unit}
        unit = np.asarray(columns.unit, np.float32)
    recipe = {"function": NAMES[model], "arguments": made}
    start: dict[str, Any] = {
        "data_mean": preprocessing.mean,
        "data_scale": data_scale(preprocessing, splits.train, unit),
    }
    if made.get("prior") == "vamp":
        count = made.get("num_components", 50)
        start["pseudo_inputs"] = pseudo_inputs(preprocessing, splits.train, count, seed=0)
    vae = build(recipe, MODELS, **start)
    return Problem(trainable(vae), recipe, splits, loaded, preprocessing, about)


def _stored(x: ArrayLike, name: str) -> np.ndarray:
    """Rows [N, D] or [N, H, W, C] as uint8, int32 or float32.

    Raises:
        ValueError: another shape or type, no rows, or values that are not finite in float32.
    """
    rows = np.asarray(x)
    if rows.ndim not in (2, 3, 4) or 0 in rows.shape or rows.dtype.kind not in "biuf":
        raise ValueError(
            f"{name} must be numbers of shape [N, D], [N, H, W] or [N, H, W, C], got "
            f"{list(rows.shape)} of {rows.dtype}. Reshape or convert it."
        )
    rows = rows[..., None] if rows.ndim == 3 else rows
    if rows.dtype.kind == "f":
        with np.errstate(over="ignore"):
            rows = rows.astype(np.float32)
        if not np.isfinite(rows).all():
            raise ValueError(f"{name} must be finite in float32. Repair or drop the other rows.")
        return rows
    if rows.dtype.kind == "b" or rows.dtype == np.uint8:
        return rows.view(np.uint8)
    if rows.min() < -(2**31) or rows.max() >= 2**31:
        raise ValueError(
            f"{name} must have integers that fit 32 bits. Rescale them, or give floats."
        )
    return rows.astype(np.int32)


def _split(rows: np.ndarray, validation: float | ArrayLike) -> Splits:
    """Set aside validation rows: the given ones, or a share of `rows` in a fixed random order."""
    if not np.isscalar(validation):
        others = _stored(validation, "validation")
        if others.shape[1:] != rows.shape[1:]:
            raise ValueError(
                f"validation must have rows of shape {list(rows.shape[1:])} as x has, got "
                f"{list(others.shape[1:])}."
            )
        with np.errstate(invalid="ignore"):
            converted = others.astype(rows.dtype)
        if rows.dtype.kind != "f" and not np.array_equal(converted, others):
            raise ValueError(
                f"validation must have values that x's type {rows.dtype} can hold, got "
                f"{others.dtype} from {others.min():.6g} to {others.max():.6g}. Convert x or "
                "validation."
            )
        return Splits("x", rows, converted, rows[:0])
    share = float(validation)  # type: ignore[arg-type]
    if not 0 <= share < 1:
        raise ValueError(f"validation must be a share from 0 to below 1, or rows; got {share}.")
    count = min(len(rows) - 1, round(share * len(rows)))
    order = np.random.default_rng(0).permutation(len(rows))
    return Splits("x", rows[order[count:]], rows[order[:count]], rows[:0])
