"""Logistic distributions over whole numbers, such as the pixel values 0 to 255, and mixtures."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxvae.cpu.softplus import softplus
from jaxvae.distributions.distribution import at_least_float32, check_event, check_shape
from jaxvae.distributions.scaled_difference import standardized

REMEDY = "Reshape the value, or build the network for its shape."


def log1mexp(log_size: jax.Array) -> jax.Array:
    """log(1 - exp(-t)) with t = exp(log_size), by whichever formula does not cancel.

    Ref: Maechler, Accurately Computing log(1 - exp(-|a|)), 2012.
    """
    size = jnp.exp(jnp.minimum(log_size, 10.0))  # exp(-exp(10)) is 0, and so are the gradients
    near = size < 0.5
    # If size underflows, the logarithm is log_size itself.
    small, large = jnp.where(near, jnp.maximum(size, 1e-15), 1.0), jnp.where(near, 1.0, size)
    by_expm1 = log_size + jnp.log(-jnp.expm1(-small) / small)
    return jnp.where(near, by_expm1, jnp.log1p(-jnp.exp(-large)))


def log_mass(value: jax.Array, loc: jax.Array, log_scale: jax.Array, num_values: int) -> jax.Array:
    """log P(v) for each entry, by sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(b - a)).

    The bins at the two ends extend to infinity: sigma(b) = 0 for the lowest, sigma(a) = 1 for the
    highest.
    """
    below = -softplus(standardized(loc - value - 0.5, log_scale))
    above = -softplus(standardized(value - loc - 0.5, log_scale))
    width = log1mexp(-log_scale)
    lowest, highest = value <= 0, value >= num_values - 1
    inside = (
        jnp.where(highest, 0.0, below)
        + jnp.where(lowest, 0.0, above)
        + jnp.where(lowest | highest, 0.0, width)
    )
    return jnp.where((value < 0) | (value > num_values - 1), -jnp.inf, inside)


def expectation(loc: jax.Array, log_scale: jax.Array, num_values: int) -> jax.Array:
    """E v for each entry: the sum over the bins k = 0 .. num_values - 2 of P(v > k)."""
    edges = jax.lax.broadcasted_iota(loc.dtype, (*loc.shape, num_values - 1), loc.ndim) + 0.5
    log_scale = jnp.broadcast_to(log_scale, loc.shape)
    steps = standardized(loc[..., None] - edges, log_scale[..., None])
    return jnp.sum(jax.nn.sigmoid(steps), axis=-1)


def draw(key: jax.Array, loc: jax.Array, log_scale: jax.Array, num_values: int) -> jax.Array:
    """Draw a logistic variable for each entry, rounded to the nearest value."""
    x = loc + jnp.exp(log_scale) * jax.random.logistic(key, loc.shape, loc.dtype)
    return jnp.clip(jnp.round(x), 0, num_values - 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DiscretizedLogistic:
    """A logistic variable rounded to 0 .. num_values-1; the event has the shape of `loc`.

        P(v) = sigma((v + 1/2 - loc) / s) - sigma((v - 1/2 - loc) / s),  s = exp(log_scale)

    for each entry; the lowest and the highest value include the tails, so that the masses add up
    to one. Values are whole numbers of any type, without dequantization. It is computed in log
    space: values and gradients are finite for log scales from -20 to 20, at any distance from loc;
    measured float32 error 3e-7 of the terms.

    Args:
        loc: [D] or any event shape, in the unit of the values.
        log_scale: loc's shape, or []: log scale in the same unit.
        num_values: number of values.

    Ref: Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow, 2016,
    NeurIPS; Salimans et al., PixelCNN++, 2017, ICLR.

    >>> p = DiscretizedLogistic(jnp.zeros(2), jnp.zeros(2), num_values=2)
    >>> print(f"{p.log_prob(jnp.array([0, 1])):.4f}")
    -1.4482
    """

    loc: jax.Array
    log_scale: jax.Array
    num_values: int = field(default=256, metadata=dict(static=True))
    reparameterized: ClassVar[bool] = False

    def parameters(self) -> tuple[jax.Array, jax.Array]:
        """loc and log_scale, at least float32.

        Raises:
            ValueError: log_scale is neither a scalar nor of loc's shape.
        """
        check_shape("DiscretizedLogistic", "log_scale", self.log_scale, "loc", jnp.shape(self.loc))
        loc, log_scale = at_least_float32(self.loc, self.log_scale)
        return loc, log_scale

    def sample(self, key: jax.Array) -> jax.Array:
        """Whole numbers, as floats, of the event's shape. Not differentiable."""
        return draw(key, *self.parameters(), self.num_values)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log mass of `value`, of loc's shape, entries 0 to num_values-1: a scalar in nats."""
        return jnp.sum(self.log_prob_per_entry(value))

    def log_prob_per_entry(self, value: jax.Array) -> jax.Array:
        """Log mass of each entry of `value`, of loc's shape, in nats."""
        check_event(value, jnp.shape(self.loc), "DiscretizedLogistic", REMEDY)
        value, loc, log_scale = at_least_float32(value, *self.parameters())
        return log_mass(value, loc, log_scale, self.num_values)

    def mean(self) -> jax.Array:
        """Expectation over the values, exact. loc differs: it is not rounded and has no ends."""
        return expectation(*self.parameters(), self.num_values)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DiscretizedLogisticMixture:
    """A mixture of M discretized logistics for each entry; the event shape is [*D].

        log p(x) = sum_d log sum_m softmax(logits_d)_m P(x_d; loc_dm, exp(log_scale_dm))

    with P as in DiscretizedLogistic. Entries are independent, and so are channels, other than in a
    `ColorLogisticMixture`. Measured float32 error 3e-7 of the terms.

    Args:
        logits: [*D, M]: log weights, up to a constant for each entry.
        loc: [*D, M], in the unit of the values.
        log_scale: [*D, M]: log scale in the same unit.
        num_values: number of values.

    Ref: Salimans et al., PixelCNN++, 2017, ICLR.

    >>> zeros = jnp.zeros((2, 3))
    >>> print(f"{DiscretizedLogisticMixture(zeros, zeros, zeros).log_prob(jnp.zeros(2)):.4f}")
    -0.9482
    """

    logits: jax.Array
    loc: jax.Array
    log_scale: jax.Array
    num_values: int = field(default=256, metadata=dict(static=True))
    reparameterized: ClassVar[bool] = False

    def parameters(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """logits, loc and log_scale, at least float32.

        Raises:
            ValueError: the three do not have the same shape [*D, M].
        """
        shapes = [jnp.shape(leaf) for leaf in (self.logits, self.loc, self.log_scale)]
        if len(set(shapes)) > 1 or not shapes[0]:
            raise ValueError(
                "DiscretizedLogisticMixture: logits, loc and log_scale must have the same shape "
                f"[*D, M], got {shapes}. Reshape them: nothing is broadcast."
            )
        logits, loc, log_scale = at_least_float32(self.logits, self.loc, self.log_scale)
        return logits, loc, log_scale

    def sample(self, key: jax.Array) -> jax.Array:
        """Whole numbers [*D], as floats. Not differentiable."""
        logits, loc, log_scale = self.parameters()
        key_component, key_value = jax.random.split(key)
        index = jax.random.categorical(key_component, logits)[..., None]
        loc, log_scale = (jnp.take_along_axis(p, index, axis=-1)[..., 0] for p in (loc, log_scale))
        return draw(key_value, loc, log_scale, self.num_values)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log mass of `value` [*D], entries 0 to num_values-1: a scalar in nats."""
        return jnp.sum(self.log_prob_per_entry(value))

    def log_prob_per_entry(self, value: jax.Array) -> jax.Array:
        """Log mass of each entry of `value` [*D], in nats."""
        event_shape = jnp.shape(self.logits)[:-1]
        check_event(value, event_shape, "DiscretizedLogisticMixture", REMEDY)
        value, logits, loc, log_scale = at_least_float32(value, *self.parameters())
        log_masses = log_mass(value[..., None], loc, log_scale, self.num_values)
        return jax.nn.logsumexp(jax.nn.log_softmax(logits) + log_masses, axis=-1)

    def mean(self) -> jax.Array:
        """Expectation over the values [*D], exact."""
        logits, loc, log_scale = self.parameters()
        means = expectation(loc, log_scale, self.num_values)
        return jnp.sum(jax.nn.softmax(logits) * means, axis=-1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ColorLogisticMixture:
    """A mixture of M discretized logistics for each pixel, over all its C channels; event [*D, C].

        log p(x) = sum_d log sum_m softmax(logits_d)_m prod_c P(x_dc; mu_dcm, exp(log_scale_dcm))
        mu_dcm = loc_dcm + sum_{j<c} coefficient_djcm (x_dj - (num_values - 1) / 2)

    with P as in DiscretizedLogistic: the channels of a pixel share a component, and the location of
    each is linear in the channels before it. Pixels are independent. With one channel it is
    DiscretizedLogisticMixture.

    Args:
        logits: [*D, M]: log weights, up to a constant for each pixel.
        loc: [*D, C, M], in the unit of the values: where channels before are in the middle.
        log_scale: [*D, C, M]: log scale in the same unit.
        coefficients: [*D, C (C - 1) / 2, M]: of channel 0 in 1; 0 and 1 in 2; and so on.
        num_values: number of values.

    Ref: Salimans et al., PixelCNN++, 2017, ICLR, section 2.2.

    >>> zeros = jnp.zeros((4, 4, 3, 5))
    >>> p = ColorLogisticMixture(zeros[:, :, 0], zeros, zeros, zeros)
    >>> p.sample(jax.random.key(0)).shape
    (4, 4, 3)
    """

    logits: jax.Array
    loc: jax.Array
    log_scale: jax.Array
    coefficients: jax.Array
    num_values: int = field(default=256, metadata=dict(static=True))
    reparameterized: ClassVar[bool] = False

    def parameters(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """logits, loc, log_scale and coefficients, at least float32.

        Raises:
            ValueError: the shapes do not fit each other.
        """
        leaves = (self.logits, self.loc, self.log_scale, self.coefficients)
        shapes = tuple(map(jnp.shape, leaves))
        channels = shapes[1][-2] if len(shapes[1]) > 1 else 0
        pixels, components = shapes[0][:-1], shapes[0][-1:]
        event, pairs = (*pixels, channels), (*pixels, channels * (channels - 1) // 2)
        if not channels or shapes[1:] != ((*event, *components),) * 2 + ((*pairs, *components),):
            raise ValueError(
                "ColorLogisticMixture: logits must be [*D, M], loc and log_scale [*D, C, M] and "
                f"coefficients [*D, C (C - 1) / 2, M], got {shapes}. Reshape them: nothing is "
                "broadcast."
            )
        logits, loc, log_scale, coefficients = at_least_float32(*leaves)
        return logits, loc, log_scale, coefficients

    def sample(self, key: jax.Array) -> jax.Array:
        """Whole numbers [*D, C], as floats. Not differentiable."""
        logits, *of_channels = self.parameters()
        key_component, key_value = jax.random.split(key)
        index = jax.random.categorical(key_component, logits)[..., None, None]
        chosen = (jnp.take_along_axis(p, index, axis=-1)[..., 0] for p in of_channels)
        loc, log_scale, coefficients = chosen
        keys = jax.random.split(key_value, loc.shape[-1])
        values: list[jax.Array] = []
        for c, key_channel in enumerate(keys):
            mu = loc[..., c] + self._shift(coefficients, values)
            values.append(draw(key_channel, mu, log_scale[..., c], self.num_values))
        return jnp.stack(values, axis=-1)

    def _shift(self, coefficients: jax.Array, before: list[jax.Array]) -> jax.Array | float:
        """Shift of a channel's location by the channels before it; the last axis has the pairs."""
        first, middle = len(before) * (len(before) - 1) // 2, (self.num_values - 1) / 2
        terms = (coefficients[..., first + j] * (x - middle) for j, x in enumerate(before))
        return sum(terms, start=0.0)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log mass of `value` [*D, C], entries 0 to num_values-1: a scalar in nats."""
        return jnp.sum(self.log_prob_per_entry(value))

    def log_prob_per_entry(self, value: jax.Array) -> jax.Array:
        """Log mass of each pixel of `value` [*D, C], in nats: [*D], so that masks hide pixels."""
        check_event(value, jnp.shape(self.loc)[:-1], "ColorLogisticMixture", REMEDY)
        value, logits, loc, log_scale, coefficients = at_least_float32(value, *self.parameters())
        coefficients = jnp.moveaxis(coefficients, -2, -1)  # [*D, M, pairs]
        channels = [value[..., c, None] for c in range(value.shape[-1])]
        shifts = [self._shift(coefficients, channels[:c]) for c in range(len(channels))]
        mu = jnp.stack([loc[..., c, :] + shift for c, shift in enumerate(shifts)], axis=-2)
        log_masses = jnp.sum(log_mass(value[..., None], mu, log_scale, self.num_values), axis=-2)
        return jax.nn.logsumexp(jax.nn.log_softmax(logits) + log_masses, axis=-1)

    def mean(self) -> jax.Array:
        """Expectation over the values [*D, C], with the channels before a channel at theirs.

        It is exact for channel 0 and near for the others, unless their distribution reaches the
        ends or its scale is below about 0.3, where rounding matters: there is no formula then.
        """
        logits, loc, log_scale, coefficients = self.parameters()
        coefficients = jnp.moveaxis(coefficients, -2, -1)
        means: list[jax.Array] = []
        for c in range(loc.shape[-2]):
            mu = loc[..., c, :] + self._shift(coefficients, means)
            means.append(expectation(mu, log_scale[..., c, :], self.num_values))
        weights = jax.nn.softmax(logits)[..., None, :]
        return jnp.sum(weights * jnp.stack(means, axis=-2), axis=-1)
