"""Posterior families: map the outputs of an encoder network to q(z|x)."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.distributions import (
    Distribution,
    FullCovarianceGaussian,
    Gaussian,
    LowRankGaussian,
    OneHotCategorical,
    RelaxedCategorical,
    UniformSphere,
    VonMisesFisher,
    reshaped,
    soft_clamp,
)
from jaxvae.flows import autoregressive_flow, autoregressive_init, coupling_flow, coupling_init

RANK = 2
"""Most columns of the factor of a low-rank covariance; there are at most latent_dim."""
TEMPERATURE = 2 / 3
"""Temperature of a relaxed categorical posterior."""
PRIOR_TEMPERATURE = 0.5
"""Temperature of that posterior's standard prior; both as in Maddison et al. 2017."""


class Posterior(NamedTuple):
    """A family q(z|x), as pure functions.

    Attributes:
        num_outputs: number of outputs of the encoder network.
        latent_shape: shape of z.
        init: key -> the family's own parameters, {} if it has no parameters.
        distribution: (family's parameters, outputs [num_outputs], float32 or wider) -> q(z|x).
        standard_prior: () -> p(z) without parameters, over the same latents.
        outputs_axis: axis of a latent's outputs, if each latent has its own: 0 if the outputs are
            [n, Z] in one row, 1 if they are [Z, n]; None: each output belongs to all latents.
    """

    num_outputs: int
    latent_shape: tuple[int, ...]
    init: Callable[[jax.Array], dict[str, Any]]
    distribution: Callable[[Any, jax.Array], Distribution]
    standard_prior: Callable[[], Distribution]
    outputs_axis: int | None = 0


def gaussian(latent_dim: int, num_categories: int) -> Posterior:
    """N(loc, diag(exp(log_scale))^2); `jaxvae.soft_clamp` limits the log scales.

    >>> gaussian(3, 0).num_outputs
    6
    """
    return _euclidean(2 * latent_dim, latent_dim, lambda params, outputs: _gaussian(outputs))


def full_covariance(latent_dim: int, num_categories: int) -> Posterior:
    """N(loc, L L^T) with L = diag(exp(log_scale)) (I + strictly lower part).

    Ref: Kingma & Welling, An Introduction to Variational Autoencoders, 2019, section 2.5.1.
    """
    num_below = latent_dim * (latent_dim - 1) // 2

    def distribution(params: Any, outputs: jax.Array) -> Distribution:
        q = _gaussian(outputs[: 2 * latent_dim])
        unit = jnp.eye(latent_dim) + _strictly_lower(outputs[2 * latent_dim :], latent_dim)
        return FullCovarianceGaussian(q.loc, jnp.exp(q.log_scale)[:, None] * unit)

    posterior = _euclidean(2 * latent_dim + num_below, latent_dim, distribution)
    return posterior._replace(outputs_axis=None)


