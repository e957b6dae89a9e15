"""The interface `VAE`, a tuple of pure functions, and the two models of the library."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import ArrayLike

from jaxvae.distributions import Distribution, at_least_float32
from jaxvae.models.likelihoods import Likelihood, Sigma, likelihood_named
from jaxvae.models.posteriors import Posterior, posterior_named
from jaxvae.models.priors import Prior, Setting, prior_named
from jaxvae.models.start import Start
from jaxvae.models.units import Units
from jaxvae.networks.decoders import ConvDecoder, MLPDecoder
from jaxvae.networks.dense import Activation, Initialization
from jaxvae.networks.encoders import ConvEncoder, MLPEncoder

Params = Any
"""Parameters of a VAE: any pytree of arrays; `jaxvae.trainable` converts other pytrees to one."""
Precision = Literal["float32", "bfloat16"]
DTYPES: dict[Precision, DTypeLike | None] = {"float32": None, "bfloat16": jnp.bfloat16}
"""Type that the networks compute in; None: the type of data and parameters, float32."""


class VAE(NamedTuple):
    """A variational auto-encoder as pure functions of its parameters, for one example.

    Training, evaluation and the commands use these functions only, so any four will do.

    Attributes:
        init: key -> params.
        encode: (params, x [*data_shape]) -> q(z|x).
        decode: (params, z [Z]) -> p(x|z).
        prior: params -> p(z).
        with_log_scale: (params, log sigma []) -> params, for a Gaussian likelihood whose sigma
            is the optimum of the batch; None for all others.

    >>> from jaxvae import Gaussian
    >>> shifted = VAE(
    ...     init=lambda key: {"shift": jax.random.normal(key, (2,))},
    ...     encode=lambda params, x: Gaussian(x - params["shift"], jnp.zeros(2)),
    ...     decode=lambda params, z: Gaussian(z + params["shift"], jnp.zeros(2)),
    ...     prior=lambda params: Gaussian.standard(2),
    ... )
    """

    init: Callable[[jax.Array], Params]
    encode: Callable[[Params, jax.Array], Distribution]
    decode: Callable[[Params, jax.Array], Distribution]
    prior: Callable[[Params], Distribution]
    with_log_scale: Callable[[Params, jax.Array], Params] | None = None


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

    >>> small = mlp_vae(data_shape=(2,), latent_dim=1, hidden=(), likelihood="gaussian")
    >>> large = in_units(small, [1e6, 0.0], [1e3, 1e-3])
    >>> large.decode(large.init(jax.random.key(0)), jnp.zeros(1)).mean().tolist()
    [1000000.0, 0.0]
    """
    units = Units.of(loc, unit, np.size(loc))
    return vae._replace(
        encode=lambda params, x: vae.encode(params, units.standardized(x)),
        decode=lambda params, z: units.in_data_unit(vae.decode(params, z)),
    )


