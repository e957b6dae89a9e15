"""Pytrees whose leaves are not all arrays to be trained: split them, and put them together again.

The parameters of a model may be any pytree, such as an Equinox module. Training moves its floating
point arrays. Integer and boolean arrays are part of the state and of checkpoints, without a
gradient. Everything else (functions, strings, Python numbers) is no part of the state.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of numbers or booleans, or the shape of one; Python numbers not.

    >>> [is_array(leaf) for leaf in (np.zeros(2), jnp.arange(3), 1.0, "relu", jax.nn.relu)]
    [True, True, False, False, False]
    """
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)):
        return False
    return jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool


def is_trained(leaf: Any) -> bool:
    """Whether a leaf is an array of floating point numbers, which has a gradient."""
    return is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)


def partition(tree: Any, keep: Callable[[Any], bool]) -> tuple[Any, Any]:
    """Two trees, with the leaves that `keep` selects and with all others; `combine` undoes it.

    Both have None in place of what is in the other. Where `keep` selects every leaf, they are the
    tree itself and None: classes that check their fields are not filled with None then.

    >>> partition({"kernel": jnp.zeros(2), "count": 3}, is_array)
    ({'count': None, 'kernel': Array([0., 0.], dtype=float32)}, {'count': 3, 'kernel': None})
    """
    if all(map(keep, jax.tree.leaves(tree))):
        return tree, None
    kept = jax.tree.map(lambda leaf: leaf if keep(leaf) else None, tree)
    return kept, jax.tree.map(lambda leaf: None if keep(leaf) else leaf, tree)


def combine(kept: Any, rest: Any) -> Any:
    """The tree of the two that `partition` returned.

    >>> combine(*partition({"kernel": 1.0, "count": 3}, lambda leaf: leaf == 3))
    {'count': 3, 'kernel': 1.0}
    """
    if rest is None:
        return kept
    one_of = lambda first, second: second if first is None else first
    return jax.tree.map(one_of, kept, rest, is_leaf=lambda leaf: leaf is None)


def path_of(path: tuple[Any, ...]) -> str:
    """The name of a leaf in a message.

    >>> path_of(jax.tree_util.tree_leaves_with_path({"layers": [1.0]})[0][0])
    'layers/0'
    """
    return jax.tree_util.keystr(path, simple=True, separator="/") or "(the parameters themselves)"


@jax.tree_util.register_pytree_node_class
class ArraysOnly:
    """An object whose leaves are not all arrays, as a pytree whose leaves are: `arrays_only`.

    It has the attributes and methods of the object.
    """

    def __init__(self, arrays: Any, rest: Any) -> None:
        self._arrays, self._rest = arrays, rest

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copy and pickle ask for some before __init__ has run
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
    """A pytree as one that `jax.vmap` and collectives take: itself, if all its leaves are arrays.

    Otherwise an `ArraysOnly`: a posterior with a network among its fields has functions as leaves.

    >>> arrays_only({"loc": jnp.zeros(2)})
    {'loc': Array([0., 0.], dtype=float32)}
    """
    takes = lambda leaf: is_array(leaf) or isinstance(leaf, (jax.Array, int, float, complex))
    arrays, rest = partition(tree, takes)
    return tree if rest is None else ArraysOnly(arrays, rest)
