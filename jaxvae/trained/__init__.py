"""A trained VAE with its preprocessing: stored rows go in, answers in the data's unit come out."""

from jaxvae.trained.reference import Reference
from jaxvae.trained.trained_vae import Score, TrainedVAE

__all__ = ["Reference", "Score", "TrainedVAE"]
