"""The models of the library: functions from sizes and names to a `VAE`."""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxvae.models.assembly import assemble, check_name, check_sizes, choose_families
from jaxvae.models.likelihoods import Sigma
from jaxvae.models.posteriors import on_feature_map, posterior_named
from jaxvae.models.vae import VAE
from jaxvae.networks.decoders import ConvDecoder, MLPDecoder
from jaxvae.networks.dense import Activation, Initialization
from jaxvae.networks.encoders import ConvEncoder, MLPEncoder
from jaxvae.networks.residual import Levels
from jaxvae.networks.resnet import ResNetDecoder, ResNetEncoder

Precision = Literal["float32", "bfloat16"]
DTYPES: dict[Precision, DTypeLike | None] = {"float32": None, "bfloat16": jnp.bfloat16}
"""Type that the networks compute in; None: the type of data and parameters, float32."""
LARGEST_SIDE = 1024
"""Largest side of the images of a residual network, in pixels."""
DEFAULT_CHANNELS = (32, 64, 128)
"""Channels of the levels of a `resnet_vae`."""
MOST_BLOCKS = 64


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
    condition: int | tuple[int, ...] | None = None,
) -> VAE:
    """A fully connected VAE for data of any shape.

    Args:
        data_shape: shape of one example: (28, 28, 1), (64,), ...
        latent_dim: Z, the number of latents.
        hidden: widths of the encoder's hidden layers; the decoder reverses them.
        posterior: a name in `jaxvae.models.posteriors`: "gaussian", "full_covariance", "iaf", ...
        prior: a name in `jaxvae.models.priors`: "standard", "mixture", "vamp", "flow", or
            "conditional" with a condition.
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
        condition: number of categories of a label y, or the shape of an array y of numbers
            (`Condition`), which every layer sees; None: none. prior="conditional" learns p(z|y).

    Raises:
        ValueError: a size is below 1, a name is unknown, or the prior is not over these latents.

    >>> vae = mlp_vae(data_shape=(8,), latent_dim=2, hidden=(16,))
    >>> params = vae.init(jax.random.key(0))
    >>> vae.decode(params, vae.encode(params, jnp.ones(8)).mean()).mean().shape
    (8,)
    """
    data_shape, hidden = tuple(data_shape), tuple(hidden)
    check_sizes(data_shape=data_shape, latent_dim=(latent_dim,), hidden=hidden)
    check_name("initialization", initialization, get_args(Initialization))
    check_name("activation", activation, get_args(Activation))
    check_name("precision", precision, get_args(Precision))
    q = posterior_named(posterior, latent_dim, num_categories)
    families = choose_families(
        data_shape,
        q,
        prior=prior,
        likelihood=likelihood,
        sigma=sigma,
        num_components=num_components,
        data_loc=data_loc,
        data_unit=data_unit,
        data_mean=data_mean,
        data_scale=data_scale,
        pseudo_inputs=pseudo_inputs,
        condition=condition,
    )
    outputs, bias, dtype = families.outputs_shape, families.output_bias, DTYPES[precision]
    encoder = MLPEncoder(q.num_outputs, hidden, initialization, activation, dtype)
    decoder = MLPDecoder(outputs, hidden[::-1], initialization, bias, activation, dtype)
    return assemble(encoder, decoder, families)


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
    condition: int | tuple[int, ...] | None = None,
) -> VAE:
    """A convolutional VAE for images; by default its depth follows from their size.

    Args:
        data_shape: (H, W, C), H and W from 8 to 64, odd or even, C 1 or 3.
        latent_dim: Z, the number of latents.
        hidden: channels of the levels, each of which halves the image; None: 32, 64, 128, ...
            until the longer side is at most 8.
        width: width of the fully connected layer between levels and latents.
        posterior, prior, likelihood, sigma, num_categories, num_components, precision,
            data_loc, data_unit, data_mean, data_scale, pseudo_inputs, condition: as in `mlp_vae`.

    Raises:
        ValueError: the data are not images of these sizes, or as in `mlp_vae`.

    >>> vae = conv_vae(data_shape=(9, 12, 3), latent_dim=2, hidden=(4,), width=8)
    >>> params = jax.jit(vae.init)(jax.random.key(0))
    >>> z = jax.jit(vae.encode)(params, jnp.ones((9, 12, 3))).mean()
    >>> jax.jit(vae.decode)(params, z).mean().shape
    (9, 12, 3)
    """
    data_shape = tuple(data_shape)
    _check_image("conv_vae", data_shape, 64)
    if data_shape[2] not in (1, 3):
        raise ValueError(
            f"conv_vae needs 1 or 3 channels, got {data_shape[2]} in data_shape={data_shape}. "
            "Use resnet_vae or mlp_vae, which take any number."
        )
    check_name("precision", precision, get_args(Precision))
    if hidden is None:
        hidden = tuple(32 * 2**i for i in range(math.ceil(math.log2(max(data_shape[:2]) / 8))))
    hidden = tuple(hidden) or (32,)
    check_sizes(data_shape=data_shape, latent_dim=(latent_dim,), hidden=hidden, width=(width,))
    q = posterior_named(posterior, latent_dim, num_categories)
    families = choose_families(
        data_shape,
        q,
        prior=prior,
        likelihood=likelihood,
        sigma=sigma,
        num_components=num_components,
        data_loc=data_loc,
        data_unit=data_unit,
        data_mean=data_mean,
        data_scale=data_scale,
        pseudo_inputs=pseudo_inputs,
        condition=condition,
    )
    outputs, bias, dtype = families.outputs_shape, families.output_bias, DTYPES[precision]
    encoder = ConvEncoder(q.num_outputs, hidden, width, dtype)
    decoder = ConvDecoder(outputs, hidden, width, bias, dtype)
    return assemble(encoder, decoder, families)


