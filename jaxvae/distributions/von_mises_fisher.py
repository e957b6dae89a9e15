"""Distributions on the sphere of unit vectors: von Mises-Fisher and uniform."""

import math
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp

from jaxvae.distributions.bessel import (
    bessel_ratio_less_one,
    gauss_legendre,
    log_mean_exp_cosine,
    log_sin,
    reach,
)
from jaxvae.distributions.distribution import at_least_float32, check_event
from jaxvae.distributions.rejection import first_accepted

REMEDY = "Reshape the value, or build the encoder for its latent_dim."
MAX_DIM = 128
"""Largest Z for which the integrals over the sphere are tested to have their stated error."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UniformSphere:
    """The uniform density on the sphere S^(Z-1) of unit vectors of length Z, by surface area.

        log p(x) = log Gamma(Z/2) - log 2 - Z/2 log pi

    Args:
        dim: Z, at least 2.

    Ref: Davidson et al., Hyperspherical Variational Auto-Encoders, 2018, UAI.

    >>> print(f"{UniformSphere(3).log_prob(jnp.array([0.0, 0.0, 1.0])):.4f}")  # -log 4 pi
    -2.5310
    """

    dim: int = field(metadata=dict(static=True))

    def __post_init__(self) -> None:
        _check_dim("UniformSphere", "dim", self.dim)

    def sample(self, key: jax.Array) -> jax.Array:
        """A unit vector [Z], in jax's default float type."""
        return _uniform_direction(key, self.dim, jnp.zeros(()).dtype)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density of the unit vector `value` [Z]: a scalar in nats."""
        check_event(value, (self.dim,), "UniformSphere", REMEDY)
        (value,) = at_least_float32(value)
        return jnp.asarray(_log_uniform_density(self.dim), value.dtype)

    def mean(self) -> jax.Array:
        """Expectation: the centre of the sphere."""
        return jnp.zeros(self.dim)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VonMisesFisher:
    """vMF(loc, k), the density on the unit sphere S^(Z-1) that falls with the angle to loc.

        log p(x) = k loc.x + v log k - (v + 1) log 2 pi - log I_v(k)    with v = Z/2 - 1

    computed as -k/2 |x - loc|^2 plus a constant, which is the same for unit vectors but does not
    cancel at large k. At k = 0 the density is uniform; at large k each tangent coordinate has the
    variance 1/k. The encoder must normalize loc; this class does not.

    Args:
        loc: [Z], a unit vector, Z at least 2: the mean direction.
        log_concentration: [] log k.

    Ref: Davidson et al., Hyperspherical Variational Auto-Encoders, 2018, UAI.

    >>> p = VonMisesFisher(jnp.array([0.0, 0.0, 1.0]), jnp.log(2.0))
    >>> print(f"{p.log_prob(p.loc):.4f}")  # 2 + log 2 / (4 pi sinh 2)
    -1.1262
    """

    loc: jax.Array
    log_concentration: jax.Array

    def parameters(self) -> tuple[jax.Array, jax.Array]:
        """loc and k, at least float32.

        Raises:
            ValueError: log_concentration is not a scalar, or loc is not a vector of 2 to 128
                entries.
        """
        if jnp.shape(self.log_concentration) != () or jnp.ndim(self.loc) != 1:
            raise ValueError(
                "VonMisesFisher: loc must be one unit vector [Z] and log_concentration a scalar, "
                f"got shapes {jnp.shape(self.loc)} and {jnp.shape(self.log_concentration)}. "
                "Build it for one example; jax.vmap adds the batch."
            )
        _check_dim("VonMisesFisher", "loc's length", len(self.loc))
        loc, log_concentration = at_least_float32(self.loc, self.log_concentration)
        return loc, jnp.exp(log_concentration)

    def sample(self, key: jax.Array) -> jax.Array:
        """A unit vector [Z], differentiable by loc and by log_concentration.

        It draws an angle to loc by rejection in a fixed number of rounds and a uniform direction
        around the first axis, and reflects this axis to loc. The gradient w.r.t. k is that of the
        angle's quantile function.

        Ref: Ulrich, Computer Generation of Distributions on the m-Sphere, 1984, Applied
        Statistics; Wood, Simulation of the von Mises Fisher Distribution, 1994; Figurnov, Mohamed
        & Mnih, Implicit Reparameterization Gradients, 2018, NeurIPS.
        """
        loc, concentration = self.parameters()
        key_angle, key_direction = jax.random.split(key)
        fixed = _draw_angle(key_angle, loc.size, jax.lax.stop_gradient(concentration))
        angle = _move_with_concentration(loc.size, fixed, concentration)
        around = jnp.sin(angle) * _uniform_direction(key_direction, loc.size - 1, loc.dtype)
        return _reflect(jnp.cos(angle), around, loc)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density of the unit vector `value` [Z] by surface area: a scalar in nats."""
        check_event(value, jnp.shape(self.loc), "VonMisesFisher", REMEDY)
        value, loc, concentration = at_least_float32(value, *self.parameters())
        exponent = -0.5 * concentration * jnp.sum(jnp.square(value - loc))
        log_normalizer = log_mean_exp_cosine(loc.size, concentration)
        return exponent - log_normalizer + _log_uniform_density(loc.size)

    def mean(self) -> jax.Array:
        """Expectation: I_(v+1)(k) / I_v(k) loc, inside the sphere."""
        loc, concentration = self.parameters()
        return (1 + bessel_ratio_less_one(loc.size, concentration)) * loc

    def kl_to_uniform(self) -> jax.Array:
        """KL(vMF(loc, k) || UniformSphere(Z)) in nats: []. It does not depend on loc.

            E log p - log u = k (A - 1) - log E_u exp(k (cos - 1))    with A = I_(v+1)(k) / I_v(k)

        It tends to 0 as k -> 0. Its float32 error is about 5e-7 times the size of its two terms,
        which cancel: k for k below 1, log k above.

        Ref: Davidson et al. 2018, appendix A.
        """
        loc, concentration = self.parameters()
        log_normalizer = partial(log_mean_exp_cosine, loc.size)
        value, slope = jax.value_and_grad(log_normalizer)(concentration)
        return concentration * slope - value


