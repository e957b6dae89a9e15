"""Train step of the library, dispatched as the training command does and in other ways."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmark.setting import Setting, make_setting
from experiments.benchmark.timed import Timed, Work
from experiments.machine.keys import root_key
from experiments.run.build import Built
from jaxvae import TrainState
from jaxvae.checkpoints.hosts import from_first
from jaxvae.training.batches import Batches
from jaxvae.training.devices import (
    local_positions,
    make_chunk_step,
    make_mesh,
    replicate,
    shard,
)

CHUNK_STEPS = 20
"""Steps per dispatch, except in the variant that dispatches every step."""


def chunk_step_and_arguments(setting: Setting) -> tuple[Any, tuple[Any, ...]]:
    """Return the chunk function of the training command, and its state, key, chunk and count."""
    mesh, batch_size = make_mesh(setting.devices), setting.config.batch_size
    built = setting.built(setting.devices)
    chunk_step = make_chunk_step(built.train_step, mesh, batch_size, CHUNK_STEPS)
    rows = _rows(setting, mesh.size, local_positions(mesh))
    others = root_key(1), np.int32(CHUNK_STEPS)
    state, key, count = (replicate(tree, mesh) for tree in (_state(built), *others))
    return chunk_step, (state, key, shard(rows, mesh), count)


def chunked(setting: Setting) -> Work:
    """Dispatch as the command does: up to CHUNK_STEPS steps a call, state donated, sharded."""
    chunk_step, (state, *others) = chunk_step_and_arguments(setting)
    return _work(setting, state, lambda state: chunk_step(state, *others), CHUNK_STEPS)


def jitted(setting: Setting) -> Work:
    """Dispatch every step on its own."""
    device, batch_size = setting.devices[0], setting.config.batch_size
    built = setting.built([device], axis_name=None)

    def step(state: TrainState, key: jax.Array, rows: jax.Array) -> tuple[TrainState, Any]:
        keys = jax.random.split(jax.random.fold_in(key, state.step), batch_size)
        return built.train_step(state, keys, rows)

    compiled = jax.jit(step, donate_argnums=0)
    rows, key = jax.device_put((_rows(setting, 1)[0, 0], root_key(1)), device)
    state = jax.device_put(_state(built), device)
    return _work(setting, state, lambda state: compiled(state, key, rows), 1)


def scanned(setting: Setting, *, donated: bool = True) -> Work:
    """Dispatch a scan of fixed length under jit, on one device."""
    device, batch_size = setting.devices[0], setting.config.batch_size
    built = setting.built([device], axis_name=None)

    def run(state: TrainState, key: jax.Array, chunk: jax.Array) -> tuple[TrainState, Any]:
        def step(state: TrainState, rows: jax.Array) -> tuple[TrainState, Any]:
            keys = jax.random.split(jax.random.fold_in(key, state.step), batch_size)
            return built.train_step(state, keys, rows)

        return jax.lax.scan(step, state, chunk)

    compiled = jax.jit(run, donate_argnums=(0,) if donated else ())
    chunk, key = jax.device_put((_rows(setting, 1)[0], root_key(1)), device)
    state = jax.device_put(_state(built), device)
    return _work(setting, state, lambda state: compiled(state, key, chunk), CHUNK_STEPS)


def scanned_keeping(setting: Setting) -> Work:
    """Dispatch the scan without donating the state."""
    return scanned(setting, donated=False)


WAYS: dict[str, Callable[[Setting], Work]] = {
    "chunked": chunked,
    "jitted": jitted,
    "scanned": scanned,
    "scanned_keeping": scanned_keeping,
}


def prepare(net: str, segment_seconds: float, way: str, **where: Any) -> Timed:
    """Prepare one way to dispatch as a variant.

    Args:
        net: a key of `NETS`.
        segment_seconds: approximate length of a segment.
        way: a key of `WAYS`.
        where: arguments of `make_setting`, flags of `experiments.train` included.
    """
    return Timed(WAYS[way](make_setting(net, **where)), segment_seconds)


def first_process_says(number: float) -> float:
    """Return the number of process 0 on all processes."""
    return float(from_first(lambda: number))


def _state(built: Built) -> TrainState:
    return jax.jit(built.init_state)(root_key(0))


def _rows(setting: Setting, num_devices: int, positions: Sequence[int] | None = None) -> np.ndarray:
    """Batches of a chunk for this process's devices: [devices, CHUNK_STEPS, B / devices, ...]."""
    batches = Batches(setting.dataset.train, setting.config.batch_size, 0, num_devices, positions)
    return batches.chunk(0, CHUNK_STEPS, CHUNK_STEPS)


def _work(setting: Setting, state: TrainState, call: Callable[..., Any], steps: int) -> Work:
    """Work whose calls pass the state on; the first call is timed as the compilation."""
    started = time.perf_counter()
    carried = [call(state)[0]]
    jax.block_until_ready(carried)
    seconds = time.perf_counter() - started

    def advance(calls: int) -> None:
        for _ in range(calls):
            carried[0], metrics = call(carried[0])
            jax.block_until_ready(metrics)  # as in the command, which reads the metrics

    about = {"compile_seconds": seconds}
    return Work(advance, steps, setting.config.batch_size, about, agree=first_process_says)
