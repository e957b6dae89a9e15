"""Every test runs on 8 simulated CPU devices, with jax's strict settings and warnings as errors."""

import os
import tempfile

# More threads than simulated devices need: with fewer, collectives on a small machine can wait
# for a thread for ever (see BUILD.md, "Simulated devices").
os.environ.setdefault("PJRT_NPROC", "32")

import jax

# What one test has compiled, no other compiles again; gone when the session ends.
_compiled = tempfile.TemporaryDirectory(prefix="jaxvae-tests-", ignore_cleanup_errors=True)
jax.config.update("jax_compilation_cache_dir", _compiled.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")

assert len(jax.devices()) == 8  # starts the backend, so that no test can start another