def mlp_vae(
    *,
    data_shape: tuple[int, ...],
    latent_dim: int = 32,
    hidden: tuple[int, ...] = (512, 256),
    posterior: str = "gaussian",
    prior: str = "standard",
    likelihood: str = "bernoulli",
    sigma: Sigma = "learned",
    num_categories: int = 10,
    num_components: int = 50,
    initialization: Initialization = "lecun",
    activation: Activation = "relu",
    precision: Precision = "float32",
    data_loc: tuple[float, ...] | None = None,
    data_unit: tuple[float, ...] | None = None,
    data_mean: jax.Array | None = None,
    data_scale: float = 1.0,
    pseudo_inputs: jax.Array | None = None,
) -> VAE:
    """A fully connected VAE for data of any shape.

    Args:
        data_shape: shape of one example: (28, 28, 1), (64,), ...
        latent_dim: Z, the number of latents.
        hidden: widths of the encoder's hidden layers; the decoder reverses them.
        posterior: a name in `jaxvae.models.posteriors`: "gaussian", "full_covariance", "iaf", ...
        prior: a name in `jaxvae.models.priors`: "standard", "mixture", "vamp" or "flow".
        likelihood: a name in `jaxvae.models.likelihoods`: "bernoulli", "gaussian", ...
        sigma: scale of a "gaussian" or "laplace" likelihood (`jaxvae.models.likelihoods.gaussian`).
        num_categories: categories of each latent of a categorical or relaxed categorical posterior.
        num_components: components of a "mixture" or "vamp" prior.
        initialization: "lecun" or "torch" (`jaxvae.networks.dense`).
        activation: "relu" or "tanh", after each hidden layer.
        precision: type that encoder and decoder compute in, "float32" or "bfloat16". Parameters,
            distributions, bounds and gradients are float32 with either, and so are the networks of
            flows, which must invert exactly. By default jax multiplies float32 matrices in lower
            precision on a TPU or a recent GPU. To change that:
            jax.config.update("jax_default_matmul_precision", "highest").
        data_loc, data_unit: location and unit of each entry of the data's last axis, for a
            "gaussian" or "laplace" likelihood: networks and a learned sigma see
            (x - data_loc) / data_unit (`in_units`). Inputs and outputs, and a fixed sigma, are in
            the data's own unit. None: no conversion.
        data_mean: [*data_shape] initial mean of p(x|z); None: the default initialization.
        data_scale: standard deviation of the data about data_mean, in data_unit: the initial value
            of a learned scale.
        pseudo_inputs: [num_components, *data_shape] examples, the initial pseudo-inputs of a "vamp"
            prior; None: noise about data_mean.

    Raises:
        ValueError: a size is below 1, a name is unknown, or the prior is not over these latents.

    >>> vae = mlp_vae(data_shape=(8,), latent_dim=2, hidden=(16,))
    >>> params = vae.init(jax.random.key(0))
    >>> vae.decode(params, vae.encode(params, jnp.ones(8)).mean()).mean().shape
    (8,)
    """
    data_shape, hidden = tuple(data_shape), tuple(hidden)
    _check_sizes(data_shape=data_shape, latent_dim=(latent_dim,), hidden=hidden)
    _check_name("initialization", initialization, get_args(Initialization))
    _check_name("activation", activation, get_args(Activation))
    _check_name("precision", precision, get_args(Precision))
    units = _units(data_shape, likelihood, data_loc, data_unit)
    start = Start.of(data_shape, data_mean, data_scale, pseudo_inputs, units)
    p = likelihood_named(likelihood, sigma if units is None else units.of_y(sigma), data_shape)
    q = posterior_named(posterior, latent_dim, num_categories)
    dtype = DTYPES[precision]
    encoder = MLPEncoder(q.num_outputs, hidden, initialization, activation, dtype)
    outputs, bias = _output_shape(p, data_shape), start.output_bias(p)
    decoder = MLPDecoder(outputs, hidden[::-1], initialization, bias, activation, dtype)
    setting = Setting(q, num_components, partial(start.pseudo_inputs_of, num_components))
    return _vae(Parts(encoder, decoder, q, prior_named(prior, setting), p), start)


def conv_vae(
    *,
    data_shape: tuple[int, ...],
    latent_dim: int = 32,
    hidden: tuple[int, ...] | None = None,
    width: int = 256,
    posterior: str = "gaussian",
    prior: str = "standard",
    likelihood: str = "bernoulli",
    sigma: Sigma = "learned",
    num_categories: int = 10,
    num_components: int = 50,
    precision: Precision = "float32",
    data_loc: tuple[float, ...] | None = None,
    data_unit: tuple[float, ...] | None = None,
    data_mean: jax.Array | None = None,
    data_scale: float = 1.0,
    pseudo_inputs: jax.Array | None = None,
) -> VAE:
    """A convolutional VAE for images; by default its depth follows from their size.

    Args:
        data_shape: (H, W, C), H and W from 8 to 64, odd or even, C 1 or 3.
        latent_dim: Z, the number of latents.
        hidden: channels of the levels, each of which halves the image; None: 32, 64, 128, ...
            until the longer side is at most 8.
        width: width of the fully connected layer between levels and latents.
        posterior, prior, likelihood, sigma, num_categories, num_components, precision,
            data_loc, data_unit, data_mean, data_scale, pseudo_inputs: as in `mlp_vae`.

    Raises:
        ValueError: the data are not images of these sizes, or as in `mlp_vae`.

    >>> vae = conv_vae(data_shape=(9, 12, 3), latent_dim=2, hidden=(4,), width=8)
    >>> params = vae.init(jax.random.key(0))
    >>> vae.decode(params, vae.encode(params, jnp.ones((9, 12, 3))).mean()).mean().shape
    (9, 12, 3)
    """
    data_shape = tuple(data_shape)
    _check_image(data_shape)
    _check_name("precision", precision, get_args(Precision))
    if hidden is None:
        hidden = tuple(32 * 2**i for i in range(math.ceil(math.log2(max(data_shape[:2]) / 8))))
    hidden = tuple(hidden) or (32,)
    _check_sizes(data_shape=data_shape, latent_dim=(latent_dim,), hidden=hidden, width=(width,))
    units = _units(data_shape, likelihood, data_loc, data_unit)
    start = Start.of(data_shape, data_mean, data_scale, pseudo_inputs, units)
    p = likelihood_named(likelihood, sigma if units is None else units.of_y(sigma), data_shape)
    q = posterior_named(posterior, latent_dim, num_categories)
    dtype = DTYPES[precision]
    encoder = ConvEncoder(q.num_outputs, hidden, width, dtype)
    outputs, bias = _output_shape(p, data_shape), start.output_bias(p)
    decoder = ConvDecoder(outputs, hidden, width, bias, dtype)
    setting = Setting(q, num_components, partial(start.pseudo_inputs_of, num_components))
    return _vae(Parts(encoder, decoder, q, prior_named(prior, setting), p), start)


