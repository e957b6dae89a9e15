"""Rules that turn stored examples into the kind of data that a likelihood needs.

A likelihood needs data of its kind: binary pixels for a Bernoulli, real numbers for a Gaussian.
`preprocess` chooses the conversion from the stored type and rejects meaningless combinations. A
probability mass over integers must see the integers themselves, so its rule never dequantizes.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from jaxvae.preprocessing.conversion import Conversion
from jaxvae.preprocessing.support import EXAMPLES_AT_ONCE, REALS, Support, are_whole

STATIC_SEED = 0
MOST_COUNTS = 2**24
"""Largest count: above it float32 cannot represent every integer."""


class Splits(NamedTuple):
    """Three parts of a data set as stored, [N, *data_shape] each; N of the last two may be 0."""

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


SPLITS = Splits._fields[1:]


class Preprocessing(NamedTuple):
    """Conversion of stored examples to x, and its description.

    Attributes:
        conversion: conversion of one stored example.
        name: description of the conversion, in words.
        offset_bits: bits to add to -bound / (D log 2) for bits per dimension of `unit`.
        unit: data that bits per dimension refer to, in words.
        mean: [*data_shape] float32, mean of x over the training split.
        standardizes: True if the model sees x in units of the training split
            (`jaxvae.preprocessing.units_of`); `conversion` does not apply them.
        support: stored values that the conversion is defined for.
        drawn_once: conversion of rows as loaded, if the splits were binarized once; `conversion`
            then only scales the drawn pixels. Else None.
    """

    conversion: Conversion
    name: str
    offset_bits: float
    unit: str
    mean: np.ndarray
    standardizes: bool = False
    support: Support = REALS
    drawn_once: Conversion | None = None

    @property
    def prepare(self) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """(key, stored example [*data_shape]) -> x float32 [*data_shape]; pure."""
        return self.conversion.prepare


def preprocess(
    dataset: Splits,
    *,
    likelihood: str,
    binarize: str = "auto",
    grey_probabilities: bool = False,
    standardize: str = "none",
) -> tuple[Splits, Preprocessing]:
    """Return the data set and the preprocessing of its examples for a likelihood.

    Args:
        dataset: The data as loaded; only static binarization changes them.
        likelihood: A key of `RULES`.
        binarize: dynamic (each pixel drawn anew at each call), static (drawn once, the same in
            all runs), none, or auto: dynamic for 8-bit data under a Bernoulli, else none.
        grey_probabilities: Accept grey levels in [0, 1] in place of binary pixels under a
            Bernoulli.
        standardize: columns, none, or auto: columns for real numbers under a Gaussian or a
            Laplace, but none for 8-bit data, which are scaled to [0, 1].

    Raises:
        ValueError: The data are outside the likelihood's support, or the flags conflict.
    """
    if likelihood not in RULES:
        raise ValueError(
            f"likelihood must be one of {', '.join(RULES)}; got {likelihood!r}. Use one of them."
        )
    if binarize not in ("auto", "dynamic", "static", "none"):
        raise ValueError(
            f"binarize must be auto, dynamic, static or none; got {binarize!r}. Use one of them."
        )
    if standardize not in ("auto", "columns", "none"):
        raise ValueError(
            f"standardize must be auto, columns or none; got {standardize!r}. Use one of them."
        )
    if grey_probabilities and binarize in ("dynamic", "static"):
        raise ValueError(
            "grey_probabilities needs binarize none, as binary pixels have no grey levels left; "
            f"got binarize {binarize}. Leave out grey_probabilities or binarize={binarize}."
        )
    if RULES[likelihood] in (_for_bernoulli, _for_8_bit_pixels):
        dataset = as_pixels(dataset)
    dataset, preprocessing = RULES[likelihood](dataset, binarize, grey_probabilities)
    real = RULES[likelihood] is _for_real_values and dataset.train.dtype != np.uint8
    if standardize == "none" or (standardize == "auto" and not real):
        return dataset, preprocessing
    if not real:
        raise ValueError(
            f"standardize=columns is for real numbers; {dataset.name} under {likelihood} has "
            f"{preprocessing.name}. Leave it out."
        )
    name = "columns standardized inside the model"
    name = name if preprocessing.name == "none" else f"{preprocessing.name}, {name}"
    return dataset, preprocessing._replace(name=name, standardizes=True)


def _for_bernoulli(
    dataset: Splits, binarize: str, grey_probabilities: bool
) -> tuple[Splits, Preprocessing]:
    top = _top_of_range(dataset)
    _require_range("bernoulli", dataset, top, "likelihood=gaussian, or rescale them")
    grey_split = _split_with_grey(dataset, top)
    if grey_split is None:
        name = "none" if top == 1 else "none (0 and 255 stand for 0 and 1)"
        return dataset, _scaled(dataset, top, name, "binary pixels", Support(0, top, True))
    if binarize == "auto" and top == 255 and not grey_probabilities:
        binarize = "dynamic"
    if binarize == "dynamic":
        return dataset, _dynamic_binarization(dataset, top)
    if binarize == "static":
        drawn = _drawn_once(dataset, top)
        scaled = _scaled(drawn, 1, "static binarization", "binary pixels", _grey(top))
        return drawn, scaled._replace(drawn_once=Conversion("binarized", top))
    if not grey_probabilities:
        raise ValueError(
            f"bernoulli needs binary pixels; the {grey_split} split of {dataset.name} has grey "
            "levels. Use binarize=dynamic, or grey_probabilities to take them as they are."
        )
    name = "grey levels as Bernoulli probabilities"
    unit = "grey levels, which are not binary pixels"
    return dataset, _scaled(dataset, top, name, unit, _grey(top))


def _for_real_values(
    dataset: Splits, binarize: str, grey_probabilities: bool
) -> tuple[Splits, Preprocessing]:
    _reject_binary_options(binarize, grey_probabilities)
    if dataset.train.dtype == np.uint8:
        return dataset, _uniform_dequantization(dataset)
    if np.issubdtype(dataset.train.dtype, np.integer):
        name = "integers as real numbers"
        return dataset, _scaled(dataset, 1, name, "integers taken as real numbers", REALS)
    _require_finite(dataset)
    return dataset, _scaled(dataset, 1, "none", "real numbers as stored", REALS)


def _for_unit_interval(
    dataset: Splits, binarize: str, grey_probabilities: bool
) -> tuple[Splits, Preprocessing]:
    _reject_binary_options(binarize, grey_probabilities)
    if dataset.train.dtype == np.uint8:
        return dataset, _uniform_dequantization(dataset)
    _require_range("continuous_bernoulli", dataset, 1, "likelihood=gaussian")
    unit = "values in [0, 1] as stored"
    return dataset, _scaled(dataset, 1, "none", unit, Support(0, 1, False))


def _for_8_bit_pixels(
    dataset: Splits, binarize: str, grey_probabilities: bool
) -> tuple[Splits, Preprocessing]:
    _reject_binary_options(binarize, grey_probabilities)
    if dataset.train.dtype != np.uint8:
        raise ValueError(
            f"this likelihood needs 8-bit integers (uint8); {dataset.name} is stored as "
            f"{dataset.train.dtype}. Use likelihood=gaussian, or store it as uint8."
        )
    name, support = "none (integers 0 to 255)", Support(0, 255, True)
    return dataset, _scaled(dataset, 1, name, "8-bit pixels", support)


def _for_counts(
    dataset: Splits, binarize: str, grey_probabilities: bool
) -> tuple[Splits, Preprocessing]:
    _reject_binary_options(binarize, grey_probabilities)
    for split, values in _filled(dataset).items():
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= MOST_COUNTS):
            raise ValueError(
                f"counts must lie in [0, {MOST_COUNTS:,}]; the {split} split of {dataset.name} has "
                f"values from {low:.6g} to {high:.6g}. Use likelihood=gaussian."
            )
        if not are_whole(values):
            raise ValueError(
                f"counts must be whole numbers; the {split} split of {dataset.name} has fractions. "
                "Use likelihood=gaussian."
            )
    support = Support(0, MOST_COUNTS, True)
    return dataset, _scaled(dataset, 1, "none (counts)", "counts", support)


def _reject_binary_options(binarize: str, grey_probabilities: bool) -> None:
    if binarize in ("dynamic", "static") or grey_probabilities:
        flag = "grey_probabilities" if grey_probabilities else f"binarize={binarize}"
        raise ValueError(
            f"{flag} is for binary pixels, and the likelihood is for other data. Leave it out, or "
            "use likelihood=bernoulli."
        )


RULES = {
    "bernoulli": _for_bernoulli,
    "continuous_bernoulli": _for_unit_interval,
    "gaussian": _for_real_values,
    "laplace": _for_real_values,
    "discretized_logistic": _for_8_bit_pixels,
    "logistic_mixture": _for_8_bit_pixels,
    "color_logistic_mixture": _for_8_bit_pixels,
    "categorical": _for_8_bit_pixels,
    "poisson": _for_counts,
    "negative_binomial": _for_counts,
    "zero_inflated_negative_binomial": _for_counts,
}
"""Likelihood -> rule that prepares stored examples for it."""


def as_pixels(dataset: Splits) -> Splits:
    """Store whole numbers from 0 to 255, the highest above 127, as uint8; keep other data."""
    if dataset.train.dtype == np.uint8 or not _are_pixels(dataset):
        return dataset
    return dataset._replace(**{split: getattr(dataset, split).astype(np.uint8) for split in SPLITS})


def _are_pixels(dataset: Splits) -> bool:
    splits = list(_filled(dataset).values())
    low = min(values.min() for values in splits)
    high = max(values.max() for values in splits)
    return bool(low >= 0 and 128 <= high <= 255) and all(map(are_whole, splits))


def _grey(top: int) -> Support:
    """Support of grey levels: whole numbers up to 255, or real numbers up to 1."""
    return Support(0, top, top > 1)


def _scaled(dataset: Splits, top: int, name: str, unit: str, support: Support) -> Preprocessing:
    mean = _mean(dataset.train) / np.float32(top)
    return Preprocessing(Conversion("scaled", top), name, 0.0, unit, mean, support=support)


def _dynamic_binarization(dataset: Splits, top: int) -> Preprocessing:
    mean = _mean(dataset.train) / np.float32(top)
    conversion = Conversion("binarized", top)
    name = "dynamic binarization"
    return Preprocessing(conversion, name, 0.0, "binary pixels", mean, support=_grey(top))


def _uniform_dequantization(dataset: Splits) -> Preprocessing:
    mean = (_mean(dataset.train) + np.float32(0.5)) / np.float32(256)
    name = "uniform dequantization to [0, 1]"
    conversion, support = Conversion("dequantized", 256), Support(0, 255, True)
    return Preprocessing(conversion, name, 8.0, "8-bit pixels", mean, support=support)


def _drawn_once(dataset: Splits, top: int) -> Splits:
    """Draw every pixel once from Bernoulli(value / top), in the order of the examples.

    Training and validation split share one random stream and the test split has its own, so that
    the pixels of an example do not depend on num_validation.
    """
    learn = np.random.default_rng((STATIC_SEED, 0))
    test = np.random.default_rng((STATIC_SEED, 1))
    return dataset._replace(
        train=_draw(learn, dataset.train, top),
        validation=_draw(learn, dataset.validation, top),
        test=_draw(test, dataset.test, top),
    )


def _draw(rng: np.random.Generator, values: np.ndarray, top: int) -> np.ndarray:
    drawn = np.empty(values.shape, np.uint8)
    for rows in _chunks(values):
        uniform = rng.random(values[rows].shape, np.float32)
        drawn[rows] = uniform < values[rows] / np.float32(top)
    return drawn


def _top_of_range(dataset: Splits) -> int:
    """Stored value that stands for probability 1: 255 for 8-bit data, unless all are 0 or 1."""
    if dataset.train.dtype != np.uint8:
        return 1
    highest = {split: int(values.max()) for split, values in _filled(dataset).items()}
    binary = [split for split, value in highest.items() if value == 1]
    grey = [split for split, value in highest.items() if value > 1]
    if binary and grey:
        raise ValueError(
            f"The splits of {dataset.name} must share one scale; {binary[0]} has values up to 1, "
            f"{grey[0]} up to {highest[grey[0]]}. Rescale one of them."
        )
    return 255 if grey else 1


def _require_range(likelihood: str, dataset: Splits, top: int, remedy: str) -> None:
    for split, values in _filled(dataset).items():
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= top):
            raise ValueError(
                f"{likelihood} needs values in [0, {top}]; the {split} split of {dataset.name} has "
                f"values from {low:.6g} to {high:.6g}. Use {remedy}."
            )


def _require_finite(dataset: Splits) -> None:
    for split, values in _filled(dataset).items():
        low, high = values.min(), values.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError(
                f"The likelihood needs finite values; the {split} split of {dataset.name} has "
                f"values from {low:.6g} to {high:.6g}. Repair or drop such examples."
            )


def _split_with_grey(dataset: Splits, top: int) -> str | None:
    """Name of the first split with a value other than 0 and top, or None."""
    for split, values in _filled(dataset).items():
        if any(((chunk != 0) & (chunk != top)).any() for chunk in _chunked(values)):
            return split
    return None


def _filled(dataset: Splits) -> dict[str, np.ndarray]:
    splits = {split: getattr(dataset, split) for split in SPLITS}
    return {split: values for split, values in splits.items() if len(values)}


def _chunks(values: np.ndarray) -> Iterator[slice]:
    for start in range(0, len(values), EXAMPLES_AT_ONCE):
        yield slice(start, start + EXAMPLES_AT_ONCE)


def _chunked(values: np.ndarray) -> Iterator[np.ndarray]:
    return (values[rows] for rows in _chunks(values))


def _mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=0, dtype=np.float64).astype(np.float32)
