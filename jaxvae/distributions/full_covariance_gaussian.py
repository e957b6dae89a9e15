"""Gaussians with a full covariance matrix, parameterized by its Cholesky factor."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from jaxvae.cpu import threefry
from jaxvae.distributions.distribution import at_least_float32, check_event


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FullCovarianceGaussian:
    """N(loc, L L^T) over a vector, L lower triangular with a positive diagonal.

        log p(x) = -1/2 |L^-1 (x - loc)|^2 - sum_d log L_dd - D/2 log 2 pi

    It is computed by triangular solves, without an inverse or a determinant.

    Args:
        loc: [D], the mean.
        scale_tril: [D, D], L; entries above its diagonal are ignored.

    Ref: Doersch 2016, arXiv 1606.05908: z = mu(X) + Sigma^(1/2)(X) * eps.

    >>> p = FullCovarianceGaussian(jnp.zeros(2), jnp.array([[2.0, 0.0], [1.0, 1.0]]))
    >>> print(f"{p.log_prob(jnp.array([2.0, 1.0])):.4f}")
    -3.0310
    """

    loc: jax.Array
    scale_tril: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """z = loc + L eps with eps ~ N(0, I): [D]."""
        loc, scale_tril = at_least_float32(self.loc, self.scale_tril)
        eps = threefry.normal(key, loc.shape, loc.dtype)
        return loc + jnp.matmul(jnp.tril(scale_tril), eps, precision="highest")

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density of `value` [D]: a scalar in nats."""
        check_event(value, jnp.shape(self.loc), "FullCovarianceGaussian", "Flatten the value.")
        value, loc, scale_tril = at_least_float32(value, self.loc, self.scale_tril)
        eps = solve_triangular(scale_tril, value - loc, lower=True)
        log_scale = jnp.log(jnp.diagonal(scale_tril))
        return jnp.sum(-0.5 * jnp.square(eps) - log_scale - 0.5 * math.log(2 * math.pi))

    def mean(self) -> jax.Array:
        """Expectation: loc."""
        return self.loc
