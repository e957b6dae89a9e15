"""Splitting and recombining pytrees with leaves that are not arrays to be trained.

The parameters of a model may be any pytree, such as an Equinox module. Training updates its
floating point arrays. Integer and boolean arrays are part of the state and of checkpoints, but have
no gradient. All other leaves (functions, strings, Python numbers) are not part of the state.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_array(leaf: Any) -> bool:
    """True for an array of numbers or booleans, or the shape of one, but not for Python numbers.

    >>> [is_array(leaf) for leaf in (np.zeros(2), jnp.arange(3), 1.0, "relu", jax.nn.relu)]
    [True, True, False, False, False]
    """
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)):
        return False
    return jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool


def is_trained(leaf: Any) -> bool:
    """True for an array of floating point numbers, which has a gradient."""
    return is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)


def count_rows(tree: Any) -> int:
    """Length of the leading axis of all arrays of a tree.

    Raises:
        ValueError: there is no array, or the lengths differ.

    >>> count_rows({"x": np.zeros((3, 2)), "y": np.zeros(3)})
    3
    """
    lengths = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(tree)}
    if len(lengths) != 1:
        raise ValueError(
            f"all arrays of a batch must have the same number of rows, got {sorted(lengths)}. "
            "Give each example one row of each."
        )
    return lengths.pop()


def at_rows(tree: Any, rows: Any) -> Any:
    """Index the leading axis of all arrays of a tree, by anything that indexes an array.

    >>> at_rows({"x": np.arange(3), "y": np.ones(3)}, 1)["x"].item()
    1
    """
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def partition(tree: Any, keep: Callable[[Any], bool]) -> tuple[Any, Any]:
    """Split a tree into the leaves that `keep` selects and all others; `combine` is the inverse.

    Each of the two trees has None in place of the other's leaves. If `keep` selects every leaf, the
    result is (tree, None), so that classes that check their fields are not filled with None.

    >>> partition({"kernel": jnp.zeros(2), "count": 3}, is_array)
    ({'count': None, 'kernel': Array([0., 0.], dtype=float32)}, {'count': 3, 'kernel': None})
    """
    if all(map(keep, jax.tree.leaves(tree))):
        return tree, None
    kept = jax.tree.map(lambda leaf: leaf if keep(leaf) else None, tree)
    return kept, jax.tree.map(lambda leaf: None if keep(leaf) else leaf, tree)


def combine(kept: Any, rest: Any) -> Any:
    """Recombine the two trees that `partition` returned.

    >>> combine(*partition({"kernel": 1.0, "count": 3}, lambda leaf: leaf == 3))
    {'count': 3, 'kernel': 1.0}
    """
    if rest is None:
        return kept
    one_of = lambda first, second: second if first is None else first
    return jax.tree.map(one_of, kept, rest, is_leaf=lambda leaf: leaf is None)


def path_of(path: tuple[Any, ...]) -> str:
    """Name of a leaf for a message.

    >>> path_of(jax.tree_util.tree_leaves_with_path({"layers": [1.0]})[0][0])
    'layers/0'
    """
    return jax.tree_util.keystr(path, simple=True, separator="/") or "(the parameters themselves)"


@jax.tree_util.register_pytree_node_class
class ArraysOnly:
    """A pytree with only the array leaves of an object; see `arrays_only`.

    It has the attributes and methods of that object.
    """

    def __init__(self, arrays: Any, rest: Any) -> None:
        self._arrays, self._rest = arrays, rest

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copy and pickle look some up before __init__ has run
            raise AttributeError(name)
        return getattr(combine(self._arrays, self._rest), name)

    def tree_flatten(self) -> tuple[tuple[Any], tuple[Any, Any]]:
        """The arrays as children; all other leaves as static data, which must be comparable."""
        leaves, structure = jax.tree.flatten(self._rest)
        return (self._arrays,), (tuple(leaves), structure)

    @classmethod
    def tree_unflatten(cls, static: tuple[Any, Any], children: tuple[Any]) -> "ArraysOnly":
        """The inverse of `tree_flatten`."""
        leaves, structure = static
        return cls(children[0], jax.tree.unflatten(structure, leaves))


def arrays_only(tree: Any) -> Any:
    """Convert a pytree to one that `jax.vmap` and collectives accept.

    If all its leaves are arrays, return it as it is; otherwise an `ArraysOnly`. A posterior with a
    network among its fields, for example, has functions as leaves.

    >>> arrays_only({"loc": jnp.zeros(2)})
    {'loc': Array([0., 0.], dtype=float32)}
    """
    takes = lambda leaf: is_array(leaf) or isinstance(leaf, (jax.Array, int, float, complex))
    arrays, rest = partition(tree, takes)
    return tree if rest is None else ArraysOnly(arrays, rest)
