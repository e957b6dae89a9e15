"""A VAE as a tuple of pure functions, and the models that ship."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvae.decoders import ConvDecoder, MLPDecoder, OutputBias
from jaxvae.dense import Initialization
from jaxvae.distributions import Distribution, Gaussian
from jaxvae.encoders import ConvEncoder, MLPEncoder
from jaxvae.likelihoods import Likelihood, Sigma, likelihood_named

Params = Any
"""The parameters of a VAE: any pytree of arrays."""


class VAE(NamedTuple):
    """A variational auto-encoder as pure functions of its parameters, for one example.

    Any four functions will do: this is all that training, evaluation and the commands know.

    Attributes:
        init: key -> params.
        encode: (params, x [*data_shape]) -> q(z|x).
        decode: (params, z [Z]) -> p(x|z).
        prior: params -> p(z).
        with_log_scale: (params, log sigma []) -> params, for a Gaussian likelihood whose sigma
            is the optimum of the batch; None everywhere else.
    """

    init: Callable[[jax.Array], Params]
    encode: Callable[[Params, jax.Array], Distribution]
    decode: Callable[[Params, jax.Array], Distribution]
    prior: Callable[[Params], Distribution]
    with_log_scale: Callable[[Params, jax.Array], Params] | None = None


def mlp_vae(
    *,
    data_shape: tuple[int, ...],
    latent_dim: int = 32,
    hidden: tuple[int, ...] = (512, 256),
    likelihood: str = "bernoulli",
    sigma: Sigma = "learned",
    initialization: Initialization = "lecun",
    data_mean: jax.Array | None = None,
    data_scale: float = 1.0,
) -> VAE:
    """A fully connected VAE for data of any shape, with a N(0, I) prior.

    Args:
        data_shape: shape of one example: (28, 28, 1), (64,), ...
        latent_dim: Z, the number of latents.
        hidden: widths of the encoder's hidden layers; the decoder has them reversed.
        likelihood: "bernoulli" or "gaussian" (`jaxvae.likelihoods`).
        sigma: of the Gaussian likelihood: a number, "learned" or "optimal".
        initialization: "lecun" or "torch" (`jaxvae.dense`).
        data_mean: [*data_shape] where the decoder's output starts; None: at its bias.
        data_scale: where a learned or optimal sigma starts.

    Raises:
        ValueError: a size below 1, or an unknown name.

    >>> vae = mlp_vae(data_shape=(8,), latent_dim=2, hidden=(16,))
    >>> params = vae.init(jax.random.key(0))
    >>> vae.decode(params, vae.encode(params, jnp.ones(8)).mean()).mean().shape
    (8,)
    """
    data_shape, hidden = tuple(data_shape), tuple(hidden)
    _check_sizes(data_shape=data_shape, latent_dim=(latent_dim,), hidden=hidden)
    family = likelihood_named(likelihood, sigma)
    bias = _output_bias(family, data_mean, data_shape)
    encoder = MLPEncoder(latent_dim, hidden, initialization)
    decoder = MLPDecoder(data_shape, hidden[::-1], initialization, bias)
    return _vae(encoder, decoder, family, data_shape, latent_dim, data_scale)


def conv_vae(
    *,
    data_shape: tuple[int, ...],
    latent_dim: int = 32,
    hidden: tuple[int, ...] | None = None,
    width: int = 256,
    likelihood: str = "bernoulli",
    sigma: Sigma = "learned",
    data_mean: jax.Array | None = None,
    data_scale: float = 1.0,
) -> VAE:
    """A convolutional VAE for images, with a N(0, I) prior; it sizes itself from the data.

    Args:
        data_shape: (H, W, C), H and W from 8 to 64, odd or not, C 1 or 3.
        latent_dim: Z, the number of latents.
        hidden: channels of the levels, each of which halves the image; None: 32, 64, 128, ...
            until the longer side is at most 8.
        width: of the fully connected layer between levels and latents.
        likelihood, sigma, data_mean, data_scale: as in `mlp_vae`.

    Raises:
        ValueError: data that are no images of those sizes, or an unknown name.

    >>> vae = conv_vae(data_shape=(9, 12, 3), latent_dim=2, hidden=(4,), width=8)
    >>> params = vae.init(jax.random.key(0))
    >>> vae.decode(params, vae.encode(params, jnp.ones((9, 12, 3))).mean()).mean().shape
    (9, 12, 3)
    """
    data_shape = tuple(data_shape)
    _check_image(data_shape)
    if hidden is None:
        hidden = tuple(32 * 2**i for i in range(math.ceil(math.log2(max(data_shape[:2]) / 8))))
    hidden = tuple(hidden) or (32,)
    _check_sizes(data_shape=data_shape, latent_dim=(latent_dim,), hidden=hidden, width=(width,))
    family = likelihood_named(likelihood, sigma)
    bias = _output_bias(family, data_mean, data_shape)
    encoder = ConvEncoder(latent_dim, hidden, width)
    decoder = ConvDecoder(data_shape, hidden, width, bias)
    return _vae(encoder, decoder, family, data_shape, latent_dim, data_scale)


def _vae(
    encoder: nn.Module,
    decoder: nn.Module,
    family: Likelihood,
    data_shape: tuple[int, ...],
    latent_dim: int,
    data_scale: float,
) -> VAE:
    """The VAE of two networks: params = {"encoder": ..., "decoder": ..., "likelihood": ...}."""

    def init(key: jax.Array) -> Params:
        key_encoder, key_decoder = jax.random.split(key)
        return {
            "encoder": encoder.init(key_encoder, jnp.zeros(data_shape)),
            "decoder": decoder.init(key_decoder, jnp.zeros(latent_dim)),
            "likelihood": family.init(data_scale),
        }

    def encode(params: Params, x: jax.Array) -> Distribution:
        if jnp.shape(x) != data_shape:
            raise ValueError(
                f"encode: x must be one example of shape {data_shape}, got {jnp.shape(x)}. "
                "jax.vmap adds the batch; or build the model with the data_shape of your data."
            )
        q: Any = encoder.apply(params["encoder"], x)
        return q

    def decode(params: Params, z: jax.Array) -> Distribution:
        if jnp.shape(z) != (latent_dim,):
            raise ValueError(
                f"decode: z must be one latent of shape {(latent_dim,)}, got {jnp.shape(z)}. "
                "jax.vmap adds the batch."
            )
        output: Any = decoder.apply(params["decoder"], z)
        return family.distribution(params["likelihood"], output)

    follow = family.with_log_scale
    with_log_scale = follow and (
        lambda params, log_scale: {**params, "likelihood": follow(params["likelihood"], log_scale)}
    )
    return VAE(
        init=init,
        encode=encode,
        decode=decode,
        prior=lambda params: Gaussian.standard(latent_dim),
        with_log_scale=with_log_scale,
    )


def _output_bias(
    family: Likelihood, data_mean: jax.Array | None, data_shape: tuple[int, ...]
) -> OutputBias | None:
    if data_mean is None:
        return None
    if jnp.shape(data_mean) != data_shape:
        raise ValueError(
            f"data_mean must have the shape of one example, {data_shape}, got "
            f"{jnp.shape(data_mean)}. Average the training data over the examples only."
        )
    return lambda key, shape, *_: family.output_at(jnp.asarray(data_mean, jnp.float32))


def _check_sizes(**sizes: tuple[int, ...]) -> None:
    for name, values in sizes.items():
        if any(value < 1 for value in values):
            raise ValueError(f"{name} must be positive throughout, got {values}.")


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
