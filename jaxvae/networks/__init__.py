"""Flax linen modules: dense layers, encoders and decoders."""
