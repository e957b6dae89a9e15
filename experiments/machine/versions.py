"""Versions of the packages that a result depends on."""

import platform
from importlib import metadata

PACKAGES = ("jaxvae", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of packages that numbers depend on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
