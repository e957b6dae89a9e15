"""Check, split and prepare the rows of a fit, and build the model that starts from them."""

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxvae.cpu.blocks import divisor_near, rows_in_cache
from jaxvae.fitting.arguments import check_sigma, model_arguments
from jaxvae.models.registry import SHORT_NAMES, build
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
from jaxvae.preprocessing.support import REALS, Support, Trained, check_rows


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

    def rows_at_once(self, objective: Any, mesh: jax.sharding.Mesh, batch_size: int) -> int | None:
        """Rows whose gradient a device should compute at once: a divisor of its share; None: all.

        Accelerators compute all, and so does a sigma that is the optimum of the batch.
        """
        share, vae = batch_size // mesh.size, self.vae
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        if share < 2 or not on_cpu or vae.with_log_scale is not None:
            return None

        def bound(row: tuple[jax.Array, jax.Array], params: Any) -> Any:
            encode, decode = partial(vae.encode, params), partial(vae.decode, params)
            key, stored = row
            x = self.preprocessing.prepare(key, stored)
            return objective(
                key, x, encode=encode, decode=decode, prior=vae.prior(params)
            ).objective

        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
        stored = jax.ShapeDtypeStruct((1, *self.splits.train.shape[1:]), self.splits.train.dtype)
        params = jax.eval_shape(vae.init, jax.random.key(0))
        most = rows_in_cache(bound, (keys, stored), params, gradient=True)
        return None if most is None else divisor_near(share, most)


def make_problem(
    x: ArrayLike,
    validation: float | ArrayLike,
    model: str | VAE,
    likelihood: str,
    prepared: dict[str, Any],
    arguments: dict[str, Any],
) -> Problem:
    """Split and prepare the data, and build the model.

    Args:
        x, validation, model, likelihood, arguments: of `fit`.
        prepared: its arguments that are those of `preprocess`.
    """
    binarize, standardize = prepared["binarize"], prepared["standardize"]
    arguments = model_arguments(model, arguments)
    splits, range_of_rows = _split(_stored(x, "x"), validation)
    if likelihood == "auto":
        choice = choose_likelihood(splits.train)
        likelihood, binarize = (
            choice.likelihood,
            choice.binarize if binarize == "auto" else binarize,
        )
    check_sigma(arguments, likelihood)
    if not isinstance(model, str):
        if standardize == "columns":
            raise ValueError(
                "standardize=columns is for models by name; yours is built already. Leave it out, "
                "and use jaxvae.in_units."
            )
        standardize = "none"
    loaded = splits.train
    prepared = prepared | {"binarize": binarize, "standardize": standardize}
    splits, preprocessing = preprocess(splits, likelihood=likelihood, **prepared)
    about = {ABOUT: describe(preprocessing, range_of_rows, resizes=False)}
    if not isinstance(model, str):
        return Problem(trainable(model), None, splits, loaded, preprocessing, about)
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
    recipe = {"function": SHORT_NAMES[model], "arguments": made}
    start: dict[str, Any] = {
        "data_mean": preprocessing.mean,
        "data_scale": data_scale(preprocessing, splits.train, unit),
    }
    if made.get("prior") == "vamp":
        count = made.get("num_components", 50)
        start["pseudo_inputs"] = pseudo_inputs(preprocessing, splits.train, count, seed=0)
    vae = build(recipe, **start)
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
    if np.ma.is_masked(x):
        raise ValueError(f"{name} has masked values. Fill them, or drop their rows.")
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


def _split(rows: np.ndarray, validation: float | ArrayLike) -> tuple[Splits, Trained]:
    """Set aside validation rows: the given ones, or a share of `rows` in a fixed random order.

    Also returns type and range of all rows, as a rare value may be in either part.
    """
    about = Trained(str(rows.dtype), float(rows.min()), float(rows.max()))
    if np.ndim(validation):
        others = _stored(validation, "validation")
        if others.shape[1:] != rows.shape[1:]:
            raise ValueError(
                f"validation must have rows of shape {list(rows.shape[1:])} as x has, got "
                f"{list(others.shape[1:])}."
            )
        support = REALS
        if rows.dtype.kind != "f":
            limits = np.iinfo(rows.dtype)
            support = Support(limits.min, limits.max, True)
        try:
            check_rows(others, support, about)
        except ValueError as error:
            raise ValueError(f"validation: {error}") from None
        low, high = min(about.low, float(others.min())), max(about.high, float(others.max()))
        about = about._replace(low=low, high=high)
        return Splits("x", rows, others.astype(rows.dtype), rows[:0]), about
    share = np.asarray(validation)
    if share.dtype.kind not in "iuf" or not 0 <= share < 1:
        raise ValueError(
            f"validation must be a share from 0 to below 1, or rows; got {validation!r}."
        )
    count = min(len(rows) - 1, round(float(share) * len(rows)))
    order = np.random.default_rng(0).permutation(len(rows))
    return Splits("x", rows[order[count:]], rows[order[:count]], rows[:0]), about
