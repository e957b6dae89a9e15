"""Preprocessing: from stored examples to the x that a model sees, as pure functions.

`preprocess` chooses the conversion that suits a likelihood, and `choose_likelihood` the likelihood
that suits the data. `units_of` gives the location and unit of each column.
"""

from jaxvae.preprocessing.choice import Choice, choose_likelihood, doubt
from jaxvae.preprocessing.columns import ColumnUnits, units_of
from jaxvae.preprocessing.conversion import Conversion
from jaxvae.preprocessing.images import cover, resize
from jaxvae.preprocessing.rules import RULES, Preprocessing, Splits, preprocess

__all__ = [
    "RULES",
    "Choice",
    "ColumnUnits",
    "Conversion",
    "Preprocessing",
    "Splits",
    "choose_likelihood",
    "cover",
    "doubt",
    "preprocess",
    "resize",
    "units_of",
]
