"""A mixture of linear Gaussian models over a label, with exact log p(x), log p(x, y), posterior."""

from typing import Any, NamedTuple

import jax
from jax.scipy.special import logsumexp

from jaxvae.distributions import Gaussian, Hierarchy, OneHotCategorical
from jaxvae.testing.linear_gaussian import LinearGaussian


class LinearGaussianMixture(NamedTuple):
    """p(y) = softmax(logits), p(z) = N(0, I), p(x|y, z) = N(W z + b + shifts_y, R).

    Attributes:
        logits: [C].
        shifts: [C, D].
        model: W, b and R.

    >>> from jax.numpy import ones, zeros
    >>> one = LinearGaussian(ones((1, 1)), zeros(1), zeros(()))
    >>> mixture = LinearGaussianMixture(zeros(2), zeros((2, 1)), one)
    >>> print(f"{mixture.log_prob(ones(1)):.4f} {one.log_prob(ones(1)):.4f}")
    -1.5155 -1.5155
    """

    logits: jax.Array
    shifts: jax.Array
    model: LinearGaussian

    def prior(self) -> Hierarchy:
        """p(y, z)."""
        return Hierarchy(self, (_label, _standard), reparameterized=False)

    def decode(self, z: tuple[jax.Array, jax.Array]) -> Gaussian:
        """p(x|y, z) for a one-hot y [C] and z [Z]."""
        return self.model.shifted(z[0] @ self.shifts).decode(z[1])

    def log_joint(self, x: jax.Array) -> jax.Array:
        """log p(x, y) of every label, exact: [C] nats."""
        of_label = lambda shift: self.model.shifted(shift).log_prob(x)
        return jax.nn.log_softmax(self.logits) + jax.vmap(of_label)(self.shifts)

    def log_prob(self, x: jax.Array) -> jax.Array:
        """log p(x), exact: a scalar in nats."""
        return logsumexp(self.log_joint(x))

    def posterior(self, x: jax.Array) -> Hierarchy:
        """p(y, z|x), exact."""
        params = {"logits": self.log_joint(x), "mixture": self, "x": x}
        return Hierarchy(params, (_exact_label, _exact_latents), reparameterized=False)


def _label(mixture: LinearGaussianMixture, carry: None) -> tuple[Any, Any]:
    return OneHotCategorical(mixture.logits), lambda y: y


def _standard(mixture: LinearGaussianMixture, y: jax.Array) -> tuple[Any, Any]:
    return mixture.model.prior(), lambda z: z


def _exact_label(params: Any, carry: None) -> tuple[Any, Any]:
    return OneHotCategorical(params["logits"]), lambda y: y


def _exact_latents(params: Any, y: jax.Array) -> tuple[Any, Any]:
    mixture = params["mixture"]
    return mixture.model.shifted(y @ mixture.shifts).posterior(params["x"]), lambda z: z
