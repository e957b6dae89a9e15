"""Distributions over one event: small frozen pytrees with sample, log_prob and mean."""

from jaxvae.distributions.bernoulli import Bernoulli
from jaxvae.distributions.distribution import (
    Distribution,
    at_least_float32,
    check_summed,
    sample_and_log_prob,
)
from jaxvae.distributions.full_covariance_gaussian import FullCovarianceGaussian
from jaxvae.distributions.gaussian import Gaussian, soft_clamp

__all__ = [
    "Bernoulli",
    "Distribution",
    "FullCovarianceGaussian",
    "Gaussian",
    "at_least_float32",
    "check_summed",
    "sample_and_log_prob",
    "soft_clamp",
]
