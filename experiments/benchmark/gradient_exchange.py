"""Variant that times only the averaging of gradients over devices."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from experiments.benchmark.library_steps import first_process_says
from experiments.benchmark.setting import make_setting
from experiments.benchmark.timed import Timed, Work
from experiments.machine.keys import root_key
from jaxvae.training.devices import AXIS, make_mesh

REPETITIONS = 20
"""Averages per dispatch; each averages the result of the previous one."""


def prepare(net: str, segment_seconds: float, **where: Any) -> Timed:
    """Prepare the mean over devices of a tree shaped like the net's parameters; one mean a step."""
    setting = make_setting(net, **where)
    mesh, whole = make_mesh(setting.devices), PartitionSpec()
    shapes = jax.eval_shape(setting.vae.init, root_key(0))

    def ones() -> Any:
        return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)

    def exchange(gradients: Any) -> Any:
        once = lambda _, tree: jax.lax.pmean(tree, AXIS)
        return jax.lax.fori_loop(0, REPETITIONS, once, gradients)

    mapped = jax.jit(
        jax.shard_map(exchange, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
    )
    gradients = jax.jit(ones, out_shardings=NamedSharding(mesh, whole))()
    jax.block_until_ready(mapped(gradients))

    def advance(calls: int) -> None:
        for _ in range(calls):
            jax.block_until_ready(mapped(gradients))

    num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    about = {"num_bytes": num_bytes}
    return Timed(Work(advance, REPETITIONS, 1, about, agree=first_process_says), segment_seconds)
