"""Models whose log p(x) is known exactly, and a check of any objective against them."""

from jaxvae.testing.check import check_bound
from jaxvae.testing.discrete import DiscreteLatent
from jaxvae.testing.linear_gaussian import LinearGaussian
from jaxvae.testing.not_finite import NotFinite, first_not_finite
from jaxvae.testing.report import BoundReport, Comparison
from jaxvae.testing.tutorial import OneDimensional

__all__ = [
    "BoundReport",
    "Comparison",
    "DiscreteLatent",
    "LinearGaussian",
    "NotFinite",
    "OneDimensional",
    "check_bound",
    "first_not_finite",
]
