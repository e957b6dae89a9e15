"""Devices: placing state and data, splitting keys, and the pmapped call of many steps.

Only this file uses pmap. The state has no device axis on input or output, so that a checkpoint
looks the same for any number of devices; data have one, [devices, ...]. With several processes,
each passes the rows of its own devices (`local_positions`), steps average over the devices of all
processes, and every process gets all results.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvae.cpu.blocks import map_in_blocks
from jaxvae.leaves import at_rows
from jaxvae.training.reduction import zeros
from jaxvae.training.state import TrainState
from jaxvae.training.step import Metrics

AXIS = "devices"

TrainStep = Callable[[TrainState, jax.Array, Any], tuple[TrainState, Metrics]]
ChunkStep = Callable[[TrainState, jax.Array, Any, jax.Array], tuple[TrainState, Metrics]]


def make_mesh(devices: list[jax.Device]) -> Mesh:
    """Make a mesh of one axis, "devices", ordered by process.

    Row i of the global batch then has the same key on any layout (`row_keys`).

    Raises:
        ValueError: there is no device.

    >>> make_mesh(jax.devices()[:1]).axis_names
    ('devices',)
    """
    if not devices:
        raise ValueError("there must be at least one device, got none. Use jax.devices().")
    return Mesh(np.array(sorted(devices, key=lambda device: device.process_index)), (AXIS,))


def local_positions(mesh: Mesh) -> list[int]:
    """Positions in the mesh of the devices of this process.

    >>> local_positions(make_mesh(jax.devices()[:1]))
    [0]
    """
    here = jax.process_index()
    return [i for i, device in enumerate(mesh.devices.flat) if device.process_index == here]


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Put the whole tree on each of this process's devices in the mesh."""
    return jax.device_put(tree, NamedSharding(mesh.local_mesh, PartitionSpec()))


def shard(tree: Any, mesh: Mesh) -> Any:
    """Put row i of arrays [devices of this process, ...] on this process's i-th device."""
    return jax.device_put(tree, NamedSharding(mesh.local_mesh, PartitionSpec(AXIS)))


def row_keys(key: jax.Array, step: jax.Array, batch_size: int, num_devices: int) -> jax.Array:
    """Keys of this device's rows of the batch: [batch_size / num_devices].

    Row i of the global batch gets key i of `split(fold_in(key, step), batch_size)` on whichever
    device it is. The axis "devices" must be bound.
    """
    keys = jax.random.split(jax.random.fold_in(key, step), batch_size)
    # A legacy key is itself an array along the last axis.
    return keys.reshape(num_devices, -1, *keys.shape[1:])[jax.lax.axis_index(AXIS)]


