"""Inverse autoregressive flow: a network of the entries before it transforms each entry of z."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.distributions import Flow, soft_clamp
from jaxvae.flows.conditioner import Params, check_vector, conditioner, conditioner_init
from jaxvae.flows.ordering import alternate

GATE_BIAS = 2.0
"""Initial logit of the gates: a new layer maps z to about 0.875 z, which is close to a copy."""


def autoregressive_masks(sizes: Sequence[int]) -> list[np.ndarray]:
    """Masks of a masked network (MADE), one array [inputs, units] for each kernel.

    A unit of degree m sees the first m entries of z. Hidden degrees are spread from 0 to Z - 1
    (units of degree 0 see only the context), and output j of either kind has degree j.

    Args:
        sizes: Z, hidden widths, 2 Z.

    Ref: Germain et al., MADE, 2015, ICML.

    >>> [mask.astype(int).tolist() for mask in autoregressive_masks((2, 2, 4))]
    [[[0, 1], [0, 0]], [[1, 1, 1, 1], [0, 1, 0, 1]]]
    """
    dim = sizes[0]
    degrees = [_degrees(width, dim) for width in sizes[1:-1]]
    degrees = [np.arange(1, dim + 1), *degrees, np.tile(np.arange(dim), 2)]
    return [low[:, None] <= high for low, high in pairwise(degrees)]


def _degrees(width: int, dim: int) -> np.ndarray:
    """Degrees of a hidden layer's units [width], in ascending order."""
    return np.arange(width) * dim // width


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class InverseAutoregressive:
    """One layer of inverse autoregressive flow, with the paper's gate.

        z'_d = g_d z_d + (1 - g_d) m_d,    g_d = sigmoid(a_d),    log |det| = sum_d log g_d

    with (m_d, a_d) from z_1..d-1 and the context. `soft_clamp` limits the logit a, so that a gate
    is between 0.0009 and 0.9991. `forward` is one pass through the network; `inverse` is two, the
    first of them in Z steps. On two CPU cores, for a batch of 128, Z = 32 and two layers of 128
    units: draws and their densities take 0.6 ms, densities of values 0.9 ms, their gradient 3 ms.

    Args:
        params: parameters of the masked network (`autoregressive_init` makes those of all layers).
        context: [C] from the encoder, or None.

    Raises:
        ValueError: the length of z or of the context does not match the parameters.

    Ref: Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow, 2016,
    NeurIPS, algorithm 1.
    """

    params: Params
    context: jax.Array | None = None

    def forward(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z' [Z] and log |det dz'/dz| []."""
        m, a = self._target_and_gate(z)
        return z + jax.nn.sigmoid(-a) * (m - z), jnp.sum(jax.nn.log_sigmoid(a))

    def inverse(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Inverse image of z [Z] and log |det| of the inverse []."""
        # Raises if shapes do not match, and gives the precision in which the rest is computed.
        m, _ = jax.eval_shape(self._target_and_gate, z)
        layer, z = jax.tree.map(lambda leaf: jnp.asarray(leaf, m.dtype), (self, z))
        solution = _solution(layer, z)
        _, a = layer._target_and_gate(solution)
        return solution, -jnp.sum(jax.nn.log_sigmoid(a))

    def _target_and_gate(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Targets m and gate logits a, [Z] each."""
        dim = self.params["layer_0"]["kernel"].shape[0]
        check_vector("InverseAutoregressive", z, dim)
        layers = [self.params[f"layer_{i}"] for i in range(len(self.params))]
        masks = autoregressive_masks([dim, *(layer["bias"].shape[0] for layer in layers)])
        m, a = conditioner(self.params, z, self.context, masks).reshape(2, dim)
        return m, soft_clamp(a)


@jax.custom_jvp
def _solution(layer: InverseAutoregressive, moved: jax.Array) -> jax.Array:
    """Solve `layer.forward`(z) = z' = `moved` for z [Z], by forward substitution.

        z_d = G_d(z) = z'_d + exp(-a_d) (z'_d - m_d),    (m_d, a_d) a function of z_1..d-1

    By the implicit function theorem its derivative is

        dz = (1 - dG/dz)^-1 dG    (dG: by the parameters, the context and z', at fixed z)

    so that the gradients of parameters are those of one pass at z, and no history of the Z steps
    is stored. The matrix is triangular: its inverse is also applied by substitution. Gradients use
    the transpose of that substitution, which runs from the last entry to the first.
    """
    return _substitute(layer, moved, jnp.zeros_like(moved))


@_solution.defjvp
def _solution_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """(1 - dG/dz)^-1 is the derivative w.r.t. the shift of the solution of z = G(z) + shift."""
    layer, moved = primals
    z, solve = jax.linearize(partial(_substitute, layer, moved), jnp.zeros_like(moved))

    def fixed_point(layer: InverseAutoregressive, moved: jax.Array) -> jax.Array:
        m, a = layer._target_and_gate(z)
        return moved + jnp.exp(-a) * (moved - m)

    _, shift = jax.jvp(fixed_point, primals, tangents)
    return z, solve(shift)


def _substitute(layer: InverseAutoregressive, moved: jax.Array, shift: jax.Array) -> jax.Array:
    """Solve z_d = G_d(z) + shift_d for z [Z] in one pass through the network, degree by degree.

    Step d computes the units of degree d, layer by layer, and then z_d. Units and entries that are
    not yet computed are zero, so that no kernel needs a mask.
    """
    dim = moved.shape[0]
    kernels, biases = _by_degree(layer.params, layer.context, dim)

    def step(known: list[jax.Array], at: Any) -> tuple[list[jax.Array], jax.Array]:
        d, kernels, biases, moved, shift = at
        known = list(known)
        for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
            total = bias + jnp.matmul(known[i], kernel, precision="highest")
            if i + 1 < len(known):
                start = (d * bias.shape[0],)
                known[i + 1] = jax.lax.dynamic_update_slice(known[i + 1], jnp.tanh(total), start)
        m, a = total
        entry = moved + jnp.exp(-soft_clamp(a)) * (moved - m) + shift
        known[0] = known[0].at[d].set(entry)
        return known, entry

    unknown = [jnp.zeros(kernel.shape[1], moved.dtype) for kernel in kernels]
    _, z = jax.lax.scan(step, unknown, (jnp.arange(dim), kernels, biases, moved, shift))
    return z


def _by_degree(
    params: Params, context: jax.Array | None, dim: int
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Kernels [Z, inputs, units] and biases [Z, units] of each layer, grouped by the units' degree.

    The biases include the context's share. Degrees with fewer units than others are padded with
    units that are always zero.
    """
    kernels, biases = [], []
    low = np.arange(dim)[:, None]
    for i in range(len(params)):
        weights = params[f"layer_{i}"]
        bias = weights["bias"]
        if i == 0 and context is not None:
            bias = bias + jnp.matmul(context, weights["context"], precision="highest")
        last = i == len(params) - 1
        high = np.arange(2 * dim).reshape(2, dim).T if last else _units(bias.shape[0], dim)
        rows = jnp.take(weights["kernel"], low.ravel(), axis=0, mode="fill", fill_value=0)
        blocks = jnp.take(rows, high, axis=1, mode="fill", fill_value=0)
        kernels.append(jnp.moveaxis(blocks, 1, 0))
        biases.append(jnp.take(bias, high, mode="fill", fill_value=0))
        low = high
    return kernels, biases


def _units(width: int, dim: int) -> np.ndarray:
    """Indices of a hidden layer's units of each degree, [Z, most units], padded with `width`."""
    first = np.searchsorted(_degrees(width, dim), np.arange(dim + 1))
    units = first[:-1, None] + np.arange(np.diff(first).max())
    return np.where(units < first[1:, None], units, width)


def autoregressive_init(
    key: jax.Array,
    dim: int,
    *,
    context_dim: int = 0,
    hidden: Sequence[int] = (128,),
    num_layers: int = 2,
) -> Params:
    """Make parameters of an inverse autoregressive flow: {"flow_0": ..., "flow_1": ..., ...}.

    Args:
        key: consumed here.
        dim: Z, at least 1.
        context_dim: C, entries of the context vector; 0: no context.
        hidden: widths of each masked network's hidden layers.
        num_layers: number of transforms.

    Raises:
        ValueError: a size below 1.

    Ref: Kingma et al. 2016.

    >>> list(autoregressive_init(jax.random.key(0), 4, num_layers=3))
    ['flow_0', 'flow_1', 'flow_2']
    """
    bias = jnp.concatenate([jnp.zeros(dim), jnp.full(dim, GATE_BIAS)])
    sizes = (dim, *hidden, 2 * dim)
    keys = jax.random.split(key, num_layers)
    return {
        f"flow_{i}": conditioner_init(keys[i], sizes, context_dim, bias) for i in range(num_layers)
    }


def autoregressive_flow(params: Params, base: object, context: jax.Array | None = None) -> Flow:
    """Transform a base by layers of inverse autoregressive flow, every second one reversed.

    Args:
        params: from `autoregressive_init`.
        base: a distribution over [Z].
        context: [C], or None if the parameters have no context.

    Ref: Kingma et al. 2016.

    >>> from jaxvae.distributions import Gaussian
    >>> params = autoregressive_init(jax.random.key(0), 3)
    >>> autoregressive_flow(params, Gaussian.standard(3)).sample(jax.random.key(1)).shape
    (3,)
    """
    layers = [InverseAutoregressive(params[f"flow_{i}"], context) for i in range(len(params))]
    return Flow(base, alternate(layers))
