"""Change of unit between data and networks: x = loc + unit * y, with y of order 1."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxvae.distributions import Distribution, Gaussian, Laplace, at_least_float32
from jaxvae.models.likelihoods import Sigma


class Units(NamedTuple):
    """Location and unit of the entries of an example's last axis.

        x = loc + unit * y

    The last axis holds the columns of vectors [D] and the channels of images [H, W, C].

    Attributes:
        loc: [C] float32, in the data's own unit.
        unit: [C] float32, positive.
    """

    loc: np.ndarray
    unit: np.ndarray

    @classmethod
    def of(cls, loc: ArrayLike, unit: ArrayLike, size: int) -> "Units":
        """Make the units of a last axis of this size from checked numbers.

        Raises:
            ValueError: the number of entries differs from size, a unit is not positive, or a
                number is out of float32's range.
        """
        try:
            with np.errstate(over="ignore", under="ignore"):
                found = cls(np.asarray(loc, np.float32), np.asarray(unit, np.float32))
        except (TypeError, ValueError) as error:
            raise ValueError(f"data_loc and data_unit must be lists of numbers: {error}.") from None
        shapes = found.loc.shape, found.unit.shape
        if shapes != ((size,), (size,)):
            raise ValueError(
                f"data_loc and data_unit must have an entry for each of the {size} entries of the "
                f"data's last axis, got shapes {shapes[0]} and {shapes[1]}."
            )
        tiny = np.finfo(np.float32).tiny
        if not (np.isfinite(found).all() and (found.unit >= tiny).all()):
            raise ValueError(
                "data_loc must be finite and data_unit positive in float32, got "
                f"{loc!r} and {unit!r}."
            )
        return found

    def standardized(self, x: jax.Array) -> jax.Array:
        """y = (x - loc) / unit for one example or several [..., C].

        Raises:
            ValueError: the last axis does not have C entries.
        """
        (x,) = at_least_float32(x)
        loc, unit = self._over(x)
        return (x - loc) / unit

    def in_data_unit(self, p: Distribution) -> Gaussian | Laplace:
        """Density of x = loc + unit * y, given the density p of y.

            log p(x) = log p(y) - sum_d log unit_d

        A location-scale family stays one: N(m, s^2) becomes N(loc + unit m, (unit s)^2).

        Raises:
            ValueError: p is neither a Gaussian nor a Laplace.

        >>> p = Units.of([5.0], [10.0], 1).in_data_unit(Gaussian(jnp.ones(1), jnp.zeros(())))
        >>> print(f"{p.mean()[0]:.1f} {jnp.exp(p.log_scale)[0]:.2f}")
        15.0 10.00
        """
        if not isinstance(p, Gaussian | Laplace):
            raise ValueError(
                "data_unit needs p(x|z) to be a Gaussian or a Laplace, which have a location and a "
                f"scale, got {type(p).__name__}. Leave out data_loc and data_unit."
            )
        mean, log_scale = p.parameters()
        loc, unit = self._over(mean)
        log_unit = jnp.asarray(np.log(self.unit.astype(np.float64)), mean.dtype)
        log_scale = jnp.broadcast_to(log_scale, mean.shape) + jnp.broadcast_to(log_unit, mean.shape)
        return dataclasses.replace(p, loc=loc + unit * mean, log_scale=log_scale)

    def of_y(self, sigma: Sigma) -> Sigma:
        """Convert sigma from x to y: divide a fixed sigma by the unit, and return words as is."""
        if isinstance(sigma, str):
            return sigma
        sizes = np.asarray(sigma, np.float64) / self.unit.astype(np.float64)
        return tuple(sizes.tolist())

    def _over(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """loc and unit in the shape and type of x, for `jax_numpy_rank_promotion="raise"` too."""
        if jnp.shape(x)[-1:] != self.loc.shape:
            raise ValueError(
                f"the data's last axis must have {len(self.loc)} entries, as data_unit does, got "
                f"an example of shape {jnp.shape(x)}."
            )
        loc, unit = (jnp.broadcast_to(jnp.asarray(n, x.dtype), x.shape) for n in self)
        return loc, unit
