"""Variational auto-encoders in JAX: pure functions for one example; vmap and pmap do the rest.

>>> import jax, jax.numpy as jnp, jaxvae
>>> encode = lambda x: jaxvae.Gaussian(x[:2], jnp.zeros(2))          # q(z|x)
>>> decode = lambda z: jaxvae.Bernoulli(jnp.tile(z, 2))              # p(x|z)
>>> prior = jaxvae.Gaussian.standard(2)                              # p(z)
>>> x = jnp.array([1.0, 0.0, 1.0, 1.0])
>>> bound = jaxvae.elbo(jax.random.key(0), x, encode=encode, decode=decode, prior=prior)
>>> bool(bound.elbo == bound.reconstruction - bound.kl)
True
"""

from jaxvae.adapters import adapt
from jaxvae.bounds import (
    Bound,
    Labelled,
    ciwae,
    elbo,
    iwae,
    miwae,
    piwae,
    renyi,
    semi_supervised,
    tvo,
)
from jaxvae.distributions import (
    Bernoulli,
    Categorical,
    ColorLogisticMixture,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Distribution,
    Flow,
    FullCovarianceGaussian,
    Gaussian,
    Hierarchy,
    Laplace,
    LowRankGaussian,
    Mixture,
    NegativeBinomial,
    NoClosedForm,
    OneHotCategorical,
    Poisson,
    RelaxedCategorical,
    UniformSphere,
    VonMisesFisher,
    ZeroInflatedNegativeBinomial,
    mean_of,
    soft_clamp,
)
from jaxvae.divergences import kl
from jaxvae.evaluation import log_likelihood
from jaxvae.fitting import fit
from jaxvae.flows import (
    autoregressive_flow,
    autoregressive_init,
    coupling_flow,
    coupling_init,
)
from jaxvae.models.builders import conditional_vae, conv_vae, mlp_vae, resnet_vae
from jaxvae.models.condition import Condition, Conditioned
from jaxvae.models.stored_parameters import trainable
from jaxvae.models.vae import VAE, in_units
from jaxvae.regularizers import (
    Regularizer,
    density_ratio,
    dip,
    exact_kl_decomposition,
    mmd,
    total_correlation,
)
from jaxvae.trained import TrainedVAE
from jaxvae.training.devices import make_chunk_step, make_mesh
from jaxvae.training.state import TrainState, init_state
from jaxvae.training.step import make_train_step

__all__ = [  # in the order in which data pass through them
    "VAE",
    "mlp_vae",
    "conv_vae",
    "resnet_vae",
    "conditional_vae",
    "Condition",
    "Conditioned",
    "in_units",
    # distributions: over latents, then over data
    "Distribution",
    "adapt",
    "Gaussian",
    "FullCovarianceGaussian",
    "LowRankGaussian",
    "Flow",
    "autoregressive_init",
    "autoregressive_flow",
    "coupling_init",
    "coupling_flow",
    "VonMisesFisher",
    "UniformSphere",
    "OneHotCategorical",
    "RelaxedCategorical",
    "Mixture",
    "Hierarchy",
    "Bernoulli",
    "ContinuousBernoulli",
    "Laplace",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "ColorLogisticMixture",
    "Categorical",
    "Poisson",
    "NegativeBinomial",
    "ZeroInflatedNegativeBinomial",
    "soft_clamp",
    "mean_of",
    "NoClosedForm",
    # bounds
    "kl",
    "Bound",
    "elbo",
    "iwae",
    "miwae",
    "piwae",
    "ciwae",
    "renyi",
    "tvo",
    "semi_supervised",
    "Labelled",
    # penalties on the global batch
    "Regularizer",
    "total_correlation",
    "exact_kl_decomposition",
    "dip",
    "mmd",
    "density_ratio",
    # training and evaluation
    "trainable",
    "TrainState",
    "init_state",
    "make_train_step",
    "make_mesh",
    "make_chunk_step",
    "log_likelihood",
    # from an array to a usable model
    "fit",
    "TrainedVAE",
]


def __getattr__(name: str) -> str:
    """Look up `__version__` on first use: reading the metadata takes longer than the import."""
    if name != "__version__":
        raise AttributeError(f"module 'jaxvae' has no attribute {name!r}")
    from importlib import metadata

    try:
        return metadata.version("jaxvae")
    except metadata.PackageNotFoundError:  # a clone that is not installed
        return "0+unknown"
