"""Checkpoints of a training run: `Checkpoints` saves and restores them.

`load` reads a model and its parameters, `load_trained` also its preprocessing.

The only part of the library that touches files.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxvae.checkpoints.checkpoints import Checkpoints, Restored, load
    from jaxvae.checkpoints.manifest import Damaged, SaveFailed, Unusable, digest
    from jaxvae.checkpoints.saved_items import FORMAT
    from jaxvae.checkpoints.trained_run import load_trained, read_reference, write_reference

__all__ = [
    "FORMAT",
    "Checkpoints",
    "Damaged",
    "Restored",
    "SaveFailed",
    "Unusable",
    "digest",
    "load",
    "load_trained",
    "read_reference",
    "write_reference",
]


def __getattr__(name: str) -> Any:
    """Import orbax, which takes a second, only when one of the names above is used."""
    for module in (
        ("manifest", "saved_items", "checkpoints", "trained_run") if name in __all__ else ()
    ):
        found = vars(importlib.import_module(f"jaxvae.checkpoints.{module}"))
        if name in found:
            return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
