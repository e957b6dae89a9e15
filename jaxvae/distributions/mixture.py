"""Finite mixtures of distributions of one family."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jaxvae.distributions.distribution import at_least_float32
from jaxvae.leaves import arrays_only


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mixture:
    """sum_m w_m p_m with w = softmax(logits) and p_m from one family.

        log p(x) = log sum_m softmax(logits)_m p_m(x)

    With Gaussian components it is the mixture-of-Gaussians prior; with those of
    `jax.vmap(encode)(pseudo_inputs)` it is the VampPrior.

    Args:
        logits: [M], up to a constant.
        components: a distribution with a leading axis [M] on every array, as returned by vmap:
            Gaussian(loc [M, Z], log_scale [M, Z] or [M]).

    Ref: Tomczak & Welling, VAE with a VampPrior, 2018, AISTATS.

    >>> from jaxvae.distributions import Gaussian
    >>> p = Mixture(jnp.zeros(2), Gaussian(jnp.array([[-1.0], [1.0]]), jnp.zeros(2)))
    >>> print(f"{p.log_prob(jnp.zeros(1)):.4f}")
    -1.4189
    """

    logits: jax.Array
    components: Any
    reparameterized: ClassVar[bool] = False

    def parameters(self) -> tuple[jax.Array, Any]:
        """logits, at least float32, and the components.

        Raises:
            ValueError: an array of the components has no leading axis [M].
        """
        components = arrays_only(self.components)
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(components)]
        if jnp.ndim(self.logits) != 1 or any(s[:1] != self.logits.shape for s in shapes):
            raise ValueError(
                "Mixture: logits must be [M] and every array of components must have a leading "
                f"axis M, got logits of shape {jnp.shape(self.logits)} and components of shapes "
                f"{shapes}. Make the components by jax.vmap."
            )
        return *at_least_float32(self.logits), components

    def with_shape(self, shape: tuple[int, ...]) -> "Mixture":
        """The same mixture of latents of another shape; components over vectors stay the same."""
        if not hasattr(self.components, "with_shape"):
            return self
        return Mixture(self.logits, jax.vmap(lambda p: p.with_shape(shape))(self.components))

    def sample(self, key: jax.Array) -> jax.Array:
        """A draw of one component, chosen by the logits.

        The draw is reparameterized by the components' parameters, for the fixed choice, but not by
        the logits: its derivative w.r.t. those is zero, which is not that of an expectation.
        """
        logits, components = self.parameters()
        key_choice, key_draw = jax.random.split(key)
        chosen = jax.random.categorical(key_choice, logits)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], components).sample(key_draw)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density of `value`, one event of the components: a scalar in nats."""
        logits, components = self.parameters()
        log_probs = jax.vmap(lambda component: component.log_prob(value))(components)
        return logsumexp(jax.nn.log_softmax(logits) + log_probs)

    def mean(self) -> jax.Array:
        """Expectation: sum_m w_m E_m."""
        logits, components = self.parameters()
        means = jax.vmap(lambda component: component.mean())(components)
        return jnp.tensordot(jax.nn.softmax(logits), means, 1, precision="highest")
