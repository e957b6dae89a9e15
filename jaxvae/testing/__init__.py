"""Models whose log p(x) is known exactly, and a check of any objective against them."""

from jaxvae.testing.check import check_bound
from jaxvae.testing.discrete import DiscreteLatent
from jaxvae.testing.linear_gaussian import LinearGaussian
from jaxvae.testing.linear_gaussian_mixture import LinearGaussianMixture
from jaxvae.testing.not_finite import NotFinite, first_not_finite
from jaxvae.testing.report import BoundReport, Comparison
from jaxvae.testing.tutorial import OneDimensional
from jaxvae.testing.two_layer_gaussian import LinearChain, TwoLayerGaussian

__all__ = [
    "BoundReport",
    "Comparison",
    "DiscreteLatent",
    "LinearChain",
    "LinearGaussian",
    "LinearGaussianMixture",
    "NotFinite",
    "OneDimensional",
    "TwoLayerGaussian",
    "check_bound",
    "first_not_finite",
]
