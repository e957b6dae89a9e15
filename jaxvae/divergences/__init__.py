"""Kullback-Leibler divergences: closed form where there is one, estimated where there is none."""

from jaxvae.divergences.kullback_leibler import (
    CLOSED_FORMS,
    PER_LATENT,
    has_closed_form,
    kl,
    kl_per_latent,
    splits_by_latent,
)

__all__ = [
    "CLOSED_FORMS",
    "PER_LATENT",
    "has_closed_form",
    "kl",
    "kl_per_latent",
    "splits_by_latent",
]
