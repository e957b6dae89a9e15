"""Every test runs on 8 simulated CPU devices, with jax's strict settings and warnings as errors."""

import os

# More threads than simulated devices need: with fewer, collectives on a small machine can wait
# for a thread for ever (see BUILD.md, "Simulated devices").
os.environ.setdefault("PJRT_NPROC", "32")

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")
