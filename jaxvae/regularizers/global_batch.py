"""The global batch: collected from the devices that share it, and large enough to compare."""

from typing import Any

import jax
import jax.numpy as jnp


def gathered(tree: Any, axis_name: str | None) -> Any:
    """The rows of all devices, in the order of the devices: [B, ...] of every leaf.

    Backwards, a row gets the sum of what all devices send to it. So where each device adds the
    same function of the gathered rows to its loss, and the devices' gradients are averaged, the
    gradient is that of one device that holds the whole batch.

    Args:
        tree: leaves [B / devices, ...].
        axis_name: of the mapped axis; None: the rows at hand are all there are.

    >>> rows = jnp.arange(6.0).reshape(3, 2)
    >>> jax.vmap(lambda row: gathered(row, "devices"), axis_name="devices")(rows).shape
    (3, 6)
    """
    if axis_name is None:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, axis_name, tiled=True), tree)


def check_batch(what: str, z: jax.Array) -> None:
    """Refuse draws that are not [B, Z] with at least two rows, at trace time.

    Raises:
        ValueError: there is no other example to compare with.
    """
    if jnp.ndim(z) != 2:
        raise ValueError(
            f"{what} compares vectors: latents must be [B, Z], got shape {jnp.shape(z)}. Use a "
            "posterior over vectors, or train without it."
        )
    if jnp.shape(z)[0] < 2:
        raise ValueError(
            f"{what} compares the examples of a batch: latents must be [B, Z] with B at least 2, "
            f"got shape {jnp.shape(z)}. Raise the batch size, or train without it."
        )
