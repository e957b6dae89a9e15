"""Regularizers: penalties on the global batch of posteriors and draws, for `make_train_step`."""

from jaxvae.regularizers.density_ratio import density_ratio
from jaxvae.regularizers.dip import dip, dip_penalty
from jaxvae.regularizers.global_batch import gathered
from jaxvae.regularizers.mmd import mmd, mmd_squared
from jaxvae.regularizers.regularizer import Regularizer, no_state
from jaxvae.regularizers.total_correlation import (
    KLDecomposition,
    exact_kl_decomposition,
    kl_decomposition,
    total_correlation,
)

__all__ = [
    "KLDecomposition",
    "Regularizer",
    "density_ratio",
    "dip",
    "dip_penalty",
    "exact_kl_decomposition",
    "gathered",
    "kl_decomposition",
    "mmd",
    "mmd_squared",
    "no_state",
    "total_correlation",
]
