"""Kullback-Leibler divergences, in closed form where there is one, else estimated from draws."""

from jaxvae.divergences.kullback_leibler import (
    CLOSED_FORMS,
    PER_LATENT,
    has_closed_form,
    kl,
    kl_per_latent,
    splits_by_latent,
)
from jaxvae.divergences.levels import kl_per_level, same_order

__all__ = [
    "CLOSED_FORMS",
    "PER_LATENT",
    "has_closed_form",
    "kl",
    "kl_per_latent",
    "kl_per_level",
    "same_order",
    "splits_by_latent",
]
