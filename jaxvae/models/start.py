"""Start of a model's parameters, taken from the data."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.models.likelihoods import Likelihood
from jaxvae.models.units import Units
from jaxvae.networks.decoders import OutputBias


class Start(NamedTuple):
    """Shape of the data, and what of them a model's parameters start at.

    Attributes:
        data_shape: of one example.
        data_mean: [*data_shape] where the decoder's output starts; None: at its bias.
        data_scale: standard deviation of the data about their mean, where a learned scale starts.
        pseudo_inputs: [num_components, *data_shape] where those of a "vamp" prior start.
        units: of the data; the other attributes are in the unit that the networks see. None: that
            is the data's own.
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
        """The start of pseudo-inputs, [num_components, *data_shape]: examples, or noise."""
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
        """The initializer of the decoder's last bias that starts it at the data's mean."""
        if self.data_mean is None:
            return None
        mean = jnp.asarray(self.data_mean, jnp.float32)
        if mean.shape != self.data_shape:
            raise ValueError(
                f"data_mean must have the shape of one example, {self.data_shape}, got "
                f"{mean.shape}. Average the training data over the examples only."
            )
        return lambda key, shape, *_: likelihood.output_at(mean, self.data_scale).reshape(shape)
