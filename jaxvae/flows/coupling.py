"""Coupling layers: a network of one half of z transforms the other half, entry by entry."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxvae.distributions import Flow, soft_clamp
from jaxvae.flows.conditioner import Params, check_vector, conditioner, conditioner_init
from jaxvae.flows.ordering import alternate
from jaxvae.flows.spline import NUM_BINS, Spline

FlowName = Literal["affine", "spline"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Affine:
    """The map x -> x exp(log_scale) + shift of one number.

    Args:
        shift: [].
        log_scale: [].

    Ref: Dinh, Sohl-Dickstein & Bengio, Density Estimation Using Real NVP, 2017, ICLR.

    >>> float(Affine(jnp.array(1.0), jnp.array(0.0)).forward(jnp.array(2.0))[0])
    3.0
    """

    shift: jax.Array
    log_scale: jax.Array

    @classmethod
    def from_raw(cls, raw: jax.Array) -> "Affine":
        """Make the map from unconstrained parameters [2]; `soft_clamp` limits the log scale."""
        return cls(raw[0], soft_clamp(raw[1]))

    def forward(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """y and log dy/dx."""
        return x * jnp.exp(self.log_scale) + self.shift, self.log_scale

    def inverse(self, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x and log dx/dy."""
        return (y - self.shift) * jnp.exp(-self.log_scale), -self.log_scale


ENTRYWISE: dict[str, tuple[Any, int]] = {
    "affine": (Affine, 2),
    "spline": (Spline, 3 * NUM_BINS - 1),
}
"""Kind -> the map of one number, and its number of parameters, outputs of the network."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Coupling:
    """One coupling layer: the first floor(Z / 2) entries stay, and determine the map of the others.

        z' = (z_a, f(z_b)),  f from network(z_a, context),  log |det| = sum_b log f'(z_b)

    With Z = 1, the map of the single entry depends only on the context and the biases.

    Args:
        params: parameters of the network (`coupling_init` makes those of all layers).
        context: [C] from the encoder, or None.
        kind: "affine" (`Affine`) or "spline" (`Spline`), static.

    Raises:
        ValueError: the length of z or of the context does not match the parameters, or the
            parameters are of another kind.

    Ref: Dinh, Sohl-Dickstein & Bengio 2017; Durkan et al., Neural Spline Flows, 2019, NeurIPS.
    """

    params: Params
    context: jax.Array | None = None
    kind: FlowName = field(default="affine", metadata={"static": True})

    def forward(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z' [Z] and log |det dz'/dz| []."""
        kept, moving, maps = self._split(z)
        moved, log_slopes = jax.vmap(lambda f, entry: f.forward(entry))(maps, moving)
        return jnp.concatenate([kept, moved]), jnp.sum(log_slopes)

    def inverse(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Inverse image of z [Z] and log |det| of the inverse []."""
        kept, moving, maps = self._split(z)
        moved, log_slopes = jax.vmap(lambda f, entry: f.inverse(entry))(maps, moving)
        return jnp.concatenate([kept, moved]), jnp.sum(log_slopes)

    def _split(self, z: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
        """Split z into the entries that stay and those that move; return also the maps of these."""
        entrywise, per_entry = _entrywise(self.kind)
        first, last = (self.params[f"layer_{i}"] for i in (0, len(self.params) - 1))
        num_kept = first["kernel"].shape[0] if "kernel" in first else 0
        num_moving, left_over = divmod(last["bias"].shape[0], per_entry)
        if left_over or num_moving - num_kept not in (0, 1):
            raise ValueError(
                f"Coupling: a layer of kind {self.kind!r} must have {per_entry} outputs for each "
                f"entry that moves, got {last['bias'].shape[0]} in all. Build the parameters "
                "with the kind of the flow."
            )
        check_vector("Coupling", z, num_kept + num_moving)
        kept, moving = z[:num_kept], z[num_kept:]
        raw = conditioner(self.params, kept, self.context).reshape(num_moving, per_entry)
        return kept, moving, jax.vmap(entrywise.from_raw)(raw)


def coupling_init(
    key: jax.Array,
    dim: int,
    *,
    context_dim: int = 0,
    hidden: Sequence[int] = (128,),
    num_layers: int = 2,
    kind: FlowName = "affine",
) -> Params:
    """Make parameters of a flow of coupling layers: {"flow_0": ..., "flow_1": ..., ...}.

    Args:
        key: consumed here.
        dim: Z, at least 1.
        context_dim: C, entries of the context vector; 0: no context.
        hidden: widths of each network's hidden layers.
        num_layers: number of transforms; one layer moves half of the entries.
        kind: "affine" or "spline".

    Raises:
        ValueError: a size is below 1, or the kind is unknown.

    Ref: as in `coupling_flow`.

    >>> list(coupling_init(jax.random.key(0), 4, num_layers=3))
    ['flow_0', 'flow_1', 'flow_2']
    """
    _, per_entry = _entrywise(kind)
    bias = jnp.zeros((dim - dim // 2) * per_entry)
    sizes = (dim // 2, *hidden, bias.shape[0])
    keys = jax.random.split(key, num_layers)
    return {
        f"flow_{i}": conditioner_init(keys[i], sizes, context_dim, bias) for i in range(num_layers)
    }


def coupling_flow(
    params: Params, base: Any, context: jax.Array | None = None, *, kind: FlowName = "affine"
) -> Flow:
    """Transform a base by coupling layers, every second one reversed.

    Args:
        params: from `coupling_init`.
        base: a distribution over [Z].
        context: [C], or None if the parameters have no context.
        kind: "affine" or "spline", the same as for `coupling_init`.

    Ref: Dinh, Sohl-Dickstein & Bengio 2017; Durkan et al. 2019.

    >>> from jaxvae.distributions import Gaussian
    >>> prior = coupling_flow(coupling_init(jax.random.key(0), 3), Gaussian.standard(3))
    >>> prior.sample(jax.random.key(1)).shape
    (3,)
    """
    layers = [Coupling(params[f"flow_{i}"], context, kind) for i in range(len(params))]
    return Flow(base, alternate(layers))


def _entrywise(kind: str) -> tuple[Any, int]:
    if kind not in ENTRYWISE:
        raise ValueError(f"kind must be affine or spline, got {kind!r}.")
    return ENTRYWISE[kind]