def resnet_vae(
    *,
    data_shape: tuple[int, ...],
    latent_dim: int = 32,
    latent_channels: int | None = None,
    channels: tuple[int, ...] = DEFAULT_CHANNELS,
    blocks: int = 1,
    rematerialize: bool = False,
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
    condition: int | tuple[int, ...] | None = None,
) -> VAE:
    """A residual VAE for images, with latents as a vector or as a feature map.

    Args:
        data_shape: (H, W, C), H and W from 8 to 1,024, odd or even, any C.
        latent_dim: Z, the number of latents in a vector; unused with latent_channels.
        latent_channels: c, channels of a feature map of latents [h, w, c], where h and w are the
            sides of the smallest level; None: the latents are a vector [latent_dim].
        channels: channels of each level; each level has half the sides of the previous one.
        blocks: residual blocks of a level, at most 64. Self-attention follows at the smallest level
            if it has at most 64 x 64 places.
        rematerialize: whether a gradient computes the blocks' inner values again instead of keeping
            them. On an accelerator this allows larger batches, for a third more computation.
        data_mean: [*data_shape]; the initial mean of p(x|z) is its mean over the pixels.
        posterior, prior, likelihood, sigma, num_categories, num_components, precision,
            data_loc, data_unit, data_scale, pseudo_inputs, condition: as in `mlp_vae`.

    Raises:
        ValueError: the data are not images of these sizes, there are too many levels or blocks, or
            as in `mlp_vae`.

    Ref: Esser, Rombach & Ommer, Taming Transformers for High-Resolution Image Synthesis, 2021.

    >>> vae = resnet_vae(data_shape=(9, 12, 3), latent_channels=2, channels=(4, 4))
    >>> params = jax.jit(vae.init)(jax.random.key(0))
    >>> z = jax.jit(vae.encode)(params, jnp.ones((9, 12, 3))).mean()
    >>> z.shape, jax.jit(vae.decode)(params, z).mean().shape
    ((5, 6, 2), (9, 12, 3))
    """
    data_shape, channels = tuple(data_shape), tuple(channels)
    _check_image("resnet_vae", data_shape, LARGEST_SIDE)
    check_name("precision", precision, get_args(Precision))
    of_map = () if latent_channels is None else (latent_channels,)
    sizes = {"latent_dim": (latent_dim,), "channels": channels, "blocks": (blocks,)}
    check_sizes(data_shape=data_shape, latent_channels=of_map, **sizes)
    _check_levels(data_shape, channels, blocks)
    levels = Levels(channels, blocks, rematerialize, DTYPES[precision])
    shape: tuple[int, ...] = (latent_dim,)
    if latent_channels is not None:
        shape = (*levels.smallest(data_shape), latent_channels)
    q = posterior_named(posterior, math.prod(shape), num_categories)
    q = q if latent_channels is None else on_feature_map(q, shape)
    if data_mean is not None and jnp.shape(data_mean) == data_shape:
        # One bias per channel cannot give each pixel its mean, but all of them their mean.
        data_mean = jnp.broadcast_to(jnp.mean(data_mean, (0, 1), keepdims=True), data_shape)
    families = choose_families(
        data_shape,
        q,
        prior=prior,
        likelihood=likelihood,
        sigma=sigma,
        num_components=num_components,
        data_loc=data_loc,
        data_unit=data_unit,
        data_mean=data_mean,
        data_scale=data_scale,
        pseudo_inputs=pseudo_inputs,
        condition=condition,
    )
    on_map = latent_channels is not None
    encoder = ResNetEncoder(q.num_outputs, levels, on_map and q.outputs_axis is not None)
    decoder = ResNetDecoder(families.outputs_shape, levels, on_map, families.output_bias)
    return assemble(encoder, decoder, families)


