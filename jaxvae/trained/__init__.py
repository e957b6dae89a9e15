"""A trained VAE with its preprocessing: stored rows go in, answers in the data's unit come out."""

from jaxvae.trained.reference import USUAL_SAMPLES, Reference, Score, ranked, spread_evenly
from jaxvae.trained.trained_vae import TrainedVAE

__all__ = ["USUAL_SAMPLES", "Reference", "Score", "TrainedVAE", "ranked", "spread_evenly"]