def _strictly_lower(entries: jax.Array, dim: int) -> jax.Array:
    """Matrix [dim, dim] with these entries below its diagonal, row by row.

    It is built from slices, since jax cannot shard a scatter over an axis of type `Explicit`.
    """
    starts = [row * (row - 1) // 2 for row in range(dim + 1)]
    rows = [entries[starts[i] : starts[i + 1]] for i in range(dim)]
    return jnp.stack([jnp.pad(row, (0, dim - row.shape[0])) for row in rows])


def low_rank(latent_dim: int, num_categories: int) -> Posterior:
    """N(loc, F F^T + S^2), S = diag(exp(log_scale)), F = S times two columns of outputs."""
    rank = min(RANK, latent_dim)

    def distribution(params: Any, outputs: jax.Array) -> Distribution:
        q = _gaussian(outputs[: 2 * latent_dim])
        factor = outputs[2 * latent_dim :].reshape(latent_dim, rank)
        return LowRankGaussian(q.loc, jnp.exp(q.log_scale)[:, None] * factor, q.log_scale)

    posterior = _euclidean(latent_dim * (2 + rank), latent_dim, distribution)
    return posterior._replace(outputs_axis=None)  # [2, Z] and [Z, rank] in one row


def iaf(latent_dim: int, num_categories: int) -> Posterior:
    """A diagonal Gaussian transformed by two layers of inverse autoregressive flow.

    Ref: Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow, 2016.
    """
    return _flow(latent_dim, autoregressive_init, autoregressive_flow)


def coupling(latent_dim: int, num_categories: int) -> Posterior:
    """A diagonal Gaussian transformed by two affine coupling layers.

    Ref: Dinh, Sohl-Dickstein & Bengio, Density estimation using Real NVP, 2017, ICLR.
    """
    return _flow(latent_dim, coupling_init, coupling_flow)


def spline(latent_dim: int, num_categories: int) -> Posterior:
    """A diagonal Gaussian transformed by two rational-quadratic spline coupling layers.

    Ref: Durkan et al., Neural Spline Flows, 2019, NeurIPS.
    """
    make = partial(coupling_init, kind="spline")
    return _flow(latent_dim, make, partial(coupling_flow, kind="spline"))


def von_mises_fisher(latent_dim: int, num_categories: int) -> Posterior:
    """Von Mises-Fisher in latent_dim dimensions, with concentration 1 + softplus(last output).

    Ref: Davidson et al., Hyperspherical Variational Auto-Encoders, 2018, UAI.
    """
    if latent_dim < 2:
        raise ValueError(
            f"posterior=von_mises_fisher needs latent_dim of at least 2, got {latent_dim}."
        )

    def distribution(params: Any, outputs: jax.Array) -> Distribution:
        direction = outputs[:-1]
        # 1e-12 keeps the square root's gradient finite for a direction of length 0.
        length = jnp.sqrt(jnp.sum(jnp.square(direction)) + 1e-12)
        concentration = 1 + jax.nn.softplus(outputs[-1])
        return VonMisesFisher(direction / length, jnp.log(concentration))

    return Posterior(
        num_outputs=latent_dim + 1,
        latent_shape=(latent_dim,),
        init=lambda key: {},
        distribution=distribution,
        standard_prior=lambda: UniformSphere(latent_dim),
        outputs_axis=None,
    )


def relaxed_categorical(latent_dim: int, num_categories: int) -> Posterior:
    """Gumbel-softmax: latent_dim points in the simplex of num_categories.

    Ref: Maddison, Mnih & Teh, The Concrete Distribution, 2017; Jang, Gu & Poole 2017, ICLR.
    """
    return _categories(
        (latent_dim, num_categories),
        lambda logits: RelaxedCategorical(logits, jnp.float32(TEMPERATURE)),
        lambda logits: RelaxedCategorical(logits, jnp.float32(PRIOR_TEMPERATURE)),
    )


def categorical(latent_dim: int, num_categories: int) -> Posterior:
    """One-hot vectors [latent_dim, num_categories]; use the estimators "score" or "vimco"."""
    return _categories((latent_dim, num_categories), OneHotCategorical, OneHotCategorical)


def _gaussian(outputs: jax.Array) -> Gaussian:
    loc, log_scale = jnp.split(outputs, 2)
    return Gaussian(loc, soft_clamp(log_scale))


def _euclidean(
    num_outputs: int, latent_dim: int, distribution: Callable[[Any, jax.Array], Distribution]
) -> Posterior:
    return Posterior(
        num_outputs=num_outputs,
        latent_shape=(latent_dim,),
        init=lambda key: {},
        distribution=distribution,
        standard_prior=lambda: Gaussian.standard(latent_dim),
    )


def _flow(
    latent_dim: int, init: Callable[..., dict[str, Any]], flow: Callable[..., Distribution]
) -> Posterior:
    """A flow whose base and context [latent_dim] are outputs of the encoder."""

    def distribution(params: Any, outputs: jax.Array) -> Distribution:
        context = outputs[2 * latent_dim :]
        return flow(params, _gaussian(outputs[: 2 * latent_dim]), context)

    posterior = _euclidean(3 * latent_dim, latent_dim, distribution)
    return posterior._replace(init=partial(init, dim=latent_dim, context_dim=latent_dim))


def _categories(
    shape: tuple[int, int],
    distribution: Callable[[jax.Array], Distribution],
    prior: Callable[[jax.Array], Distribution],
) -> Posterior:
    """A posterior and a standard prior from logits of that shape; the prior's are zero."""
    if shape[1] < 2:
        raise ValueError(f"num_categories must be at least 2, got {shape[1]}.")
    return Posterior(
        num_outputs=shape[0] * shape[1],
        latent_shape=shape,
        init=lambda key: {},
        distribution=lambda params, outputs: distribution(outputs.reshape(shape)),
        standard_prior=lambda: prior(jnp.zeros(shape)),
        outputs_axis=1,
    )


def on_feature_map(posterior: Posterior, shape: tuple[int, ...]) -> Posterior:
    """The posterior with its latents as a feature map, and the outputs of an encoder by place.

    Args:
        posterior: a posterior over vectors of h w c latents.
        shape: (h, w, c). The encoder's outputs are [h, w, n c] in one row, with the n outputs of a
            latent c apart; or as before, if they belong to all latents.

    >>> on_feature_map(gaussian(12, 0), (2, 3, 2)).latent_shape
    (2, 3, 2)
    """
    axis = posterior.outputs_axis

    def distribution(params: Any, outputs: jax.Array) -> Distribution:
        if axis is not None:
            by_place = outputs.reshape(*shape[:-1], -1, shape[-1])
            outputs = jnp.moveaxis(by_place, -2, 0 if axis == 0 else -1).reshape(-1)
        return reshaped(posterior.distribution(params, outputs), shape)

    return posterior._replace(
        latent_shape=(*shape, *posterior.latent_shape[1:]),
        distribution=distribution,
        standard_prior=lambda: reshaped(posterior.standard_prior(), shape),
    )


POSTERIORS: dict[str, Callable[[int, int], Posterior]] = {
    "gaussian": gaussian,
    "full_covariance": full_covariance,
    "low_rank": low_rank,
    "iaf": iaf,
    "coupling": coupling,
    "spline": spline,
    "von_mises_fisher": von_mises_fisher,
    "relaxed_categorical": relaxed_categorical,
    "categorical": categorical,
}
"""Values of the model builders' argument `posterior`: (latent_dim, num_categories) -> Posterior."""


def posterior_named(name: str, latent_dim: int, num_categories: int) -> Posterior:
    """The posterior of that name.

    Raises:
        ValueError: the name is unknown, or the family does not exist in these sizes.
    """
    if name not in POSTERIORS:
        raise ValueError(f"posterior must be one of {', '.join(POSTERIORS)}, got {name!r}.")
    return POSTERIORS[name](latent_dim, num_categories)
