"""Versions of the packages that a result depends on."""

import platform
from importlib import metadata

PACKAGES = ("jaxvae", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """The versions of what the numbers depend on; a clone that is not installed has none."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
