"""The linear Gaussian model, with exact log p(x), posterior and ELBO."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from jaxvae.distributions import FullCovarianceGaussian, Gaussian
from jaxvae.divergences import kl


class LinearGaussian(NamedTuple):
    """p(z) = N(0, I), p(x|z) = N(W z + b, diag(exp(log_scale))^2), such as probabilistic PCA.

    Attributes:
        weight: [D, Z] W.
        bias: [D] b.
        log_scale: [] or [D] log standard deviation of the noise.

    Ref: Tipping & Bishop, Probabilistic Principal Component Analysis, 1999; Bishop, Pattern
    Recognition and Machine Learning, 2006, equations 2.113 to 2.117.

    >>> model = LinearGaussian(jnp.ones((1, 1)), jnp.zeros(1), jnp.zeros(()))
    >>> print(f"{model.log_prob(jnp.zeros(1)):.4f}")  # N(0 | 0, 2)
    -1.2655
    """

    weight: jax.Array
    bias: jax.Array
    log_scale: jax.Array

    def prior(self) -> Gaussian:
        """p(z) = N(0, I)."""
        dim = self.weight.shape[1]
        return Gaussian(jnp.zeros(dim, self.weight.dtype), jnp.zeros(dim, self.weight.dtype))

    def decode(self, z: jax.Array) -> Gaussian:
        """p(x|z) for z [Z]."""
        return Gaussian(self.weight @ z + self.bias, self.log_scale)

    def log_prob(self, x: jax.Array) -> jax.Array:
        """log p(x) = log N(x | b, W W^T + R), exact: a scalar in nats."""
        noise = jnp.broadcast_to(jnp.exp(2 * self.log_scale), self.bias.shape)
        covariance = self.weight @ self.weight.T + jnp.diag(noise)
        return FullCovarianceGaussian(self.bias, jnp.linalg.cholesky(covariance)).log_prob(x)

    def posterior(self, x: jax.Array) -> FullCovarianceGaussian:
        """p(z|x) = N(S W^T R^-1 (x - b), S) with S^-1 = I + W^T R^-1 W, exact."""
        whitened, residual = self._whitened(x)
        precision = jnp.eye(self.weight.shape[1]) + whitened.T @ whitened
        inverse_factor = solve_triangular(
            jnp.linalg.cholesky(precision), jnp.eye(len(precision)), lower=True
        )
        covariance = inverse_factor.T @ inverse_factor
        loc = covariance @ (whitened.T @ residual)
        return FullCovarianceGaussian(loc, jnp.linalg.cholesky(covariance))

    def elbo(self, x: jax.Array, q: Gaussian | FullCovarianceGaussian) -> jax.Array:
        """E_q log p(x|z) - KL(q || p(z)), exact for a Gaussian q: a scalar in nats.

        E_q |R^-1/2 (x - W z - b)|^2 = |R^-1/2 (x - W m - b)|^2 + |R^-1/2 W L|^2 (Frobenius)
        for q = N(m, L L^T).
        """
        whitened, residual = self._whitened(x)
        if isinstance(q, Gaussian):
            spread = whitened * jnp.exp(jnp.broadcast_to(q.log_scale, q.loc.shape))[None, :]
        else:
            spread = whitened @ jnp.tril(q.scale_tril)
        distortion = jnp.square(residual - whitened @ q.loc).sum() + jnp.square(spread).sum()
        log_scales = jnp.broadcast_to(self.log_scale, self.bias.shape)
        constant = -jnp.sum(log_scales) - 0.5 * x.size * math.log(2 * math.pi)
        return constant - 0.5 * distortion - kl(q, self.prior())

    def shifted(self, shift: jax.Array) -> "LinearGaussian":
        """The model of x + shift [D]: with V y for a condition y, the conditional model."""
        return self._replace(bias=self.bias + shift)

    def _whitened(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """R^-1/2 W [D, Z] and R^-1/2 (x - b) [D]."""
        precision = jnp.broadcast_to(jnp.exp(-self.log_scale), self.bias.shape)
        return self.weight * precision[:, None], (x - self.bias) * precision
