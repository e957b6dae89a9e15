"""A trained VAE with its preprocessing: stored rows go in, answers in the data's unit come out."""

from jaxvae.trained.reference import Reference, Score, ranked, spread_evenly
from jaxvae.trained.trained_vae import TrainedVAE

__all__ = ["Reference", "Score", "TrainedVAE", "ranked", "spread_evenly"]
