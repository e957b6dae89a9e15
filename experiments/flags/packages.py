"""Packages that the commands need beside the library's own, and the extra that brings each."""

from importlib.util import find_spec

EXTRA_OF = {"tensorboardX": "tensorboard", "torch": "peers"}
"""Where it is another than `experiments`."""
OURS = (
    *("tensorflow_datasets", "importlib_resources", "array_record", "tyro", "matplotlib", "PIL"),
    *("jax", "flax", "optax", "orbax", "numpy", "rich", *EXTRA_OF),
)
"""As they are imported."""


def require_packages(*names: str) -> None:
    """Refuse to start without packages that are imported later.

    Raises:
        ValueError: what to do about the first that is not installed.
    """
    for name in names:
        if find_spec(name) is None:
            raise ValueError(install_line(ModuleNotFoundError(name=name)))


def install_line(error: ModuleNotFoundError) -> str:
    """What to do about a package that could not be imported, in one line.

    >>> install_line(ModuleNotFoundError("No module named 'torch'", name="torch"))
    "the package torch is not installed. Run python -m pip install -e '.[peers]'."
    """
    name = (error.name or "").partition(".")[0]
    if name not in OURS:
        return f"{error}. Install it."
    extra = EXTRA_OF.get(name, "experiments")
    return f"the package {name} is not installed. Run python -m pip install -e '.[{extra}]'."
