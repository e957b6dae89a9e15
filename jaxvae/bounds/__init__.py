"""Bounds on log p(x), each (key, x, *, encode, decode, prior) -> Bound for one example."""

from jaxvae.bounds.bound import Bound, Decode, Encode, over_draws, posterior_samples
from jaxvae.bounds.elbo import elbo
from jaxvae.bounds.estimators import EstimatorName
from jaxvae.bounds.importance import ciwae, iwae, miwae, piwae
from jaxvae.bounds.renyi import renyi
from jaxvae.bounds.semi_supervised import Labelled, semi_supervised
from jaxvae.bounds.thermodynamic import tvo

__all__ = [
    "Bound",
    "Decode",
    "Encode",
    "EstimatorName",
    "Labelled",
    "ciwae",
    "elbo",
    "iwae",
    "miwae",
    "over_draws",
    "piwae",
    "posterior_samples",
    "renyi",
    "semi_supervised",
    "tvo",
]
