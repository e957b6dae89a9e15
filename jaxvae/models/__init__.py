"""The model interface `VAE`, two models that implement it, and the parts they are built from."""
