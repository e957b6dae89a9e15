"""The interface `VAE`, a tuple of pure functions, and its conversion to other units."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxvae.distributions import Distribution
from jaxvae.models.condition import Conditioned
from jaxvae.models.units import Units

Params = Any
"""Parameters of a VAE: any pytree of arrays; `jaxvae.trainable` converts other pytrees to one."""


class VAE(NamedTuple):
    """A variational auto-encoder as pure functions of its parameters, for one example.

    Training, evaluation and the commands use these functions only, so any four will do. x and z may
    be any pytree. A conditional one has a `condition`, its examples are `Conditioned(x, y)`, and
    encode, decode and prior take y as their last argument.

    Attributes:
        init: key -> params.
        encode: (params, x [*data_shape]) -> q(z|x).
        decode: (params, z [Z]) -> p(x|z).
        prior: params -> p(z).
        with_log_scale: (params, log sigma []) -> params, for a Gaussian likelihood whose sigma
            is the optimum of the batch; None for all others.
        condition: None, or the conditions that the functions take: `jaxvae.Condition`, or an object
            of yours with `without(drop, y)`, as drop_condition needs it.

    >>> import jax.numpy as jnp
    >>> from jaxvae import Gaussian
    >>> shifted = VAE(
    ...     init=lambda key: {"shift": jax.random.normal(key, (2,))},
    ...     encode=lambda params, x: Gaussian(x - params["shift"], jnp.zeros(2)),
    ...     decode=lambda params, z: Gaussian(z + params["shift"], jnp.zeros(2)),
    ...     prior=lambda params: Gaussian.standard(2),
    ... )
    """

    init: Callable[[jax.Array], Params]
    encode: Callable[..., Distribution]
    decode: Callable[..., Distribution]
    prior: Callable[..., Distribution]
    with_log_scale: Callable[[Params, jax.Array], Params] | None = None
    condition: Any = None

    def given(self, y: Any) -> "VAE":
        """The VAE of p(x|y) for one condition; without `condition`, itself."""
        if self.condition is None:
            return self
        return self._replace(
            encode=lambda params, x: self.encode(params, x, y),
            decode=lambda params, z: self.decode(params, z, y),
            prior=lambda params: self.prior(params, y),
            condition=None,
        )

    def of_example(self, example: Any) -> tuple["VAE", Any]:
        """The VAE given an example's condition, and its x.

        Raises:
            ValueError: the VAE takes a condition and the example has none, or the reverse.
        """
        conditioned = isinstance(example, Conditioned)
        if conditioned != (self.condition is not None):
            needs = "without a condition takes x alone" if conditioned else "needs a condition"
            raise ValueError(
                f"a VAE {needs}, got an example that is {'' if conditioned else 'not '}"
                "Conditioned(x, y). Pass what it takes."
            )
        return (self.given(example.y), example.x) if conditioned else (self, example)


def in_units(vae: VAE, loc: ArrayLike, unit: ArrayLike) -> VAE:
    """Convert a VAE of y to one of x = loc + unit * y with the same parameters.

        log p(x|z) = log p(y|z) - sum_d log unit_d,    q(z|x) = q(z|y),    y = (x - loc) / unit

    So every bound on log p(x) is that on log p(y) plus a constant, and p(x|z) is in the unit of x.
    Networks and parameters see numbers of order 1 in every unit.

    Args:
        vae: a VAE of y whose p(y|z) is a Gaussian or a Laplace.
        loc, unit: [C], for each entry of the last axis of x.

    Raises:
        ValueError: a unit is not positive; or, at trace time, p(y|z) is of another family.

    >>> from jaxvae import mlp_vae
    >>> small = mlp_vae(data_shape=(2,), latent_dim=1, hidden=(), likelihood="gaussian")
    >>> large = in_units(small, [1e6, 0.0], [1e3, 1e-3])
    >>> large.decode(large.init(jax.random.key(0)), np.zeros(1)).mean().tolist()
    [1000000.0, 0.0]
    """
    units = Units.of(loc, unit, np.size(loc))
    return vae._replace(
        encode=lambda params, x, *y: vae.encode(params, units.standardized(x), *y),
        decode=lambda params, z, *y: units.in_data_unit(vae.decode(params, z, *y)),
    )