def conditional_vae(
    *,
    condition: int | tuple[int, ...],
    model: str = "mlp",
    prior: str = "conditional",
    **arguments: Any,
) -> VAE:
    """A VAE of p(x|y), whose condition y reaches every layer of encoder, decoder and prior.

        log p(x|y) >= E_(z ~ q(z|x,y)) log p(x|z,y) - KL(q(z|x,y) || p(z|y))

    Its functions take y last, its examples are `Conditioned(x, y)`, and `vae.given(y)` is the VAE
    of one condition, for the bounds. Train it with `make_train_step(drop_condition=0.1)` to have
    p(x) too, as `vae.given(vae.condition.absent())`.

    Args:
        condition: number of categories of a label y, or the shape of an array y of numbers. A label
            -1, or NaN among the numbers, is an absent condition (`Condition`).
        model: "mlp", "conv" or "resnet".
        prior: "conditional", a learned p(z|y), or any prior of `mlp_vae`.
        arguments: those of `mlp_vae`, `conv_vae` or `resnet_vae`.

    Raises:
        ValueError: the condition or the model is unknown, or as in these functions.

    Ref: Sohn, Lee & Yan, Learning Structured Output Representation using Deep Conditional
    Generative Models, 2015, NeurIPS; Doersch 2016, arXiv 1606.05908, section 3.

    >>> vae = conditional_vae(condition=10, data_shape=(8,), latent_dim=2, hidden=(16,))
    >>> params, three = vae.init(jax.random.key(0)), vae.given(jnp.int32(3))
    >>> z = three.prior(params).sample(jax.random.key(1))
    >>> three.decode(params, z).mean().shape
    (8,)
    """
    check_name("model", model, tuple(BUILDERS))
    return BUILDERS[model](condition=condition, prior=prior, **arguments)


BUILDERS: dict[str, Callable[..., VAE]] = {"mlp": mlp_vae, "conv": conv_vae, "resnet": resnet_vae}
"""Name of a model -> its builder."""


def _check_image(function: str, data_shape: tuple[int, ...], largest: int) -> None:
    if len(data_shape) != 3 or not all(8 <= side <= largest for side in data_shape[:2]):
        raise ValueError(
            f"{function} needs images (H, W, C) with H and W from 8 to {largest:,}, got "
            f"data_shape={data_shape}. Resize the images, or use mlp_vae, which takes any shape."
        )


def _check_levels(data_shape: tuple[int, ...], channels: tuple[int, ...], blocks: int) -> None:
    most = int(math.log2(min(data_shape[:2]))) + 1
    if not 1 <= len(channels) <= most:
        raise ValueError(
            f"resnet_vae: channels has {len(channels)} entries, and images of {data_shape[0]} x "
            f"{data_shape[1]} pixels allow from 1 to {most}, since each level after the first "
            "halves them. Give others."
        )
    if blocks > MOST_BLOCKS:
        raise ValueError(f"blocks must be from 1 to {MOST_BLOCKS}, got {blocks}.")
