"""`fit`: from an array to a trained model in a few lines."""

from jaxvae.fitting.fit import fit

__all__ = ["fit"]