def make_chunk_step(
    train_step: TrainStep, mesh: Mesh, batch_size: int, steps_per_dispatch: int
) -> ChunkStep:
    """Make a pmapped function that runs up to S = `steps_per_dispatch` steps in one dispatch.

    It maps (state, key, chunk [devices, S, batch_size / devices, ...], count []) to (state,
    metrics [S]); the chunk may be a pytree of such arrays. It runs the first `count` steps of the
    chunk; the metrics of the others are zero. `count` is traced, so that one program serves the
    whole run, its last chunk included, and a resumed run repeats the same arithmetic. The input
    state is donated.

    Args:
        train_step: from `jaxvae.training.step.make_train_step` with axis_name="devices".
        mesh: from `make_mesh`.
        batch_size: size of the global batch.
        steps_per_dispatch: capacity of a chunk in steps.

    Raises:
        ValueError: the batch cannot be split evenly over the devices.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> from jaxvae import init_state, make_train_step, mlp_vae
    >>> vae, optimizer = mlp_vae(data_shape=(8,), latent_dim=2, hidden=()), optax.sgd(0.1)
    >>> train_step = make_train_step(vae, optimizer, axis_name="devices")
    >>> mesh = make_mesh(jax.devices()[:1])
    >>> chunk_step = make_chunk_step(train_step, mesh, batch_size=2, steps_per_dispatch=3)
    >>> state = init_state(vae, optimizer, jax.random.key(0))
    >>> state, metrics = chunk_step(
    ...     state, jax.random.key(1), jnp.ones((1, 3, 2, 8)), jnp.int32(2))
    >>> int(state.step), metrics["elbo"].shape
    (2, (3,))
    """
    num_devices = mesh.size
    check_divisible(batch_size, num_devices)
    one_step = jax.jit(train_step)

    def run(
        state: TrainState, key: jax.Array, chunk: Any, count: jax.Array
    ) -> tuple[TrainState, Metrics]:
        def keyed_step(state: TrainState, examples: Any) -> tuple[TrainState, Metrics]:
            return one_step(state, row_keys(key, state.step, batch_size, num_devices), examples)

        def body(i: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, rows = carry
            state, metrics = keyed_step(state, at_rows(chunk, i))
            return state, jax.tree.map(lambda all, one: all.at[i].set(one), rows, metrics)

        rows = zeros(jax.eval_shape(keyed_step, state, at_rows(chunk, 0))[1], steps_per_dispatch)
        return jax.lax.fori_loop(0, count, body, (state, rows))

    return _over_devices(run, mesh, (None, None, 0, None), None, donate_argnums=(0,))


def compile_in_background(chunk_step: Any, mesh: Mesh, *arguments: Any) -> "Future[ChunkStep]":
    """Trace a chunk step now and compile it in a thread.

    Under `JAX_DISABLE_JIT` it is only traced, which raises the errors of an invalid step, and not
    compiled. Under `JAX_DEBUG_NANS` the result is the chunk step itself, which can locate a NaN.

    Args:
        chunk_step: from `make_chunk_step`.
        mesh: the devices.
        arguments: arguments of the later calls, or their shapes.
    """
    # With several processes pmap traces only arrays, and its compiled program has other arguments.
    if mesh.is_multi_process:
        arguments = jax.tree.map(_zeros, arguments)
    if _is_eager():
        with jax.disable_jit(False):
            jax.eval_shape(chunk_step, *arguments)
        done: Future[ChunkStep] = Future()
        done.set_result(chunk_step)
        return done
    lowered = chunk_step.lower(*arguments)
    as_it_is = mesh.is_multi_process or jax.config.jax_debug_nans  # type: ignore[attr-defined]

    def compiled() -> ChunkStep:
        program = lowered.compile()
        return chunk_step if as_it_is else program

    background = ThreadPoolExecutor(max_workers=1)
    future = background.submit(compiled)
    background.shutdown(wait=False)
    return future


def _zeros(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.Array) else np.zeros(leaf.shape, leaf.dtype)


def make_gather(mesh: Mesh) -> Callable[[Any, jax.Array], Any]:
    """Make a pmapped gather: (examples [N, ...], rows [devices, ...]) to examples[rows].

    Every device holds all examples (`replicate`). With several processes, each passes the rows of
    its own devices and gets their examples.
    """

    def of_device(examples: Any, rows: jax.Array) -> Any:
        gathered = lambda leaf: leaf.at[rows].get(mode="promise_in_bounds")
        return jax.tree.map(gathered, examples)

    return _over_devices(of_device, mesh, (None, 0), 0)


def make_map(
    function: Callable[..., Any], mesh: Mesh, microbatch_size: int | None = None
) -> Callable[..., Any]:
    """Map a function (params, key, example) over examples on all devices with pmap.

    The result maps (params, key, indices [devices, B], examples [devices, B, ...]) to results
    [devices, B, ...]; the example of index i gets the key fold_in(key, i). With several processes,
    each passes the rows of its own devices and gets the results of all.

    Args:
        function: function of one example.
        mesh: the devices.
        microbatch_size: number of examples that a device computes at once; B must be a multiple.
            The results are then bit-for-bit the same for any B and number of devices. None: all,
            but on a CPU as many as fit in its cache.
    """
    several = mesh.is_multi_process

    def of_one(params: Any, key: jax.Array, index: jax.Array, example: Any) -> Any:
        return function(params, jax.random.fold_in(key, index), example)

    def of_device(params: Any, key: jax.Array, indices: jax.Array, examples: Any) -> Any:
        rows = (indices, examples)
        of_row = lambda row: of_one(params, key, *row)
        if microbatch_size is not None:
            results = jax.lax.map(of_row, rows, batch_size=microbatch_size)
        elif mesh.devices.flat[0].platform == "cpu":
            results = map_in_blocks(of_row, rows)
        else:
            results = jax.vmap(of_row)(rows)
        return jax.lax.all_gather(results, AXIS) if several else results

    return _over_devices(of_device, mesh, (None, None, 0, 0), None if several else 0)


def _over_devices(
    function: Callable[..., Any],
    mesh: Mesh,
    in_axes: tuple[int | None, ...],
    out_axes: int | None,
    donate_argnums: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """Map a function over the devices with pmap, or under `JAX_DISABLE_JIT` with vmap.

    Without jit, `pmap` recompiles each operation every time it runs; `vmap` does not. Several
    processes always use pmap.
    """
    if _is_eager() and not mesh.is_multi_process:
        mapped = jax.vmap(function, in_axes=in_axes, axis_name=AXIS)
        if out_axes == 0:
            return mapped
        return lambda *arguments: jax.tree.map(lambda all: all[0], mapped(*arguments))
    return jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=in_axes,
        out_axes=out_axes,
        donate_argnums=donate_argnums,
        devices=list(mesh.devices.flat),
    )


def _is_eager() -> bool:
    return jax.config.jax_disable_jit  # type: ignore[attr-defined]


def check_divisible(batch_size: int, num_devices: int) -> None:
    """Check that the devices can share a global batch evenly.

    Raises:
        ValueError: they cannot; the message names the nearest sizes that work.

    >>> check_divisible(100, 4)
    """
    if batch_size < 1 or batch_size % num_devices:
        below = batch_size // num_devices * num_devices
        sizes = f"{below} or {below + num_devices}" if below > 0 else f"{num_devices}"
        raise ValueError(
            f"batch_size={batch_size} cannot be shared evenly by {num_devices} devices. "
            f"The nearest sizes that can: {sizes}."
        )
