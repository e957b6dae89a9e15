"""Distributions over one event: small frozen pytrees with sample, log_prob and mean."""

from jaxvae.distributions.bernoulli import Bernoulli
from jaxvae.distributions.categorical import Categorical
from jaxvae.distributions.continuous_bernoulli import ContinuousBernoulli
from jaxvae.distributions.counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from jaxvae.distributions.distribution import (
    Distribution,
    NoClosedForm,
    at_least_float32,
    check_summed,
    mean_of,
    sample_and_log_prob,
)
from jaxvae.distributions.feature_map import Reshaped, flattened, flattened_draw, reshaped
from jaxvae.distributions.flow import Flow
from jaxvae.distributions.full_covariance_gaussian import FullCovarianceGaussian
from jaxvae.distributions.gaussian import LOG_SCALE_LIMIT, Gaussian, soft_clamp
from jaxvae.distributions.hierarchy import Hierarchy
from jaxvae.distributions.laplace import Laplace
from jaxvae.distributions.logistic import (
    ColorLogisticMixture,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
)
from jaxvae.distributions.low_rank_gaussian import LowRankGaussian
from jaxvae.distributions.mixture import Mixture
from jaxvae.distributions.one_hot_categorical import OneHotCategorical
from jaxvae.distributions.relaxed_categorical import RelaxedCategorical
from jaxvae.distributions.requirements import (
    check_array,
    check_density,
    check_draws,
    check_function,
)
from jaxvae.distributions.scaled_difference import standardized
from jaxvae.distributions.von_mises_fisher import UniformSphere, VonMisesFisher

__all__ = [
    "LOG_SCALE_LIMIT",
    "Bernoulli",
    "Categorical",
    "ColorLogisticMixture",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Distribution",
    "Flow",
    "FullCovarianceGaussian",
    "Gaussian",
    "Hierarchy",
    "Laplace",
    "LowRankGaussian",
    "Mixture",
    "NegativeBinomial",
    "NoClosedForm",
    "OneHotCategorical",
    "Poisson",
    "RelaxedCategorical",
    "Reshaped",
    "UniformSphere",
    "VonMisesFisher",
    "ZeroInflatedNegativeBinomial",
    "at_least_float32",
    "check_array",
    "check_density",
    "check_draws",
    "check_function",
    "check_summed",
    "flattened",
    "flattened_draw",
    "mean_of",
    "reshaped",
    "sample_and_log_prob",
    "soft_clamp",
    "standardized",
]
