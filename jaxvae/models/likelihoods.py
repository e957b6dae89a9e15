"""Likelihood families: map the outputs of a decoder network to p(x|z)."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.distributions import (
    LOG_SCALE_LIMIT,
    Bernoulli,
    Categorical,
    ColorLogisticMixture,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Distribution,
    Gaussian,
    Laplace,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    soft_clamp,
)

Sigma = float | tuple[float, ...] | Literal["learned", "per_channel", "per_pixel", "optimal"]
NUM_VALUES = 256
"""Number of values of an 8-bit pixel, 0 to 255."""
MIDDLE = (NUM_VALUES - 1) / 2
"""Middle, and half the range, of the pixel values: networks see and return pixels in [-1, 1]."""
NUM_COMPONENTS = 5
"""Number of components of a mixture of discretized logistics."""
MOST_COLOR_CHANNELS = 16
"""Most channels of a pixel that `color_logistic_mixture` accepts."""
LOG_RATE_LIMIT = 15.0
"""`jaxvae.soft_clamp` limits log rates of counts to (-15, 15): rates below 3.3 million."""


class Likelihood(NamedTuple):
    """A family p(x|z), as pure functions.

    Attributes:
        init: data_scale -> the family's own parameters, {} if it has no parameters.
        distribution: (family's parameters, output) -> p(x|z); the output of the network is
            [*data_shape], or [*data_shape, num_outputs] with several outputs per dimension, or
            [*data_shape[:-1], num_outputs] with those of a whole pixel.
        output_at: (mean [*data_shape], data_scale) -> an output whose p(x|z) has about that mean,
            as the initial output of the network.
        num_outputs: outputs of the network per data dimension, or per pixel.
        network_input: x -> the input of the encoder network, of order 1.
        with_log_scale: (family's parameters, log sigma []) -> parameters with that scale; None
            unless sigma is computed from the data instead of learned by gradient.
        per_pixel: True if the outputs are those of a pixel, the last axis of the data, as a whole.
    """

    init: Callable[[float], dict[str, jax.Array]]
    distribution: Callable[[Any, jax.Array], Distribution]
    output_at: Callable[[jax.Array, float], jax.Array]
    num_outputs: int = 1
    per_pixel: bool = False
    network_input: Callable[[jax.Array], jax.Array] = lambda x: x
    with_log_scale: Callable[[Any, jax.Array], dict[str, jax.Array]] | None = None


def bernoulli() -> Likelihood:
    """Pixels that are 0 or 1; the outputs are logits."""
    return Likelihood(
        init=lambda data_scale: {},
        distribution=lambda params, output: Bernoulli(output),
        output_at=lambda mean, data_scale: jax.scipy.special.logit(jnp.clip(mean, 0.01, 0.99)),
    )


def continuous_bernoulli() -> Likelihood:
    """Grey levels in [0, 1]; the outputs are logits.

    Ref: Loaiza-Ganem & Cunningham, The continuous Bernoulli, 2019, NeurIPS.
    """
    return Likelihood(
        init=lambda data_scale: {},
        distribution=lambda params, output: ContinuousBernoulli(output),
        output_at=lambda mean, data_scale: _logits_of_grey(jnp.clip(mean, 0.02, 0.98)),
    )


def gaussian(sigma: Sigma, data_shape: tuple[int, ...]) -> Likelihood:
    """N(f(z), diag(sigma^2)) with one of five kinds of sigma; the outputs are f(z).

    Args:
        sigma: a number, or one for each entry of the last axis: fixed. "learned": one parameter.
            "per_channel": a parameter for each entry of the last axis. "per_pixel": an output of
            the network for each dimension. "optimal": the root mean squared error over the global
            batch while training; evaluation uses its running value over the training split, which
            is stored among the parameters.
        data_shape: shape of one example.

    Raises:
        ValueError: sigma is neither a positive number nor one of these words.

    Ref: Doersch 2016, arXiv 1606.05908, section 2.4.3; Rybkin, Daniilidis & Levine, Simple and
    Effective VAE Training with Calibrated Decoders (sigma-VAE), 2021, ICML.

    >>> float(gaussian(0.5, (2,)).distribution({}, jnp.zeros(2)).log_scale)
    -0.6931471824645996
    """
    if sigma != "optimal":
        return _scaled(Gaussian, sigma, data_shape)
    fixed = jax.lax.stop_gradient
    return Likelihood(
        init=lambda data_scale: {"log_scale": jnp.log(jnp.float32(data_scale))},
        distribution=lambda params, output: Gaussian(output, fixed(params["log_scale"])),
        output_at=lambda mean, data_scale: mean,
        with_log_scale=lambda params, log_scale: {**params, "log_scale": log_scale},
    )


def laplace(sigma: Sigma, data_shape: tuple[int, ...]) -> Likelihood:
    """Laplace(f(z), b): absolute errors in place of squares; `sigma` sets the scale b.

    Args:
        sigma, data_shape: as in `gaussian`, without "optimal".

    Raises:
        ValueError: as in `gaussian`.
    """
    if sigma == "optimal":
        raise ValueError("sigma=optimal needs likelihood=gaussian, got laplace. Use learned.")
    return _scaled(Laplace, sigma, data_shape)


def _scaled(
    family: Callable[[jax.Array, jax.Array], Distribution],
    sigma: Sigma,
    data_shape: tuple[int, ...],
) -> Likelihood:
    """A location-scale family whose scale is fixed, learned or an output of the network."""
    if sigma == "per_pixel":
        return Likelihood(
            init=lambda data_scale: {},
            distribution=lambda params, out: family(out[..., 0], soft_clamp(out[..., 1])),
            output_at=lambda mean, data_scale: jnp.stack(
                [mean, jnp.full_like(mean, _before_clamp(data_scale))], axis=-1
            ),
            num_outputs=2,
        )
    if sigma in ("learned", "per_channel"):
        shape = data_shape[-1:] if sigma == "per_channel" else ()
        spread = data_shape if sigma == "per_channel" else ()
        return Likelihood(
            init=lambda scale: {"log_scale": jnp.full(shape, _before_clamp(scale), jnp.float32)},
            distribution=lambda params, output: family(
                output, jnp.broadcast_to(soft_clamp(params["log_scale"]), spread)
            ),
            output_at=lambda mean, data_scale: mean,
        )
    log_scale = _log_of(sigma, data_shape)
    return Likelihood(
        init=lambda data_scale: {},
        distribution=lambda params, output: family(output, jnp.asarray(log_scale)),
        output_at=lambda mean, data_scale: mean,
    )


def _log_of(sigma: float | tuple[float, ...] | str, data_shape: tuple[int, ...]) -> np.ndarray:
    """log sigma of a fixed sigma, float32: [], or [*data_shape] if given for each column."""
    sizes = () if isinstance(sigma, str) else np.shape(sigma)
    numbers = np.full(1, np.nan) if isinstance(sigma, str) else np.asarray(sigma, np.float64)
    if sizes not in ((), data_shape[-1:]) or not np.all((numbers > 0) & (numbers < math.inf)):
        raise ValueError(
            "sigma must be a positive number, learned, per_channel, per_pixel or optimal, got "
            f"{sigma!r}."
        )
    return np.broadcast_to(np.log(numbers).astype(np.float32), data_shape if sizes else ())


def _before_clamp(scale: float) -> float:
    """Inverse of `soft_clamp` at log scale."""
    ratio = math.log(scale) / LOG_SCALE_LIMIT
    return LOG_SCALE_LIMIT * math.atanh(min(max(ratio, -0.999), 0.999))


def discretized_logistic() -> Likelihood:
    """8-bit pixels 0 to 255; the outputs are location and log scale of a logistic."""

    def output_at(mean: jax.Array, data_scale: float) -> jax.Array:
        log_scale = jnp.full_like(mean, _before_clamp(0.5 * data_scale / MIDDLE))
        return jnp.stack([mean / MIDDLE - 1, log_scale], axis=-1)

    return Likelihood(
        init=lambda data_scale: {},
        distribution=lambda params, out: DiscretizedLogistic(*_logistic(out[..., 0], out[..., 1])),
        output_at=output_at,
        num_outputs=2,
        network_input=lambda x: x / MIDDLE - 1,
    )


def logistic_mixture() -> Likelihood:
    """8-bit pixels 0 to 255, each channel with a mixture of five discretized logistics of its own.

    Ref: Salimans et al., PixelCNN++, 2017, ICLR; `color_logistic_mixture` has its conditioning.
    """

    def distribution(params: Any, out: jax.Array) -> Distribution:
        logits, loc, log_scale = jnp.split(out, 3, axis=-1)
        return DiscretizedLogisticMixture(logits, *_logistic(loc, log_scale))

    def output_at(mean: jax.Array, data_scale: float) -> jax.Array:
        apart = jnp.linspace(-1, 1, NUM_COMPONENTS) * data_scale / MIDDLE
        loc = (mean / MIDDLE - 1)[..., None] + apart.reshape((1,) * mean.ndim + (-1,))
        log_scale = jnp.full_like(loc, _before_clamp(0.5 * data_scale / MIDDLE))
        return jnp.concatenate([jnp.zeros_like(loc), loc, log_scale], axis=-1)

    return Likelihood(
        init=lambda data_scale: {},
        distribution=distribution,
        output_at=output_at,
        num_outputs=3 * NUM_COMPONENTS,
        network_input=lambda x: x / MIDDLE - 1,
    )


def color_logistic_mixture(data_shape: tuple[int, ...]) -> Likelihood:
    """8-bit pixels 0 to 255 in colour: a mixture of five for each pixel, over all its channels.

    The location of a channel depends on the channels before it, with coefficients in (-1, 1).

    Args:
        data_shape: [..., C], C at most 16, with C (C - 1) / 2 coefficients for each component.

    Raises:
        ValueError: there are more channels.

    Ref: Salimans et al., PixelCNN++, 2017, ICLR, section 2.2.
    """
    channels, m = data_shape[-1], NUM_COMPONENTS
    if channels > MOST_COLOR_CHANNELS:
        raise ValueError(
            f"likelihood=color_logistic_mixture is for at most {MOST_COLOR_CHANNELS} channels, got "
            f"{channels}: all pairs of them get coefficients. Use logistic_mixture."
        )
    pairs = channels * (channels - 1) // 2
    ends = np.cumsum([m, channels * m, channels * m])

    def distribution(params: Any, out: jax.Array) -> Distribution:
        logits, *of_channels = jnp.split(out, ends, axis=-1)
        by_channel = (part.reshape(*part.shape[:-1], -1, m) for part in of_channels)
        loc, log_scale, coefficients = by_channel
        return ColorLogisticMixture(logits, *_logistic(loc, log_scale), jnp.tanh(coefficients))

    def output_at(mean: jax.Array, data_scale: float) -> jax.Array:
        start = logistic_mixture().output_at(mean, data_scale)  # [..., C, 3 M]
        parts = (part.reshape(*mean.shape[:-1], -1) for part in jnp.split(start, 3, axis=-1))
        logits, loc, log_scale = parts
        coefficients = jnp.zeros((*mean.shape[:-1], pairs * m))
        return jnp.concatenate([logits[..., :m], loc, log_scale, coefficients], axis=-1)

    return Likelihood(
        init=lambda data_scale: {},
        distribution=distribution,
        output_at=output_at,
        num_outputs=(1 + 2 * channels + pairs) * m,
        per_pixel=True,
        network_input=lambda x: x / MIDDLE - 1,
    )


def categorical() -> Likelihood:
    """8-bit pixels 0 to 255 as unordered categories; the outputs are 256 logits per pixel."""

    def output_at(mean: jax.Array, data_scale: float) -> jax.Array:
        start = DiscretizedLogistic(mean, jnp.full_like(mean, math.log(0.5 * data_scale)))
        values = jnp.arange(NUM_VALUES, dtype=mean.dtype)
        log_mass = lambda v: start.log_prob_per_entry(jnp.full_like(mean, v))
        return jnp.moveaxis(jax.vmap(log_mass)(values), 0, -1)

    return Likelihood(
        init=lambda data_scale: {},
        distribution=lambda params, output: Categorical(output),
        output_at=output_at,
        num_outputs=NUM_VALUES,
        network_input=lambda x: x / MIDDLE - 1,
    )


def poisson() -> Likelihood:
    """Counts 0, 1, 2, ...; the outputs are log rates, and the encoder sees log(1 + x)."""
    return Likelihood(
        init=lambda data_scale: {},
        distribution=lambda params, output: Poisson(soft_clamp(output, LOG_RATE_LIMIT)),
        output_at=_log_rate_at,
        network_input=_log_counts,
    )


def negative_binomial(data_shape: tuple[int, ...]) -> Likelihood:
    """Counts whose variance exceeds their mean; the outputs are log means.

    The dispersion is learned, one parameter per dimension.

    Ref: Lopez et al., Deep generative modeling for single-cell transcriptomics, 2018, Nat. Methods.
    """
    return Likelihood(
        init=lambda data_scale: {"log_dispersion": jnp.zeros(data_shape)},
        distribution=lambda params, output: NegativeBinomial(
            soft_clamp(output, LOG_RATE_LIMIT), soft_clamp(params["log_dispersion"])
        ),
        output_at=_log_rate_at,
        network_input=_log_counts,
    )


def zero_inflated_negative_binomial(data_shape: tuple[int, ...]) -> Likelihood:
    """Negative binomial counts with extra zeros; the outputs are log means and zero logits.

    Ref: Lopez et al. 2018.
    """

    def output_at(mean: jax.Array, data_scale: float) -> jax.Array:
        return jnp.stack([_log_rate_at(mean, data_scale), jnp.full_like(mean, -3.0)], axis=-1)

    return Likelihood(
        init=lambda data_scale: {"log_dispersion": jnp.zeros(data_shape)},
        distribution=lambda params, out: ZeroInflatedNegativeBinomial(
            soft_clamp(out[..., 0], LOG_RATE_LIMIT),
            soft_clamp(params["log_dispersion"]),
            out[..., 1],
        ),
        output_at=output_at,
        num_outputs=2,
        network_input=_log_counts,
    )


def _logistic(loc: jax.Array, log_scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Convert location and log scale from the unit of [-1, 1] to that of the pixel values."""
    return MIDDLE * (1 + loc), math.log(MIDDLE) + soft_clamp(log_scale)


def _log_counts(x: jax.Array) -> jax.Array:
    """log(1 + x), but x below 0, so that a negative pseudo-input still has a gradient."""
    return jnp.where(x < 0, x, jnp.log1p(jnp.maximum(x, 0)))


def _log_rate_at(mean: jax.Array, data_scale: float) -> jax.Array:
    ratio = jnp.log(jnp.maximum(mean, 1e-3)) / LOG_RATE_LIMIT
    return LOG_RATE_LIMIT * jnp.arctanh(jnp.minimum(ratio, 0.99))


def _logits_of_grey(mean: jax.Array) -> jax.Array:
    """Logits at which a continuous Bernoulli has this mean, by bisection."""

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        below = ContinuousBernoulli(middle).mean() < mean
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    limit = jnp.full_like(mean, 60.0)
    return jax.lax.fori_loop(0, 40, halve, (-limit, limit))[0]


LOCATION_SCALE = ("gaussian", "laplace")
"""Likelihoods with a location and a scale: they have a sigma and the unit of the columns."""
LIKELIHOODS: dict[str, Callable[[Sigma, tuple[int, ...]], Likelihood]] = {
    "bernoulli": lambda sigma, data_shape: bernoulli(),
    "continuous_bernoulli": lambda sigma, data_shape: continuous_bernoulli(),
    "gaussian": gaussian,
    "laplace": laplace,
    "discretized_logistic": lambda sigma, data_shape: discretized_logistic(),
    "logistic_mixture": lambda sigma, data_shape: logistic_mixture(),
    "color_logistic_mixture": lambda sigma, data_shape: color_logistic_mixture(data_shape),
    "categorical": lambda sigma, data_shape: categorical(),
    "poisson": lambda sigma, data_shape: poisson(),
    "negative_binomial": lambda sigma, data_shape: negative_binomial(data_shape),
    "zero_inflated_negative_binomial": lambda sigma, data_shape: zero_inflated_negative_binomial(
        data_shape
    ),
}
"""Values of the model builders' argument `likelihood`. Add yours here."""


def likelihood_named(name: str, sigma: Sigma, data_shape: tuple[int, ...]) -> Likelihood:
    """The likelihood of that name.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in LIKELIHOODS:
        raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {name!r}.")
    return LIKELIHOODS[name](sigma, data_shape)
