"""Test set-up: 8 simulated CPU devices, strict settings of jax, and shared fixtures."""

import dataclasses
import gc
import os
import sys
import tempfile
import zipfile
import zlib
from importlib.metadata import version
from pathlib import Path

# More threads than simulated devices need: with fewer, collectives on a small machine can wait
# forever for a thread (see BUILD.md, "Simulated devices").
os.environ.setdefault("PJRT_NPROC", "32")
# Compilation takes most of a test's time, so LLVM does not optimise here. jaxlib 0.10 has two ways
# to emit code for fusions, of which the plainer is used, and need not split a program among
# threads; later versions may abort at these flags. XLA's own passes, fusion included, are those of
# a user. Put XLA_FLAGS= in front of the command to run the tests on optimised code.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + (
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        if version("jaxlib").startswith("0.10.")
        else ""
    ),
)

import jax
import numpy as np
import pytest

from experiments.flags.config import TrainConfig
from experiments.machine.compilation_cache import give_back_memory
from experiments.train import train

# Programs are compiled once per session and shared by all tests of all pytest workers, which
# inherit the environment of the process that starts them and deletes the folder at its end.
COMPILED = "JAXVAE_TESTS_COMPILED"
if COMPILED not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="jaxvae-tests-", ignore_cleanup_errors=True)
    os.environ[COMPILED] = _compiled.name
jax.config.update("jax_compilation_cache_dir", os.environ[COMPILED])
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


def pytest_addoption(parser):
    text = "run only part I of N, counted from 0, of the selected test functions"
    parser.addoption("--part", metavar="I/N", help=text)


def pytest_collection_modifyitems(config, items):
    """Keep the part of the tests that --part chooses, all parameters of a function together."""
    if config.getoption("--part"):
        part, parts = map(int, config.getoption("--part").split("/"))
        functions = [item.nodeid.partition("[")[0] for item in items]
        mine = [zlib.crc32(name.encode()) % parts == part for name in functions]
        items[:] = [item for item, kept in zip(items, mine, strict=True) if kept]


def pytest_collection_finish():
    """Exclude the thousands of collected tests and imported modules from garbage collection.

    Tracing makes so many objects that collections would otherwise take a twentieth of the time.
    """
    gc.freeze()
    gc.set_threshold(50_000)


@pytest.fixture(scope="session", autouse=True)
def runs_keep_their_memory():
    """Let training runs in this process skip what `memory_is_given_back` does for each test file.

    They would collect garbage five times each, an eighth of their time. Runs that tests start as
    processes do so.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module in ("dispatch", "finish"):
            patch.setattr(f"experiments.run.{module}.give_back_memory", lambda: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def memory_is_given_back():
    """Clear jax's in-memory caches after each test file: the programs remain cached on disk.

    Otherwise a pytest worker grows by 50 to 450 MB per file, to more than 6 GB.
    """
    yield
    jax.clear_caches()
    give_back_memory()


@pytest.fixture(scope="session", autouse=True)
def no_noise_of_closed_loops():
    """Ignore errors of reads that end after orbax has closed its event loop, as the commands do.

    orbax reads a checkpoint's arrays in parallel. If one is damaged, it closes its event loop while
    threads are still reading the others.
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
    """Value of --dataset for 330 images, 8 x 8, each with one bright row."""
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
    """Flags of a finished, uninterrupted run of 60 steps."""
    config = dataclasses.replace(small, run=tmp_path_factory.mktemp("whole") / "run")
    assert train(config) == 0
    return config


@pytest.fixture
def first_release(tmp_path, monkeypatch):
    """Finished run of 20 steps, in `run` of the current directory (see test_first_release.py)."""
    with zipfile.ZipFile(Path(__file__).with_name("first_release.zip")) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"