class Parts(NamedTuple):
    """Two networks and three families, the parts of a VAE."""

    encoder: nn.Module
    decoder: nn.Module
    posterior: Posterior
    prior: Prior
    likelihood: Likelihood


def _vae(parts: Parts, start: Start) -> VAE:
    """Assemble a VAE; params = {"encoder": ..., "decoder": ..., "likelihood": ...}.

    A posterior or prior with parameters adds an entry "posterior" or "prior".
    """
    data_shape, latent_shape = start.data_shape, parts.posterior.latent_shape

    def init(key: jax.Array) -> Params:
        key_encoder, key_decoder, key_posterior, key_prior = jax.random.split(key, 4)
        params = {
            "encoder": parts.encoder.init(key_encoder, jnp.zeros(data_shape)),
            "decoder": parts.decoder.init(key_decoder, jnp.zeros(latent_shape)),
            "likelihood": parts.likelihood.init(start.data_scale),
        }
        own = {
            "posterior": parts.posterior.init(key_posterior),
            "prior": parts.prior.init(key_prior),
        }
        return params | {name: values for name, values in own.items() if values}

    def encode(params: Params, x: jax.Array) -> Distribution:
        if jnp.shape(x) != data_shape:
            raise ValueError(
                f"encode: x must be one example of shape {data_shape}, got {jnp.shape(x)}. "
                "jax.vmap adds the batch; or build the model with the data_shape of your data."
            )
        outputs: Any = parts.encoder.apply(params["encoder"], parts.likelihood.network_input(x))
        return parts.posterior.distribution(params.get("posterior"), *at_least_float32(outputs))

    def decode(params: Params, z: jax.Array) -> Distribution:
        if jnp.shape(z) != latent_shape:
            raise ValueError(
                f"decode: z must be one latent of shape {latent_shape}, got {jnp.shape(z)}. "
                "jax.vmap adds the batch."
            )
        output: Any = parts.decoder.apply(params["decoder"], z)
        if parts.likelihood.num_outputs > 1:
            output = output.reshape(*data_shape, parts.likelihood.num_outputs)
        return parts.likelihood.distribution(params["likelihood"], *at_least_float32(output))

    follow = parts.likelihood.with_log_scale
    with_log_scale = follow and (
        lambda params, log_scale: {**params, "likelihood": follow(params["likelihood"], log_scale)}
    )
    vae = VAE(
        init=init,
        encode=encode,
        decode=decode,
        prior=lambda params: parts.prior.distribution(params.get("prior"), partial(encode, params)),
        with_log_scale=with_log_scale,
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
    if likelihood not in ("gaussian", "laplace"):
        raise ValueError(
            f"data_unit needs likelihood=gaussian or laplace, got {likelihood}, whose data have no "
            "unit. Leave out data_loc and data_unit."
        )
    return Units.of(loc, unit, data_shape[-1])


def _output_shape(likelihood: Likelihood, data_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Output shape of the decoder network, whose last axis holds all outputs of a dimension."""
    return (*data_shape[:-1], data_shape[-1] * likelihood.num_outputs)


def _check_name(argument: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"{argument} must be one of {', '.join(known)}, got {name!r}.")


def _check_sizes(**sizes: tuple[int, ...]) -> None:
    for name, values in sizes.items():
        if any(value < 1 for value in values) or (name == "data_shape" and not values):
            raise ValueError(f"every entry of {name} must be positive, got {values}.")


def _check_image(data_shape: tuple[int, ...]) -> None:
    if len(data_shape) != 3 or not all(8 <= side <= 64 for side in data_shape[:2]):
        raise ValueError(
            "conv_vae needs images (H, W, C) with H and W from 8 to 64, got data_shape="
            f"{data_shape}. Resize the images, or use mlp_vae, which takes any shape."
        )
    if data_shape[2] not in (1, 3):
        raise ValueError(
            f"conv_vae needs 1 or 3 channels, got {data_shape[2]} in data_shape={data_shape}. "
            "Use mlp_vae, which takes any shape."
        )
