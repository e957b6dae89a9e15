"""The order in which the layers of a flow see the entries of a vector."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reversed:
    """A transform that reads and writes the entries of z last to first.

    Its result is in the order of its input, so that a flow of layers near the identity is near
    the identity itself, whatever their number.

    Args:
        transform: a map with `forward` and `inverse`.
    """

    transform: Any

    def forward(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z' [Z] and log |det dz'/dz| []."""
        moved, log_det = self.transform.forward(jnp.flip(z))
        return jnp.flip(moved), log_det

    def inverse(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The inverse image of z [Z] and log |det| of the inverse []."""
        moved, log_det = self.transform.inverse(jnp.flip(z))
        return jnp.flip(moved), log_det


def alternate(layers: Sequence[Any]) -> tuple[Any, ...]:
    """The layers, every second one `Reversed`: what one conditions on, the next one moves."""
    return tuple(Reversed(layer) if i % 2 else layer for i, layer in enumerate(layers))
