"""Weights of a net as named arrays, the common format of all variants and of the judge."""

from pathlib import Path
from typing import Any

import numpy as np

Weights = dict[str, np.ndarray]
"""Name -> array in the library's layout: "encoder/params/Dense_0/kernel" [in, out], ..."""


def named(params: Any, path: str = "") -> Weights:
    """Flatten nested dicts of parameters; the path of a leaf becomes its name.

    >>> named({"encoder": {"bias": np.zeros(2)}, "likelihood": {}})
    {'encoder/bias': array([0., 0.])}
    """
    if not isinstance(params, dict):
        return {path: np.asarray(params)}
    found: Weights = {}
    for name, value in params.items():
        found |= named(value, f"{path}/{name}" if path else name)
    return found


def as_tree(weights: Weights, like: Any, path: str = "") -> Any:
    """Arrange named arrays in the structure of nested dicts of parameters.

    Raises:
        ValueError: the names differ from those of the tree's leaves.
    """
    if not path and (other := named(like).keys() ^ weights.keys()):
        raise ValueError(f"weights must be those of the net; {sorted(other)} are not in both.")
    if not isinstance(like, dict):
        return weights[path]
    return {
        name: as_tree(weights, value, f"{path}/{name}" if path else name)
        for name, value in like.items()
    }


def mean(several: list[Weights]) -> Weights:
    """Average each array over several sets of weights.

    >>> mean([{"bias": np.zeros(2)}, {"bias": np.ones(2)}])
    {'bias': array([0.5, 0.5])}
    """
    return {name: np.mean([one[name] for one in several], axis=0) for name in several[0]}


def save(path: str | Path, weights: Weights) -> None:
    """Write named arrays to an .npz file."""
    np.savez(path, **weights)  # type: ignore[arg-type]


def load(path: str | Path) -> Weights:
    """Read named arrays from a file that `save` wrote."""
    with np.load(path) as arrays:
        return dict(arrays)
