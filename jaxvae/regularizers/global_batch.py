"""The global batch: gathering it from the devices, and checking that it can be compared."""

from typing import Any

import jax
import jax.numpy as jnp


def gathered(tree: Any, axis_name: str | None) -> Any:
    """Gather the rows of all devices, in the order of the devices: [B, ...] for every leaf.

    In the backward pass, a row gets the sum of all devices' cotangents. So if each device adds the
    same function of the gathered rows to its loss, and the devices' gradients are averaged, the
    gradient is that of one device with the whole batch.

    Args:
        tree: leaves [B / devices, ...].
        axis_name: name of the mapped axis; None: the given rows are the whole batch.

    >>> rows = jnp.arange(6.0).reshape(3, 2)
    >>> jax.vmap(lambda row: gathered(row, "devices"), axis_name="devices")(rows).shape
    (3, 6)
    """
    if axis_name is None:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, axis_name, tiled=True), tree)


def check_batch(what: str, z: jax.Array) -> None:
    """Check, at trace time, that draws have the shape [B, Z] with at least two rows.

    Raises:
        ValueError: the draws are not vectors, or there is no other example to compare with.
    """
    if jnp.ndim(z) != 2:
        raise ValueError(
            f"{what} compares vectors: latents must be [B, Z], got shape {jnp.shape(z)}. Use a "
            "posterior over vectors, or train without this regularizer."
        )
    if jnp.shape(z)[0] < 2:
        raise ValueError(
            f"{what} compares the examples of a batch: latents must be [B, Z] with B at least 2, "
            f"got shape {jnp.shape(z)}. Raise the batch size, or train without this regularizer."
        )
