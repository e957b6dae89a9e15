"""Every test runs on 8 simulated CPU devices, with jax's strict settings and warnings as errors."""

import dataclasses
import gc
import os
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

# More threads than simulated devices need: with fewer, collectives on a small machine can wait
# for a thread for ever (see BUILD.md, "Simulated devices").
os.environ.setdefault("PJRT_NPROC", "32")
# Most of a test is compilation: machine code as it comes, and by the plainer of the two ways to
# make it that jaxlib 0.10 has (later ones, which have one, end at a flag they do not know). XLA's
# passes, fusions too, are those of a user; XLA_FLAGS= in front of the command runs the tests on
# optimised code.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)

import jax
import numpy as np
import pytest

from experiments.flags.config import TrainConfig
from experiments.machine.compilation_cache import give_back_memory
from experiments.train import train

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

SMALL = TrainConfig(
    latent_dim=2,
    hidden=(16,),
    batch_size=20,
    learning_rate=1e-2,
    num_steps=60,
    eval_every=25,
    log_every=5,
    eval_samples=4,
    num_devices=1,
    quiet=True,
)


def pytest_collection_finish():
    """Leave thousands of collected tests and imported modules out of garbage collections.

    A training run collects garbage five times, which would take 0.13 s each.
    """
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def memory_is_given_back():
    """Forget the programs of a test file at its end: few are used again, and all are kept on disk.

    Without it a worker of pytest grows by 50 to 450 MB a file, to more than 6 GB.
    """
    yield
    jax.clear_caches()
    give_back_memory()


@pytest.fixture(scope="session", autouse=True)
def no_noise_of_closed_loops():
    """Ignore what the commands ignore, too: reads that end after orbax has left its event loop.

    orbax reads a checkpoint's arrays side by side. If one is damaged it closes its loop, and the
    threads that still read the others find it closed.
    """
    reported = sys.unraisablehook

    def report(unraisable):
        if "Event loop is closed" not in str(unraisable.exc_value):
            reported(unraisable)

    sys.unraisablehook = report
    yield
    sys.unraisablehook = reported


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Images of one bright bar, 8 x 8."""
    rng = np.random.default_rng(0)
    images = np.zeros((330, 8, 8), np.uint8)
    images[np.arange(330), rng.integers(0, 8, 330)] = 250
    path = tmp_path_factory.mktemp("data") / "bars.npz"
    np.savez(path, images=images)
    return f"npz:{path}"


@pytest.fixture(scope="session")
def small(data):
    return dataclasses.replace(SMALL, dataset=data)


@pytest.fixture(scope="session")
def whole_run(small, tmp_path_factory):
    """A run of 60 steps that nothing stopped."""
    config = dataclasses.replace(small, run=tmp_path_factory.mktemp("whole") / "run")
    assert train(config) == 0
    return config


@pytest.fixture
def first_release(tmp_path, monkeypatch):
    """A finished run of 20 steps, `run` in the current folder (see test_first_release.py)."""
    with zipfile.ZipFile(Path(__file__).with_name("first_release.zip")) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"
