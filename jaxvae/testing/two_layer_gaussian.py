"""Two levels of linear Gaussian latents, with exact log p(x), posterior and ELBO."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.distributions import FullCovarianceGaussian, Gaussian, Hierarchy


class LinearChain(NamedTuple):
    """q(z_1) = N(loc, diag(exp(log_scale))^2), q(z_2|z_1) = N(W z_1 + bias, diag(exp(noise))^2).

    Attributes:
        loc: [Z_1].
        log_scale: [Z_1].
        weight: [Z_2, Z_1] W.
        bias: [Z_2].
        noise: [Z_2] log standard deviation.

    >>> two, three = jnp.zeros(2), jnp.zeros(3)
    >>> chain = LinearChain(two, two, jnp.ones((3, 2)), three, three)
    >>> [z.shape for z in chain.hierarchy().sample(jax.random.key(0))]
    [(2,), (3,)]
    """

    loc: jax.Array
    log_scale: jax.Array
    weight: jax.Array
    bias: jax.Array
    noise: jax.Array

    def hierarchy(self) -> Hierarchy:
        """The chain as a distribution over (z_1, z_2)."""
        return Hierarchy(self, (_first_of_chain, _second_of_chain))


class TwoLayerGaussian(NamedTuple):
    """p(z_1, z_2) = a `LinearChain`, p(x|z_2) = N(W z_2 + bias, diag(exp(log_scale))^2).

    Attributes:
        chain: p(z_1) and p(z_2|z_1).
        weight: [D, Z_2] W.
        bias: [D].
        log_scale: [D] log standard deviation of the noise.

    Ref: Bishop, Pattern Recognition and Machine Learning, 2006, equations 2.113 to 2.117.

    >>> one = lambda *shape: jnp.ones(shape)
    >>> chain = LinearChain(one(1) - 1, one(1) - 1, one(1, 1), one(1) - 1, one(1) - 1)
    >>> model = TwoLayerGaussian(chain, one(1, 1), one(1) - 1, one(1) - 1)
    >>> print(f"{model.log_prob(jnp.zeros(1)):.4f}")  # N(0 | 0, 3)
    -1.4682
    """

    chain: LinearChain
    weight: jax.Array
    bias: jax.Array
    log_scale: jax.Array

    def prior(self) -> Hierarchy:
        """p(z_1, z_2)."""
        return self.chain.hierarchy()

    def decode(self, z: tuple[jax.Array, jax.Array]) -> Gaussian:
        """p(x|z), which depends on z_2 only."""
        return Gaussian(self.weight @ z[1] + self.bias, self.log_scale)

    def log_prob(self, x: jax.Array) -> jax.Array:
        """log p(x), exact: a scalar in nats."""
        loc, covariance = _second(self.chain)
        covariance = self.weight @ covariance @ self.weight.T + _diagonal(self.log_scale)
        return _gaussian(self.weight @ loc + self.bias, covariance).log_prob(x)

    def posterior(self, x: jax.Array, *, top_down: bool = True) -> Hierarchy:
        """p(z_1, z_2|x), exact, drawn from the top or from the bottom."""
        chain = self.chain
        precision = _diagonal(-self.log_scale)
        if top_down:
            # p(z_1|x): x = W (V z_1 + c) + b + noise, of covariance W diag W^T + R.
            through = self.weight @ chain.weight
            noise = self.weight @ _diagonal(chain.noise) @ self.weight.T + _diagonal(self.log_scale)
            residual = x - self.weight @ chain.bias - self.bias
            first = _conditioned(
                chain.loc, _diagonal(chain.log_scale), through, jnp.linalg.inv(noise), residual
            )
            second = _Regression(
                self.weight.T @ precision @ (x - self.bias), self.weight.T @ precision @ self.weight
            )
            return Hierarchy((chain, first, second), (_exact_first, _exact_second))
        loc, covariance = _second(chain)
        last = _conditioned(loc, covariance, self.weight, precision, x - self.bias)
        return Hierarchy((chain, last), (_exact_above, _exact_last), top_down=False)

    def elbo(self, x: jax.Array, q: LinearChain) -> jax.Array:
        """E_q log p(x|z) - KL(q || p(z)), exact: a scalar in nats."""
        loc, covariance = _second(q)
        spread = jnp.diag(self.weight @ covariance @ self.weight.T)
        squared = jnp.square(x - self.weight @ loc - self.bias) + spread
        reconstruction = -0.5 * jnp.sum(squared * jnp.exp(-2 * self.log_scale))
        reconstruction -= jnp.sum(self.log_scale) + 0.5 * x.size * math.log(2 * math.pi)
        p = self.chain
        first = _kl(jnp.square(q.loc - p.loc), q.log_scale, p.log_scale)
        slope = q.weight - p.weight
        distance = jnp.square(slope @ q.loc + q.bias - p.bias)
        distance += jnp.diag(slope @ _diagonal(q.log_scale) @ slope.T)
        return reconstruction - first - _kl(distance, q.noise, p.noise)


class _Regression(NamedTuple):
    """What x says about z_2 given z_1: W^T R^-1 (x - b) [Z_2] and W^T R^-1 W [Z_2, Z_2]."""

    shift: jax.Array
    precision: jax.Array


def _first_of_chain(chain: LinearChain, carry: None) -> tuple[Any, Any]:
    return Gaussian(chain.loc, chain.log_scale), lambda z: z


def _second_of_chain(chain: LinearChain, z: jax.Array) -> tuple[Any, Any]:
    return Gaussian(chain.weight @ z + chain.bias, chain.noise), lambda z: z


def _exact_first(params: Any, carry: None) -> tuple[Any, Any]:
    return params[1], lambda z: z


def _exact_second(params: Any, z: jax.Array) -> tuple[Any, Any]:
    chain, _, seen = params
    above = _diagonal(-chain.noise)
    covariance = jnp.linalg.inv(above + seen.precision)
    loc = covariance @ (above @ (chain.weight @ z + chain.bias) + seen.shift)
    return _gaussian(loc, covariance), lambda z: z


def _exact_last(params: Any, carry: None) -> tuple[Any, Any]:
    return params[1], lambda z: z


def _exact_above(params: Any, z: jax.Array) -> tuple[Any, Any]:
    chain, _ = params
    precision = _diagonal(-chain.noise)
    prior = _diagonal(chain.log_scale)
    return _conditioned(chain.loc, prior, chain.weight, precision, z - chain.bias), lambda z: z


def _conditioned(
    loc: jax.Array, covariance: jax.Array, weight: jax.Array, precision: jax.Array, y: jax.Array
) -> FullCovarianceGaussian:
    """p(z|y) for z ~ N(loc, covariance) and y = weight z + noise of this precision."""
    prior = jnp.linalg.inv(covariance)
    covariance = jnp.linalg.inv(prior + weight.T @ precision @ weight)
    return _gaussian(covariance @ (prior @ loc + weight.T @ precision @ y), covariance)


def _second(chain: LinearChain) -> tuple[jax.Array, jax.Array]:
    """Mean and covariance of z_2."""
    covariance = chain.weight @ _diagonal(chain.log_scale) @ chain.weight.T
    return chain.weight @ chain.loc + chain.bias, covariance + _diagonal(chain.noise)


def _kl(distance: jax.Array, log_scale: jax.Array, prior_log_scale: jax.Array) -> jax.Array:
    """KL of two diagonal Gaussians, from the squared distance of their means: a scalar."""
    ratio = jnp.exp(2 * (log_scale - prior_log_scale))
    scaled = distance * jnp.exp(-2 * prior_log_scale)
    return jnp.sum(0.5 * (ratio + scaled - 1) + prior_log_scale - log_scale)


def _gaussian(loc: jax.Array, covariance: jax.Array) -> FullCovarianceGaussian:
    return FullCovarianceGaussian(loc, jnp.linalg.cholesky(covariance))


def _diagonal(log_scale: jax.Array) -> jax.Array:
    """diag(exp(log_scale))^2; of the negative log scale, its inverse."""
    return jnp.diag(jnp.exp(2 * log_scale))
