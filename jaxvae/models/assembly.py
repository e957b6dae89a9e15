"""Assemble a VAE from two networks and the families of its three distributions."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvae.distributions import Distribution, at_least_float32
from jaxvae.models.condition import Condition
from jaxvae.models.likelihoods import LOCATION_SCALE, Likelihood, Sigma, likelihood_named
from jaxvae.models.posteriors import Posterior
from jaxvae.models.priors import Prior, Setting, prior_named
from jaxvae.models.start import Start
from jaxvae.models.units import Units
from jaxvae.models.vae import VAE, Params, in_units
from jaxvae.networks.decoders import OutputBias


class Families(NamedTuple):
    """Families of the three distributions of a VAE, and what its parameters start from."""

    posterior: Posterior
    prior: Prior
    likelihood: Likelihood
    start: Start
    condition: Condition | None

    @property
    def outputs_shape(self) -> tuple[int, ...]:
        """Shape of the decoder network's output: the last axis holds all outputs of a pixel."""
        shape, outputs = self.start.data_shape, self.likelihood.num_outputs
        return (*shape[:-1], outputs if self.likelihood.per_pixel else shape[-1] * outputs)

    def embedded(self, params: Params, *y: Any) -> tuple[jax.Array, ...]:
        """The vector of the condition, if the model has one, as a tuple of extra arguments."""
        if self.condition is None:
            return ()
        return tuple(self.condition.embed(params["condition"], one) for one in y)

    @property
    def output_bias(self) -> OutputBias | None:
        """Initializer of the decoder's last bias, such that p(x|z) has about the data's mean."""
        return self.start.output_bias(self.likelihood)


def choose_families(
    data_shape: tuple[int, ...],
    posterior: Posterior,
    *,
    prior: str,
    likelihood: str,
    sigma: Sigma,
    num_components: int,
    data_loc: tuple[float, ...] | None,
    data_unit: tuple[float, ...] | None,
    data_mean: jax.Array | None,
    data_scale: float,
    pseudo_inputs: jax.Array | None,
    condition: int | tuple[int, ...] | None,
) -> Families:
    """Families by the arguments of `jaxvae.models.builders`.

    Raises:
        ValueError: a name is unknown, or the arguments do not go together.
    """
    units = _units(data_shape, likelihood, data_loc, data_unit)
    start = Start.of(data_shape, data_mean, data_scale, pseudo_inputs, units)
    of_y = sigma if units is None else units.of_y(sigma)
    given = None if condition is None else Condition.of(condition)
    setting = Setting(
        posterior,
        num_components,
        partial(start.pseudo_inputs_of, num_components),
        given and given.size,
    )
    p = likelihood_named(likelihood, of_y, data_shape)
    return Families(posterior, prior_named(prior, setting), p, start, given)


def assemble(encoder: nn.Module, decoder: nn.Module, families: Families) -> VAE:
    """A VAE of two networks; params = {"encoder": ..., "decoder": ..., "likelihood": ...}.

    A posterior or prior with parameters adds an entry "posterior" or "prior", and a condition adds
    "condition".
    """
    parts, start = families, families.start
    data_shape, latent_shape = start.data_shape, parts.posterior.latent_shape

    def init(key: jax.Array) -> Params:
        key_encoder, key_decoder, key_posterior, key_prior = jax.random.split(key, 4)
        given = () if parts.condition is None else (jnp.zeros(parts.condition.size),)
        params = {
            "encoder": encoder.init(key_encoder, jnp.zeros(data_shape), *given),
            "decoder": decoder.init(key_decoder, jnp.zeros(latent_shape), *given),
            "likelihood": parts.likelihood.init(start.data_scale),
        }
        own = {
            "posterior": parts.posterior.init(key_posterior),
            "prior": parts.prior.init(key_prior),
            "condition": {} if parts.condition is None else parts.condition.init(),
        }
        return params | {name: values for name, values in own.items() if values}

    def encode(params: Params, x: jax.Array, *y: Any) -> Distribution:
        if jnp.shape(x) != data_shape:
            raise ValueError(
                f"encode: x must be one example of shape {data_shape}, got {jnp.shape(x)}. "
                "jax.vmap adds the batch; or build the model with the data_shape of your data."
            )
        seen = (parts.likelihood.network_input(x), *parts.embedded(params, *y))
        outputs: Any = encoder.apply(params["encoder"], *seen)
        return parts.posterior.distribution(params.get("posterior"), *at_least_float32(outputs))

    def decode(params: Params, z: jax.Array, *y: Any) -> Distribution:
        if jnp.shape(z) != latent_shape:
            raise ValueError(
                f"decode: z must be one latent of shape {latent_shape}, got {jnp.shape(z)}. "
                "jax.vmap adds the batch."
            )
        output: Any = decoder.apply(params["decoder"], z, *parts.embedded(params, *y))
        if parts.likelihood.num_outputs > 1 and not parts.likelihood.per_pixel:
            output = output.reshape(*data_shape, parts.likelihood.num_outputs)
        return parts.likelihood.distribution(params["likelihood"], *at_least_float32(output))

    def prior(params: Params, *y: Any) -> Distribution:
        of_x = lambda x: encode(params, x, *y)
        return parts.prior.distribution(params.get("prior"), of_x, *parts.embedded(params, *y))

    follow = parts.likelihood.with_log_scale
    with_log_scale = follow and (
        lambda params, log_scale: {**params, "likelihood": follow(params["likelihood"], log_scale)}
    )
    vae = VAE(
        init=init,
        encode=encode,
        decode=decode,
        prior=prior,
        with_log_scale=with_log_scale,
        condition=parts.condition,
    )
    return vae if start.units is None else in_units(vae, *start.units)


def _units(
    data_shape: tuple[int, ...],
    likelihood: str,
    loc: tuple[float, ...] | None,
    unit: tuple[float, ...] | None,
) -> Units | None:
    """Unit in which the networks see the data; None: the data's own."""
    if loc is None and unit is None:
        return None
    if loc is None or unit is None:
        raise ValueError("data_loc and data_unit need each other, got only one. Give both.")
    if likelihood not in LOCATION_SCALE:
        raise ValueError(
            f"data_unit needs likelihood={' or '.join(LOCATION_SCALE)}, got {likelihood}, whose "
            "data have no unit. Leave out data_loc and data_unit."
        )
    return Units.of(loc, unit, data_shape[-1])


def check_name(argument: str, name: str, known: tuple[str, ...]) -> None:
    """Check that an argument has one of the known values."""
    if name not in known:
        raise ValueError(f"{argument} must be one of {', '.join(known)}, got {name!r}.")


def check_sizes(**sizes: tuple[int, ...]) -> None:
    """Check that all sizes are positive, and that there is a shape of the data."""
    for name, values in sizes.items():
        if any(value < 1 for value in values) or (name == "data_shape" and not values):
            raise ValueError(f"every entry of {name} must be positive, got {values}.")
