"""Reduce the cost of compiling: store programs on disk, and free the memory that it took."""

import contextlib
import ctypes
import gc
import hashlib
import os
import platform
import warnings
from pathlib import Path

from experiments.flags.path_checks import require_folder

AUTO = "auto"
OFF = "none"


def use(where: str) -> None:
    """Let jax store compiled programs in a folder. Call this before jax compiles the first one.

    Compiled programs use instructions that other CPUs may lack: each kind of CPU has a subfolder.

    Args:
        where: a folder; "auto": jax's own setting if there is one, else `jaxvae` in the user's
            cache folder (XDG_CACHE_HOME, or ~/.cache); "none": store nothing.

    Raises:
        ValueError: the folder cannot be used.
    """
    import jax

    if where == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if where == AUTO and jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if where == AUTO and caches.startswith("~"):
        return  # a user without a home: compile each time
    folder = Path(caches) / "jaxvae" if where == AUTO else Path(where)
    folder /= f"{jax.__version__}-{_cpu()}"
    try:
        require_folder(folder, "--compilation-cache")  # jax creates it with the first program
    except ValueError as error:
        if where == AUTO:
            return  # a home that cannot be written: compile each time
        raise ValueError(f"--compilation-cache={where}: {error} Or give {OFF}.") from error
    # jax warns for every program if the folder is read-only or its disk is or was full.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def give_back_memory() -> None:
    """Collect garbage and, with glibc, return free memory to the system.

    Imports, tracing and compiling leave much of it.
    """
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _cpu() -> str:
    """Name of this kind of CPU, from the instructions it supports if the system lists them."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else [platform.processor()]
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"
