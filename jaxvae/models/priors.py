"""Prior families p(z); their parameters are trained with the rest of the model."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.distributions import Distribution, Gaussian, Mixture, reshaped, soft_clamp
from jaxvae.flows import coupling_flow, coupling_init
from jaxvae.models.posteriors import Posterior

PRIOR_WIDTH = 128
"""Width of the hidden layer of a conditional prior."""
Encode = Callable[[jax.Array], Distribution]
"""x -> q(z|x)."""


class Prior(NamedTuple):
    """A family p(z), as pure functions.

    Attributes:
        init: key -> the family's own parameters, {} if it has no parameters.
        distribution: (family's parameters, x -> q(z|x), condition [E] or None) -> p(z).
    """

    init: Callable[[jax.Array], dict[str, Any]]
    distribution: Callable[..., Distribution]


class Setting(NamedTuple):
    """Inputs of a prior's builder.

    Attributes:
        posterior: the family whose latents the prior is over.
        num_components: number of components of a mixture.
        pseudo_inputs: key -> initial pseudo-inputs [num_components, *data_shape] of a VampPrior.
        condition_size: E, size of a condition's vector; None: the model has no condition.
    """

    posterior: Posterior
    num_components: int
    pseudo_inputs: Callable[[jax.Array], jax.Array]
    condition_size: int | None = None


def standard(setting: Setting) -> Prior:
    """N(0, I), or the uniform distribution where the posterior's space is not Euclidean."""
    return Prior(
        init=lambda key: {},
        distribution=lambda params, encode, condition=None: setting.posterior.standard_prior(),
    )


def conditional(setting: Setting) -> Prior:
    """p(z|y): a diagonal Gaussian from one hidden layer, which starts as N(0, I).

    Ref: Sohn, Lee & Yan, Learning Structured Output Representation using Deep Conditional
    Generative Models, 2015, NeurIPS.
    """
    _check_euclidean("conditional", setting.posterior)
    size, shape = setting.condition_size, setting.posterior.latent_shape

    def init(key: jax.Array) -> dict[str, Any]:
        assert size is not None
        hidden = jax.random.normal(key, (size, PRIOR_WIDTH)) / math.sqrt(size)
        return {
            "hidden": {"kernel": hidden, "bias": jnp.zeros(PRIOR_WIDTH)},
            "out": {"kernel": jnp.zeros((PRIOR_WIDTH, 2, *shape)), "bias": jnp.zeros((2, *shape))},
        }

    def distribution(
        params: Any, encode: Encode, condition: jax.Array | None = None
    ) -> Distribution:
        assert condition is not None
        hidden, out = params["hidden"], params["out"]
        h = jnp.tanh(condition @ hidden["kernel"] + hidden["bias"])
        loc, log_scale = jnp.tensordot(h, out["kernel"], 1) + out["bias"]
        return Gaussian(loc, soft_clamp(log_scale))

    return Prior(init, distribution)


def mixture(setting: Setting) -> Prior:
    """A mixture of diagonal Gaussians whose weights, locations and scales are parameters.

    Ref: Dilokthanakul et al., Deep Unsupervised Clustering with GMVAE, 2016, arXiv 1611.02648.
    """
    _check_euclidean("mixture", setting.posterior)
    shape = (setting.num_components, *setting.posterior.latent_shape)

    def init(key: jax.Array) -> dict[str, Any]:
        return {
            "logits": jnp.zeros(shape[0]),
            "loc": jax.random.normal(key, shape),
            "log_scale": jnp.zeros(shape),
        }

    def distribution(
        params: Any, encode: Encode, condition: jax.Array | None = None
    ) -> Distribution:
        components = Gaussian(params["loc"], soft_clamp(params["log_scale"]))
        return Mixture(params["logits"], components)

    return Prior(init, distribution)


def vamp(setting: Setting) -> Prior:
    """VampPrior: a mixture of the posteriors q(z|u_m) at learned pseudo-inputs u_m.

        p(z) = sum_m softmax(logits)_m q(z|u_m)

    With the data as the u_m and equal weights, it is the aggregated posterior. The weights are
    learned too (Tomczak & Welling fix them at 1/M).

    Ref: Tomczak & Welling, VAE with a VampPrior, 2018, AISTATS.
    """

    def init(key: jax.Array) -> dict[str, Any]:
        return {
            "logits": jnp.zeros(setting.num_components),
            "pseudo_inputs": setting.pseudo_inputs(key),
        }

    def distribution(
        params: Any, encode: Encode, condition: jax.Array | None = None
    ) -> Distribution:
        return Mixture(params["logits"], jax.vmap(encode)(params["pseudo_inputs"]))

    return Prior(init, distribution)


def flow(setting: Setting) -> Prior:
    """N(0, I) transformed by four affine coupling layers.

    Ref: Chen et al., Variational Lossy Autoencoder, 2017, ICLR; Dinh et al., Real NVP, 2017.
    """
    _check_euclidean("flow", setting.posterior)
    shape = setting.posterior.latent_shape
    dim = math.prod(shape)
    return Prior(
        init=lambda key: coupling_init(key, dim, num_layers=4),
        distribution=lambda params, encode, condition=None: reshaped(
            coupling_flow(params, Gaussian.standard(dim)), shape
        ),
    )


def _check_euclidean(name: str, posterior: Posterior) -> None:
    usual = posterior.standard_prior()
    if not isinstance(usual, Gaussian):
        raise ValueError(
            f"prior={name} needs Euclidean latents, but this posterior's are not: their standard "
            f"prior is a {type(usual).__name__}. Use prior=standard or vamp, or a Gaussian or flow "
            "posterior."
        )


PRIORS: dict[str, Callable[[Setting], Prior]] = {
    "standard": standard,
    "mixture": mixture,
    "vamp": vamp,
    "flow": flow,
}
"""Values of the model builders' argument `prior`. Add yours here."""
PRIORS_GIVEN_Y = {"conditional": conditional}
"""More values, for models with a condition."""


def prior_named(name: str, setting: Setting) -> Prior:
    """The prior of that name.

    Raises:
        ValueError: the name is unknown, num_components < 1, or the prior needs other latents.
    """
    known = PRIORS if setting.condition_size is None else PRIORS | PRIORS_GIVEN_Y
    if name not in known:
        remedy = "prior=conditional needs a condition." if name in PRIORS_GIVEN_Y else ""
        raise ValueError(f"prior must be one of {', '.join(known)}, got {name!r}. {remedy}".strip())
    if setting.num_components < 1:
        raise ValueError(f"num_components must be at least 1, got {setting.num_components}.")
    return known[name](setting)
