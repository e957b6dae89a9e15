"""Gaussians with a diagonal covariance, and the clamp that limits log scales."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxvae.cpu import threefry
from jaxvae.distributions.distribution import at_least_float32, check_event, check_shape
from jaxvae.distributions.scaled_difference import standardized

LOG_SCALE_LIMIT = 7.0
"""Default limit of `soft_clamp`."""


def soft_clamp(log_scale: jax.Array, limit: float = LOG_SCALE_LIMIT) -> jax.Array:
    """Limit a log scale to (-limit, limit): `limit * tanh(log_scale / limit)`.

    The clamp is smooth and odd, with slope 1 at 0, so that a network can neither overflow a
    variance nor lose its gradient at a hard edge. The default limits scales to 0.0009 ... 1097.
    Ref: Vahdat & Kautz, NVAE, 2020 (there with limit 5).

    >>> float(soft_clamp(jnp.array(1e6)))
    7.0
    """
    return limit * jnp.tanh(log_scale / limit)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gaussian:
    """N(loc, diag(exp(log_scale))^2); the event has the shape of `loc`.

        log p(x) = sum_d -1/2 ((x_d - loc_d) / exp(log_scale_d))^2 - log_scale_d - 1/2 log 2 pi

    As a posterior it is the encoder's q(z|x). As a likelihood N(f(z), sigma^2 I) it takes a scalar
    log_scale = log sigma, shared by all coordinates.

    Args:
        loc: [D] or any event shape: the mean.
        log_scale: loc's shape, or []: log standard deviation.

    Ref: Doersch, Tutorial on Variational Autoencoders, 2016, arXiv 1606.05908.

    >>> print(f"{Gaussian(jnp.zeros(2), jnp.zeros(2)).log_prob(jnp.zeros(2)):.4f}")
    -1.8379
    """

    loc: jax.Array
    log_scale: jax.Array

    @classmethod
    def standard(cls, dim: int) -> "Gaussian":
        """N(0, I) over [dim]: the usual prior."""
        return cls(jnp.zeros(dim), jnp.zeros(dim))

    def with_shape(self, shape: tuple[int, ...]) -> "Gaussian":
        """The same distribution of an event of another shape."""
        scales = self.log_scale if jnp.ndim(self.log_scale) == 0 else self.log_scale.reshape(shape)
        return Gaussian(jnp.reshape(self.loc, shape), scales)

    def parameters(self) -> tuple[jax.Array, jax.Array]:
        """loc and log_scale, at least float32.

        Raises:
            ValueError: log_scale is neither a scalar nor of loc's shape.
        """
        check_shape("Gaussian", "log_scale", self.log_scale, "loc", jnp.shape(self.loc))
        loc, log_scale = at_least_float32(self.loc, self.log_scale)
        return loc, log_scale

    def sample(self, key: jax.Array) -> jax.Array:
        """z = loc + exp(log_scale) * eps with eps ~ N(0, I) (Doersch 2016, figure 4)."""
        loc, log_scale = self.parameters()
        return loc + jnp.exp(log_scale) * threefry.normal(key, loc.shape, loc.dtype)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density of `value`, of loc's shape: a scalar in nats."""
        return jnp.sum(self.log_prob_per_entry(value))

    def log_prob_per_entry(self, value: jax.Array) -> jax.Array:
        """Log density of each entry of `value`, of loc's shape, in nats."""
        remedy = "Reshape the value, or build the network for its shape."
        check_event(value, jnp.shape(self.loc), "Gaussian", remedy)
        value, loc, log_scale = at_least_float32(value, *self.parameters())
        # An infinite eps would turn a gradient of 0 into NaN, for example in a mixture's component.
        most = 0.25 * float(jnp.finfo(value.dtype).max)  # its square is still infinite
        eps = jnp.clip(standardized(value - loc, log_scale), -most, most)
        return -0.5 * jnp.square(eps) - log_scale - 0.5 * math.log(2 * math.pi)

    def mean(self) -> jax.Array:
        """Expectation: loc."""
        return self.loc
