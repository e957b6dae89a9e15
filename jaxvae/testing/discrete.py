"""A model with so few discrete states that every expectation is a sum over all of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jaxvae.distributions import Bernoulli, OneHotCategorical


class DiscreteLatent(NamedTuple):
    """p(z) = prod_j Categorical(z_j), one-hot, p(x|z) = Bernoulli(sigmoid(W z + b)).

    All S = C^Z states are enumerated, at most 65536. The exact methods are differentiable:
    `jax.grad` of `elbo` or `log_prob` is the exact gradient, to compare "score" and "vimco" with.

    Attributes:
        prior_logits: [Z, C] log masses of p(z), up to a constant for each latent.
        weight: [D, Z * C] W, for flattened z.
        bias: [D] b.

    >>> model = DiscreteLatent(jnp.zeros((1, 2)), jnp.array([[0.0, jnp.log(3.0)]]), jnp.zeros(1))
    >>> print(f"{jnp.exp(model.log_prob(jnp.ones(1))):.4f}")  # (1/2 + 3/4) / 2
    0.6250
    """

    prior_logits: jax.Array
    weight: jax.Array
    bias: jax.Array

    def prior(self) -> OneHotCategorical:
        """p(z)."""
        return OneHotCategorical(self.prior_logits)

    def decode(self, z: jax.Array) -> Bernoulli:
        """p(x|z) for z [Z, C]."""
        return Bernoulli(self.weight @ z.ravel() + self.bias)

    def states(self) -> jax.Array:
        """All states z: [S, Z, C]."""
        return self.prior().enumerate_support()

    def log_joint(self, x: jax.Array) -> jax.Array:
        """log p(x, z) for every z: [S] nats."""
        return jax.vmap(lambda z: self.decode(z).log_prob(x) + self.prior().log_prob(z))(
            self.states()
        )

    def log_prob(self, x: jax.Array) -> jax.Array:
        """log p(x) = log sum_z p(x, z), exact: a scalar in nats."""
        return logsumexp(self.log_joint(x))

    def log_posterior(self, x: jax.Array) -> jax.Array:
        """log p(z|x) for every z, exact: [S] nats."""
        return jax.nn.log_softmax(self.log_joint(x))

    def elbo(self, x: jax.Array, q: OneHotCategorical) -> jax.Array:
        """sum_z q(z) (log p(x, z) - log q(z)), exact: a scalar in nats."""
        log_q = jax.vmap(q.log_prob)(self.states())
        return jnp.exp(log_q) @ (self.log_joint(x) - log_q)
