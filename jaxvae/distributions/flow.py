"""Distributions made by transforming a simple one with invertible maps."""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxvae.distributions.distribution import (
    NoClosedForm,
    at_least_float32,
    sample_and_log_prob,
)


class Transform(Protocol):
    """An invertible map of one vector [Z], a pytree with all its parameters as leaves."""

    def forward(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z' [Z] and log |det dz'/dz| [], in nats."""
        ...

    def inverse(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The inverse image [Z] of z under `forward`, and log |det| of this inverse map at z []."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Flow:
    """The distribution of f_n(...f_1(z_0)) with z_0 drawn from `base`.

        log q(z) = log base(z_0) - sum_i log |det df_i/dz|

    `log_prob` is exact, by the inverses, and differentiable by its value and by every parameter.
    All parameters are leaves of the flow: `jax.tree.map(jax.lax.stop_gradient, q)` is the same
    density with all of them fixed.

    Args:
        base: a distribution over vectors [Z].
        transforms: invertible maps (`Transform`), in the order of sampling.

    Ref: Rezende & Mohamed, Variational Inference with Normalizing Flows, 2015, ICML.

    >>> from jaxvae.distributions import Gaussian
    >>> print(f"{Flow(Gaussian.standard(2), ()).log_prob(jnp.zeros(2)):.4f}")
    -1.8379
    """

    base: Any
    transforms: tuple[Any, ...]

    @property
    def reparameterized(self) -> bool:
        """True if draws carry gradients, which they do if the base's draws do."""
        return bool(getattr(self.base, "reparameterized", True))

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A draw z [Z] and log q(z) [] in nats, in one forward pass."""
        z, log_q = sample_and_log_prob(self.base, key)
        for transform in self.transforms:
            z, log_det = transform.forward(z)
            log_q = log_q - log_det
        return z, log_q

    def sample(self, key: jax.Array) -> jax.Array:
        """A draw z [Z], reparameterized if the base is."""
        z, _ = self.sample_and_log_prob(key)
        return z

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density of `value` [Z]: a scalar in nats."""
        (value,) = at_least_float32(value)
        log_det = jnp.zeros((), value.dtype)
        for transform in reversed(self.transforms):
            value, log_det_inverse = transform.inverse(value)
            log_det = log_det + log_det_inverse
        return self.base.log_prob(value) + log_det

    def mean(self) -> jax.Array:
        """Raise `NoClosedForm`, since a flow's expectation has no formula.

        Raises:
            NoClosedForm: always.
        """
        raise NoClosedForm("a flow")
