"""Gaussians whose covariance is a diagonal plus a low-rank matrix."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxvae.cpu import threefry
from jaxvae.distributions.distribution import at_least_float32, check_event
from jaxvae.distributions.scaled_difference import standardized


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRankGaussian:
    """N(loc, F F^T + D^2) over a vector, D = diag(exp(log_scale)): correlated in R directions.

        log p(x) = -1/2 |D^-1 (x - loc - F h)|^2 - 1/2 |h|^2
                   - sum_z log D_zz - 1/2 log det C - Z/2 log 2 pi

    with the capacitance matrix C = I + F^T D^-2 F and h = C^-1 F^T D^-2 (x - loc). This is the
    Woodbury identity as a sum of squares, in which nothing cancels. The Cholesky factor of C comes
    from a QR factorization, which does not square F / D. The cost is O(Z R^2).

    Args:
        loc: [Z], the mean.
        factor: [Z, R], F.
        log_scale: [Z] or []: log of D's diagonal.

    Ref: Golub & Van Loan, Matrix Computations, 2013, sections 2.1.4 and 5.3; Rezende, Mohamed &
    Wierstra, Stochastic Backpropagation, 2014, ICML, section 4.3 (R = 1).

    >>> p = LowRankGaussian(jnp.zeros(2), jnp.ones((2, 1)), jnp.array(0.0))
    >>> print(f"{p.log_prob(jnp.ones(2)):.4f}")
    -2.7205
    """

    loc: jax.Array
    factor: jax.Array
    log_scale: jax.Array

    def parameters(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """loc [Z], factor [Z, R] and log_scale [Z], at least float32.

        Raises:
            ValueError: the shapes do not match.
        """
        shapes = jnp.shape(self.loc), jnp.shape(self.factor), jnp.shape(self.log_scale)
        fits = len(shapes[0]) == 1 and len(shapes[1]) == 2 and shapes[1][:1] == shapes[0]
        if not fits or shapes[2] not in ((), shapes[0]):
            raise ValueError(
                "LowRankGaussian: loc must be [Z], factor [Z, R] and log_scale [Z] or a scalar, "
                f"got shapes {shapes[0]}, {shapes[1]} and {shapes[2]}. Reshape them: "
                "nothing is broadcast."
            )
        loc, factor, log_scale = at_least_float32(self.loc, self.factor, self.log_scale)
        return loc, factor, jnp.broadcast_to(log_scale, loc.shape)

    def sample(self, key: jax.Array) -> jax.Array:
        """z = loc + F eps_1 + exp(log_scale) * eps_2 with both eps ~ N(0, I): [Z]."""
        loc, factor, log_scale = self.parameters()
        dim, rank = factor.shape
        eps = threefry.normal(key, (rank + dim,), loc.dtype)
        shared = jnp.matmul(factor, eps[:rank], precision="highest")
        return loc + shared + jnp.exp(log_scale) * eps[rank:]

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density of `value` [Z]: a scalar in nats."""
        remedy = "Reshape the value, or build the encoder for its latent_dim."
        check_event(value, jnp.shape(self.loc), "LowRankGaussian", remedy)
        value, loc, factor, log_scale = at_least_float32(value, *self.parameters())
        scaled = standardized(factor, log_scale[:, None])
        eps = standardized(value - loc, log_scale)
        orthonormal, triangular = jnp.linalg.qr(_above_identity(scaled))
        # The part of (0, eps) orthogonal to the columns of (I, F/D) is (-h, eps - F/D h).
        right = jnp.concatenate([jnp.zeros_like(scaled[0]), eps])
        along = jnp.matmul(right, orthonormal, precision="highest")
        rest = right - jnp.matmul(orthonormal, along, precision="highest")
        constant = jnp.sum(log_scale) + 0.5 * loc.size * math.log(2 * math.pi)
        return -0.5 * jnp.sum(jnp.square(rest)) - _log_abs_diagonal(triangular) - constant

    def half_log_capacitance(self) -> jax.Array:
        """1/2 log det C, which F adds to the log volume sum log_scale, in nats: []."""
        _, factor, log_scale = self.parameters()
        scaled = standardized(factor, log_scale[:, None])
        return _log_abs_diagonal(jnp.linalg.qr(_above_identity(scaled), mode="r"))

    def scale_tril(self) -> jax.Array:
        """Cholesky factor L of the covariance, L L^T = F F^T + D^2, in O(Z^2 (Z + R)): [Z, Z].

        It comes from the QR factorization of (D, F)^T, which never squares D and F.
        """
        _, factor, log_scale = self.parameters()
        root = jnp.concatenate([jnp.diag(jnp.exp(log_scale)), factor.T])
        upper = jnp.linalg.qr(root, mode="r")
        return upper.T * jnp.where(jnp.diagonal(upper) < 0, -1, 1)[None, :]

    def mean(self) -> jax.Array:
        """Expectation: loc."""
        return self.loc


def _above_identity(scaled: jax.Array) -> jax.Array:
    """Stack (I, W), whose columns have the inner products I + W^T W.

    It is a sum, since jax cannot concatenate a constant with an array sharded over an `Explicit`
    axis.
    """
    dim, rank = scaled.shape
    return jnp.pad(scaled, ((rank, 0), (0, 0))) + jnp.eye(rank + dim, rank, dtype=scaled.dtype)


def _log_abs_diagonal(triangular: jax.Array) -> jax.Array:
    return jnp.sum(jnp.log(jnp.abs(jnp.diagonal(triangular))))
