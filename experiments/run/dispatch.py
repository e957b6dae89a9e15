"""Dispatches of training steps: the number of steps in each, and its rows on the devices."""

from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.machine.compilation_cache import give_back_memory
from experiments.machine.processes import broadcast_decision
from experiments.run.build import Built
from jaxvae.leaves import at_rows
from jaxvae.training.batches import Batches
from jaxvae.training.devices import (
    compile_in_background,
    local_positions,
    make_chunk_step,
    make_gather,
    replicate,
    shard,
)
from jaxvae.training.state import TrainState

CHUNK_STEPS = 100
"""Most steps in one dispatch."""
CHUNK_BYTES = 64 * 2**20
"""Most bytes of examples in one dispatch; a dispatch has at least one step."""
CHUNK_SECONDS = 2.0
"""Target duration of a dispatch: short enough to show progress and to react to Ctrl-C."""
RESIDENT_BYTES = 2 * 2**30
"""Largest training split that is copied to every accelerator, which then gathers its rows."""


def fits(examples: Any, mesh: Mesh) -> bool:
    """Return True if the devices are accelerators and the data at most `RESIDENT_BYTES`."""
    return mesh.devices.flat[0].platform != "cpu" and _bytes(examples) <= RESIDENT_BYTES


def _bytes(examples: Any) -> int:
    return sum(array.nbytes for array in jax.tree.leaves(examples))


class Chunk(NamedTuple):
    """Data of one dispatch.

    Attributes:
        rows: [devices, capacity, B / devices, ...], on the devices.
        num_steps: number of steps that use these rows, at most the capacity.
        num_steps_on_devices: `num_steps` as an array on the devices.
        signal: signal that any process had received when this chunk was decided, or None.
    """

    rows: Any
    num_steps: int
    num_steps_on_devices: jax.Array
    signal: int | None


class Unread(NamedTuple):
    """A dispatch whose metrics are still on the devices.

    Attributes:
        first: number of steps before it.
        num_steps: number of its steps.
        metrics: metrics of its steps.
    """

    first: int
    num_steps: int
    metrics: Any


class Dispatcher:
    """Runs training steps in dispatches of about `CHUNK_SECONDS`.

    All dispatches share one compiled program, which takes the number of steps as an argument. The
    constructor traces it and starts to compile it in the background.

    Args:
        built: the run.

    Attributes:
        batches: the order of the data.
        capacity: most steps of a dispatch.
        most_in_flight: number of dispatches that may be unread while the next one runs.
    """

    def __init__(self, built: Built) -> None:
        config, examples = built.config, built.examples("train")
        self._built, self._mesh = built, built.mesh
        positions = local_positions(built.mesh)
        self.batches = Batches(examples, config.batch_size, config.seed, built.mesh.size, positions)
        batch_bytes = _bytes(at_rows(examples, slice(1))) * config.batch_size
        self.capacity = max(1, min(CHUNK_STEPS, CHUNK_BYTES // batch_bytes))
        self._seconds_per_step = CHUNK_SECONDS
        # Pays off where devices compute faster than the host gathers rows; it costs their memory.
        self._examples = replicate(examples, self._mesh) if fits(examples, self._mesh) else None
        self._gather = make_gather(self._mesh)
        # With two dispatches in flight, simulated devices may deadlock. On a GPU a second one gains
        # nothing: the call returns only when its loop, whose length is an argument, is done.
        platform = self._mesh.devices.flat[0].platform
        one_at_a_time = platform == "gpu" or (platform == "cpu" and self._mesh.size > 1)
        self.most_in_flight = 0 if one_at_a_time else 1
        self._key = replicate(built.keys.train, self._mesh)
        self._compiled = self._compile(len(positions))

    def _compile(self, num_local: int) -> "Future[Any]":
        config, mesh = self._built.config, self._mesh
        leading = (num_local, self.capacity, config.batch_size // mesh.size)
        chunk = jax.tree.map(
            lambda array: jax.ShapeDtypeStruct((*leading, *array.shape[1:]), array.dtype),
            self.batches.examples,
        )
        give_back_memory()  # compiling the step is the peak of memory use
        return compile_in_background(
            make_chunk_step(self._built.train_step, mesh, config.batch_size, self.capacity),
            mesh,
            self._built.state_shapes,
            self._key,
            chunk,
            jax.ShapeDtypeStruct((), np.int32),
        )

    def wait(self) -> None:
        """Wait until the step is compiled, then free the memory that compiling took."""
        self._compiled.result()
        give_back_memory()

    def run(self, state: TrainState, chunk: Chunk) -> tuple[TrainState, Any]:
        """Start the steps of a chunk; the given state must not be used again."""
        step = self._compiled.result()
        return step(state, self._key, chunk.rows, chunk.num_steps_on_devices)

    def after(self, step: int, end: int, signal: int | None) -> Chunk:
        """Return the data of the dispatch after `step`, up to `end`; the first has one step.

        With several processes, process 0 decides the length, and a signal on any process counts.
        """
        to_evaluation = self._built.config.eval_every - step % self._built.config.eval_every
        wanted = int(CHUNK_SECONDS / self._seconds_per_step)
        limits = (self.capacity, to_evaluation, max(1, end - step))
        wanted = max(1, min(wanted, *limits))
        # Prepared before `broadcast_decision`, which waits until the devices are done.
        rows = self._on_devices(step, wanted)
        count, signal = broadcast_decision(wanted, signal)
        if count != wanted:
            rows = self._on_devices(step, count)
        return Chunk(rows, count, replicate(np.int32(count), self._mesh), signal)

    def _on_devices(self, step: int, count: int) -> Any:
        if self._examples is None:
            return shard(self.batches.chunk(step, count, self.capacity), self._mesh)
        rows = self.batches.rows(step, count, self.capacity)
        return self._gather(self._examples, shard(rows, self._mesh))

    def report_pace(self, seconds_per_step: float) -> None:
        """Set the time of a step, from which the length of the next dispatch is computed."""
        self._seconds_per_step = seconds_per_step