def _check_dim(family: str, what: str, dim: int) -> None:
    if not 2 <= dim <= MAX_DIM:
        raise ValueError(
            f"{family}: {what} must be from 2 to {MAX_DIM}, got {dim}. Use such a latent_dim: the "
            "sphere in one dimension is two points, and above the integrals lose digits."
        )


def _log_uniform_density(dim: int) -> float:
    return math.lgamma(0.5 * dim) - math.log(2) - 0.5 * dim * math.log(math.pi)


def _uniform_direction(key: jax.Array, dim: int, dtype: jnp.dtype) -> jax.Array:
    normal = jax.random.normal(key, (dim,), dtype)
    return normal / jnp.linalg.norm(normal)


def _draw_angle(key: jax.Array, dim: int, concentration: jax.Array) -> jax.Array:
    """Draw the angle a to loc, with a density proportional to exp(k cos a) sin(a)^(Z-2): [].

    Ulrich's proposal shifts the cosine of a uniform point towards 1. It is written for
    drop = 1 - cos a, which has no cancellation at large k; at least 2 in 3 are accepted.
    """
    k, free = concentration, dim - 1.0
    b = free / (2 * k + jnp.sqrt(4 * k * k + free * free))
    peak, middle = 2 * b / (1 + b), (1 - b) / (1 + b)  # drop and cosine of the likeliest angle

    def propose(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        u = jax.random.uniform(key, (3,), k.dtype, minval=float(jnp.finfo(k.dtype).tiny))
        # beta comes from a coordinate of a uniform point of the sphere: its projection to a plane
        # has the length (1 - u^(2 / (Z - 2)))^(1/2), 1 for Z = 2, and a uniform direction.
        length = jnp.sqrt(-jnp.expm1(2 / (dim - 2) * jnp.log(u[0]))) if dim > 2 else 1.0
        beta = 0.5 + 0.5 * length * jnp.cos(2 * math.pi * u[1])
        drop = 2 * b * beta / (1 - (1 - b) * beta)
        away = drop / peak
        log_ratio = k * (peak - drop) + free * jnp.log((1 + middle * away) / (1 + middle))
        return drop, jnp.log(u[2]) <= log_ratio

    # A drop of exactly 0 would leave the quantile function's slope undefined.
    drop = jnp.clip(first_accepted(key, propose, k), jnp.finfo(k.dtype).tiny, 2.0)
    return 2 * jnp.arcsin(jnp.sqrt(0.5 * drop))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _move_with_concentration(dim: int, angle: jax.Array, concentration: jax.Array) -> jax.Array:
    """The angle, whose derivative w.r.t. k is that of the quantile F^-1(u; k) for fixed u."""
    return angle


@_move_with_concentration.defjvp
def _implicit_gradient(
    dim: int, primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    angle = _move_with_concentration(dim, *primals)
    return angle, tangents[0] + _quantile_slope(dim, angle, primals[1]) * tangents[1]


def _quantile_slope(dim: int, angle: jax.Array, concentration: jax.Array) -> jax.Array:
    """da/dk at a fixed quantile, for the angle a to loc: [].

        da/dk = -(dF/dk) / p(a) = -int_0^a p(t) / p(a) (cos t - E cos) dt
                                = int_a^pi p(t) / p(a) (cos t - E cos) dt

    with p(t) proportional to exp(k cos t) sin(t)^(Z-2). It is computed by Gauss-Legendre nodes on
    the side with the smaller densities, where p(t) / p(a) <= 1 and nothing cancels.
    """
    nodes, weights = gauss_legendre(angle.dtype)
    power = dim - 2.0
    # p rises up to the angle where k sin^2 = (Z - 2) cos.
    rising = concentration * jnp.square(jnp.sin(angle)) < power * jnp.cos(angle)
    end = jnp.where(rising, 0.0, jnp.maximum(reach(dim, concentration), angle))
    t = angle + (end - angle) * nodes
    drop, drop_at_angle = 2 * jnp.square(jnp.sin(0.5 * t)), 2 * jnp.square(jnp.sin(0.5 * angle))
    log_ratio = concentration * (drop_at_angle - drop)
    log_ratio += power * (log_sin(t) - log_sin(angle))
    above_mean = -bessel_ratio_less_one(dim, concentration) - drop
    return (end - angle) * jnp.sum(weights * jnp.exp(log_ratio) * above_mean)


def _reflect(first: jax.Array, rest: jax.Array, loc: jax.Array) -> jax.Array:
    """Map (first, rest) [Z] by an isometry that takes the first axis to loc.

    It is Householder's reflection along the longer of loc - e_1 and loc + e_1, or minus it, so that
    no divisor is zero. The first entry is a separate array throughout, since XLA's CPU backend
    miscompiles the inner product of a constant with a concatenation of more than 32,768 numbers.
    """
    sign = jnp.where(loc[0] < 0, -1.0, 1.0).astype(loc.dtype)
    along, others = loc[0] + sign, loc[1:]
    product = along * first + jnp.sum(others * rest)
    scale = 2 * product / (jnp.square(along) + jnp.sum(jnp.square(others)))
    reflected = [(scale * along - first)[None], scale * others - rest]
    return sign * jnp.concatenate(reflected)
