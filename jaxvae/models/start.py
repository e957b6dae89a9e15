"""Initial values of a model's parameters that are taken from the data."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.models.likelihoods import Likelihood
from jaxvae.models.units import Units
from jaxvae.networks.decoders import OutputBias


class Start(NamedTuple):
    """Shape of the data, and the statistics that initialize a model's parameters.

    Attributes:
        data_shape: shape of one example.
        data_mean: [*data_shape] initial mean of p(x|z); None: the default initialization.
        data_scale: standard deviation of the data about their mean, the initial value of a learned
            scale.
        pseudo_inputs: [num_components, *data_shape] initial pseudo-inputs of a "vamp" prior; None:
            noise about data_mean.
        units: units of the data; the other attributes are in the unit that the networks see. None:
            the networks see the data in their own unit.
    """

    data_shape: tuple[int, ...]
    data_mean: jax.Array | None
    data_scale: float
    pseudo_inputs: jax.Array | None
    units: Units | None

    @classmethod
    def of(
        cls,
        data_shape: tuple[int, ...],
        data_mean: jax.Array | None,
        data_scale: float,
        pseudo_inputs: jax.Array | None,
        units: Units | None,
    ) -> "Start":
        """Convert `data_mean` and `pseudo_inputs`, given in the data's own unit.

        Raises:
            ValueError: data_scale is not positive.
        """
        if not data_scale > 0:
            raise ValueError(f"data_scale must be positive, got {data_scale}.")
        if units is not None and data_mean is not None:
            data_mean = units.standardized(data_mean)
        if units is not None and pseudo_inputs is not None:
            pseudo_inputs = units.standardized(pseudo_inputs)
        return cls(data_shape, data_mean, data_scale, pseudo_inputs, units)

    def pseudo_inputs_of(self, num_components: int, key: jax.Array) -> jax.Array:
        """Initial pseudo-inputs [num_components, *data_shape]: examples, or noise."""
        shape = (num_components, *self.data_shape)
        if self.pseudo_inputs is None:
            mean = jnp.zeros(self.data_shape) if self.data_mean is None else self.data_mean
            return mean[None] + self.data_scale * jax.random.normal(key, shape)
        if jnp.shape(self.pseudo_inputs) != shape:
            raise ValueError(
                f"pseudo_inputs must have shape {shape}, got {jnp.shape(self.pseudo_inputs)}. "
                "Give num_components examples."
            )
        return jnp.asarray(self.pseudo_inputs, jnp.float32)

    def output_bias(self, likelihood: Likelihood) -> OutputBias | None:
        """Initializer of the decoder's last bias, such that p(x|z) has about the data's mean."""
        if self.data_mean is None:
            return None
        mean = jnp.asarray(self.data_mean, jnp.float32)
        if mean.shape != self.data_shape:
            raise ValueError(
                f"data_mean must have the shape of one example, {self.data_shape}, got "
                f"{mean.shape}. Average the training data over the examples only."
            )
        return lambda key, shape, *_: likelihood.output_at(mean, self.data_scale).reshape(shape)
