"""Distributions of vectors seen as distributions of arrays, for latents that are feature maps."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae.distributions.distribution import check_event, sample_and_log_prob


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reshaped:
    """The distribution of z reshaped to `shape`, where z is drawn from `base`.

    `reshaped` makes it for the families whose entries depend on each other; the others, such as
    Gaussian, have events of any shape of their own, by their method `with_shape`.

    Args:
        base: a distribution over vectors [Z].
        shape: shape of an event, [h, w, c] for Z = h w c.

    >>> from jaxvae.distributions import LowRankGaussian
    >>> base = LowRankGaussian(jnp.zeros(4), jnp.ones((4, 1)), jnp.zeros(4))
    >>> Reshaped(base, (2, 2)).sample(jax.random.key(0)).shape
    (2, 2)
    """

    base: Any
    shape: tuple[int, ...] = field(metadata={"static": True})

    def with_shape(self, shape: tuple[int, ...]) -> Any:
        """The same distribution with another shape; (-1,) gives that of the vector."""
        return self.base if shape == (-1,) else Reshaped(self.base, shape)

    @property
    def reparameterized(self) -> bool:
        """True if draws carry gradients, which they do if the base's draws do."""
        return bool(getattr(self.base, "reparameterized", True))

    def sample(self, key: jax.Array) -> jax.Array:
        """A draw of this shape, reparameterized if the base is."""
        return self.base.sample(key).reshape(self.shape)

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A draw of this shape and its log density [] in nats."""
        z, log_q = sample_and_log_prob(self.base, key)
        return z.reshape(self.shape), log_q

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density of `value`, of this shape: a scalar in nats."""
        check_event(value, self.shape, "Reshaped", "Reshape the value.")
        return self.base.log_prob(jnp.reshape(value, -1))

    def mean(self) -> jax.Array:
        """Expectation; raises `NoClosedForm` if the base's has no formula."""
        return self.base.mean().reshape(self.shape)


def reshaped(p: Any, shape: tuple[int, ...]) -> Any:
    """The distribution p over latents [Z] as one over latents of `shape`, by its own method if any.

    >>> from jaxvae.distributions import Gaussian
    >>> reshaped(Gaussian.standard(6), (1, 2, 3)).loc.shape
    (1, 2, 3)
    """
    if len(shape) == 1:
        return p
    return p.with_shape(shape) if hasattr(p, "with_shape") else Reshaped(p, shape)


def flattened(p: Any) -> Any:
    """The inverse of `reshaped`: p over latents [Z]; other distributions are returned as they are.

    >>> from jaxvae.distributions import Gaussian
    >>> flattened(reshaped(Gaussian.standard(6), (1, 2, 3))).loc.shape
    (6,)
    """
    return p.with_shape((-1,)) if hasattr(p, "with_shape") else p


def flattened_draw(p: Any, z: jax.Array) -> jax.Array:
    """A draw of p as one of `flattened(p)`: [Z], or [Z, C] for one-hot latents.

    >>> from jaxvae.distributions import Gaussian
    >>> flattened_draw(Gaussian.standard(6), jnp.zeros(6)).shape
    (6,)
    """
    return z.reshape(jax.eval_shape(lambda: flattened(p).sample(jax.random.key(0))).shape)
