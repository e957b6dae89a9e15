"""Monotone rational-quadratic splines: invertible maps of one number."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

NUM_BINS = 8
BOUND = 5.0
"""B: a spline maps [-B, B] to itself."""
MIN_BIN = 1e-3
"""Smallest width and height of a bin, in units of the whole box."""
MIN_SLOPE = 1e-3
"""Smallest slope at an inner knot."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Spline:
    """A monotone map of [-B, B] to itself by rational-quadratic pieces; the identity outside.

        y = y_k + h (s t^2 + d_k t u) / (s (t^2 + u^2) + (d_k + d_k+1) t u)

    between knots k and k+1, w apart in x and h in y, with s = h / w, t = (x - x_k) / w and
    u = 1 - t; d_k is the slope at knot k. Value and log slope are sums of positive terms in both
    directions, so that only differences of knots cancel: the float32 error is about
    1e-6 B (1 + slope) for a value, and 1e-6 B (1 / w + 1 / h) for a log slope.

    Args:
        x: [K + 1] knots, increasing from -B to B.
        y: [K + 1] images of the knots, increasing from -B to B.
        slopes: [K + 1] positive slopes at the knots, 1 at both ends.

    Ref: Durkan et al., Neural Spline Flows, 2019, NeurIPS, section 3.1; Gregory & Delbourgo,
    Piecewise Rational Quadratic Interpolation to Monotonic Data, 1982, IMA J. Numer. Anal.

    >>> y, log_slope = Spline.from_raw(jnp.zeros(23)).forward(jnp.array(2.5))
    >>> print(f"{y:.4f}, {jnp.abs(log_slope):.4f}")
    2.5000, 0.0000
    """

    x: jax.Array
    y: jax.Array
    slopes: jax.Array

    @classmethod
    def from_raw(cls, raw: jax.Array) -> "Spline":
        """Make a spline from unconstrained parameters; zeros give the identity.

        Args:
            raw: [3 K - 1]: K logits of the widths, K logits of the heights, K - 1 raw slopes.
        """
        # The offset makes the slope of a raw 0 exactly 1.
        num_bins = (raw.shape[0] + 1) // 3
        widths, heights, slopes = jnp.split(raw, (num_bins, 2 * num_bins))
        slopes = MIN_SLOPE + jax.nn.softplus(slopes + math.log(math.expm1(1 - MIN_SLOPE)))
        return cls(_knots(widths), _knots(heights), jnp.pad(slopes, 1, constant_values=1.0))

    def forward(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """y and log dy/dx of one number x."""
        inside = jnp.abs(x) < self.x[-1]
        x_safe = jnp.where(inside, x, 0.0)
        (x_0, x_1), (y_0, y_1), slopes = self._bin(x_safe, self.x)
        width, height = x_1 - x_0, y_1 - y_0
        t, u = (x_safe - x_0) / width, (x_1 - x_safe) / width
        s = height / width
        y = y_0 + height * (s * t * t + slopes[0] * t * u) / _denominator(s, slopes, t, u)
        return jnp.where(inside, y, x), jnp.where(inside, _log_slope(s, slopes, t, u), 0.0)

    def inverse(self, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x and log dx/dy of one number y.

        With v = (y - y_k) / h, r = d_k (1 - v) - d_k+1 v and the root
        D = sqrt(r^2 + 4 s^2 v (1 - v)), the paper's quadratic has the solution
        t / u = 2 s v / (r + D) = (D - r) / (2 s (1 - v)); the form without cancellation is used.
        """
        inside = jnp.abs(y) < self.y[-1]
        y_safe = jnp.where(inside, y, 0.0)
        (x_0, x_1), (y_0, y_1), slopes = self._bin(y_safe, self.y)
        width, height = x_1 - x_0, y_1 - y_0
        v, rest = (y_safe - y_0) / height, (y_1 - y_safe) / height
        s = height / width
        r = slopes[0] * rest - slopes[1] * v
        root = jnp.abs(r) + jnp.sqrt(r * r + 4 * s * s * v * rest)
        t_share = jnp.where(r >= 0, 2 * s * v, root)
        u_share = jnp.where(r >= 0, root, 2 * s * rest)
        t, u = t_share / (t_share + u_share), u_share / (t_share + u_share)
        x = x_0 + width * t
        return jnp.where(inside, x, y), jnp.where(inside, -_log_slope(s, slopes, t, u), 0.0)

    def _bin(self, value: jax.Array, knots: jax.Array) -> tuple[tuple[jax.Array, jax.Array], ...]:
        """Pairs of x, y and slope at the two ends of the bin of `knots` that contains `value`."""
        k = jnp.sum(value >= knots[1:-1])
        return tuple((ends[k], ends[k + 1]) for ends in (self.x, self.y, self.slopes))


def _knots(raw: jax.Array) -> jax.Array:
    """Knots [K + 1] from -B to B, whose distances are a softmax with a lower limit."""
    fractions = MIN_BIN + (1 - MIN_BIN * raw.shape[0]) * jax.nn.softmax(raw)
    inner = BOUND * (2 * jnp.cumsum(fractions)[:-1] - 1)
    return jnp.pad(inner, 1, constant_values=(-BOUND, BOUND))


def _denominator(
    s: jax.Array, slopes: tuple[jax.Array, jax.Array], t: jax.Array, u: jax.Array
) -> jax.Array:
    return s * (t * t + u * u) + (slopes[0] + slopes[1]) * t * u


def _log_slope(
    s: jax.Array, slopes: tuple[jax.Array, jax.Array], t: jax.Array, u: jax.Array
) -> jax.Array:
    """log dy/dx (Durkan et al. 2019, section 3.1)."""
    numerator = slopes[1] * t * t + 2 * s * t * u + slopes[0] * u * u
    return 2 * (jnp.log(s) - jnp.log(_denominator(s, slopes, t, u))) + jnp.log(numerator)
