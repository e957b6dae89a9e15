"""Order in which the layers of a flow see the entries of a vector."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reversed:
    """A transform that reads and writes the entries of z from last to first.

    Its result is in the order of its input, so that a flow of layers near the identity is itself
    near the identity, for any number of layers.

    Args:
        transform: a map with `forward` and `inverse`.
    """

    transform: Any

    def forward(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z' [Z] and log |det dz'/dz| []."""
        moved, log_det = self.transform.forward(jnp.flip(z))
        return jnp.flip(moved), log_det

    def inverse(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Inverse image of z [Z] and log |det| of the inverse []."""
        moved, log_det = self.transform.inverse(jnp.flip(z))
        return jnp.flip(moved), log_det


def alternate(layers: Sequence[Any]) -> tuple[Any, ...]:
    """Reverse every second layer, so that it transforms the entries its neighbours condition on."""
    return tuple(Reversed(layer) if i % 2 else layer for i, layer in enumerate(layers))
