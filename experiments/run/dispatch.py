"""The training data in dispatches: how many steps each one is, and its rows on the devices."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.data.batches import Batches
from experiments.machine.processes import broadcast_decision
from jaxvae.training.devices import make_gather, replicate, shard

CHUNK_STEPS = 100
"""Most steps in one dispatch."""
CHUNK_BYTES = 64 * 2**20
"""Most data in one dispatch."""
CHUNK_SECONDS = 2.0
"""Time that a dispatch aims at, so that progress shows and Ctrl-C is heard."""
RESIDENT_BYTES = 2 * 2**30
"""Most data that lie as a whole on every accelerator, which then gathers its own examples."""


def fits(examples: np.ndarray, mesh: Mesh) -> bool:
    """Whether the devices are accelerators, and the data no more than `RESIDENT_BYTES`."""
    return mesh.devices.flat[0].platform != "cpu" and examples.nbytes <= RESIDENT_BYTES


class Chunk(NamedTuple):
    """The data of one dispatch.

    Attributes:
        rows: [devices, capacity, B / devices, ...], on the devices.
        num_steps: among them.
        num_steps_on_devices: the same, as the dispatch takes it.
        signal: that any process was asked to stop with, when this was broadcast_decision; or None.
    """

    rows: jax.Array
    num_steps: int
    num_steps_on_devices: jax.Array
    signal: int | None


class Unread(NamedTuple):
    """A dispatch whose metrics are still on the devices: the steps before it, its own, theirs."""

    first: int
    num_steps: int
    metrics: Any


class Chunks:
    """Dispatches of a length in time, all of one program: the number of steps is an argument of it.

    Args:
        batches: the data's order.
        mesh: of devices.
        eval_every: a chunk ends where an evaluation is due, at the latest.
        resident: whether all examples lie on every device, and only their indices are sent. It
            is worth it where the devices are faster than this gathers; they hold memory for it.
    """

    def __init__(self, batches: Batches, mesh: Mesh, eval_every: int, *, resident: bool) -> None:
        batch_bytes = batches.examples[:1].nbytes * batches.batch_size
        self.capacity = max(1, min(CHUNK_STEPS, CHUNK_BYTES // batch_bytes))
        self._batches, self._mesh = batches, mesh
        self._eval_every = eval_every
        self._seconds_per_step = CHUNK_SECONDS
        self._examples = replicate(batches.examples, mesh) if resident else None
        self._gather = make_gather(mesh)

    def after(self, step: int, end: int, signal: int | None) -> Chunk:
        """The data of the dispatch after `step`, up to `end`: one step until the pace is known.

        With several processes its length is what process 0 says, and the signal what any had.
        """
        to_evaluation = self._eval_every - step % self._eval_every
        wanted = int(CHUNK_SECONDS / self._seconds_per_step)
        limits = (self.capacity, to_evaluation, max(1, end - step))
        wanted = max(1, min(wanted, *limits))
        # Before `broadcast_decision`, which waits until the devices are done.
        rows = self._on_devices(step, wanted)
        count, signal = broadcast_decision(wanted, signal)
        if count != wanted:
            rows = self._on_devices(step, count)
        return Chunk(rows, count, replicate(np.int32(count), self._mesh), signal)

    def _on_devices(self, step: int, count: int) -> jax.Array:
        if self._examples is None:
            return shard(self._batches.chunk(step, count, self.capacity), self._mesh)
        rows = self._batches.rows(step, count, self.capacity)
        return self._gather(self._examples, shard(rows, self._mesh))

    def report_pace(self, seconds_per_step: float) -> None:
        """How long the steps of a dispatch were."""
        self._seconds_per_step = seconds_per_step
