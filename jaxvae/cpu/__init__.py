"""Faster versions, for CPUs, of functions of jax with the same results; GPUs and TPUs use jax's."""
