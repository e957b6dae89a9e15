"""What compiling costs: programs are kept on disk, and the memory it took is given back."""

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
    """Let jax keep compiled programs in a folder; before jax compiles the first one.

    A program is compiled for the very instructions of a CPU: each kind has a folder of its own.

    Args:
        where: a folder; "auto": jax's own setting where there is one, else `jaxvae` in the
            user's cache folder (XDG_CACHE_HOME, or ~/.cache); "none": none.
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
        require_folder(folder, "--compilation-cache")  # jax makes it for the first program
    except ValueError as error:
        if where == AUTO:
            return  # a home that cannot be written: compile each time
        raise ValueError(f"--compilation-cache={where}: {error} Give another, or {OFF}.") from error
    # Where the folder is read-only or its disk is or was full: once for each program.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def give_back_memory() -> None:
    """Collect garbage and, where C's library is glibc, return to the system what is free.

    What imports, tracing and a compiler leave is not small.
    """
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _cpu() -> str:
    """A name for the kind of CPU, by the instructions it knows where the system tells them."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else [platform.processor()]
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"
