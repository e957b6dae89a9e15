"""Packages that the commands need besides those of the library, and the extra that has each."""

from importlib.util import find_spec

EXTRA_OF = {"tensorboardX": "tensorboard", "torch": "peers"}
"""Package -> its extra, if that is not `experiments`."""
OURS = (
    *("tensorflow_datasets", "importlib_resources", "array_record", "tyro", "matplotlib", "PIL"),
    *("jax", "flax", "optax", "orbax", "numpy", "rich", *EXTRA_OF),
)
"""Packages of the library and of the extras, by their import names."""


def require_packages(*names: str) -> None:
    """Check that packages that are imported later are installed.

    Raises:
        ValueError: one is missing; the text says how to install the first of them.
    """
    for name in names:
        if find_spec(name) is None:
            raise ValueError(install_line(ModuleNotFoundError(name=name)))


def install_line(error: ModuleNotFoundError) -> str:
    """One line that says how to install a package that could not be imported.

    >>> install_line(ModuleNotFoundError("No module named 'torch'", name="torch"))
    "the package torch is not installed. Run python -m pip install -e '.[peers]'."
    """
    name = (error.name or "").partition(".")[0]
    if name not in OURS:
        return f"{error}. Install it."
    extra = EXTRA_OF.get(name, "experiments")
    return f"the package {name} is not installed. Run python -m pip install -e '.[{extra}]'."
