"""The order of the training data: a function of seed and step alone."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np


class Batches:
    """Batches of a training split, each epoch in a new order, without an end and without state.

    Batch t is rows [t B, (t + 1) B) of the epochs' permutations laid end to end, so that a step
    number is the whole data position and every example comes once per epoch.

    Args:
        examples: [N, ...] as stored.
        batch_size: B, of the global batch.
        seed: of the order.
        num_devices: that share each batch evenly.
        positions: of the devices among them that this process has; None: all.
    """

    def __init__(
        self,
        examples: np.ndarray,
        batch_size: int,
        seed: int,
        num_devices: int,
        positions: Sequence[int] | None = None,
    ) -> None:
        self.examples = examples
        self.batch_size = batch_size
        self._num_devices = num_devices
        self._positions = list(range(num_devices) if positions is None else positions)
        self._permutation = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng([seed, epoch]).permutation(len(examples))
        )

    def position(self, step: int) -> dict[str, int]:
        """Where batch `step` starts: the epoch and the offset in it."""
        epoch, offset = divmod(step * self.batch_size, len(self.examples))
        return {"epoch": epoch, "offset": offset}

    def indices(self, step: int, count: int) -> np.ndarray:
        """Rows of `count` batches from `step` on: [count * B]."""
        first, last = step * self.batch_size, (step + count) * self.batch_size
        num = len(self.examples)
        epochs = range(first // num, -(-last // num))
        order = np.concatenate([self._permutation(epoch) for epoch in epochs])
        return order[first - epochs[0] * num : last - epochs[0] * num]

    def rows(self, step: int, count: int, capacity: int) -> np.ndarray:
        """Rows of `count` batches, for this process's devices: [devices, capacity, B / D] int32.

        D is the number of devices of all processes. After `count` batches: row 0.
        """
        rows = self.indices(step, count).reshape(count, self._num_devices, -1).swapaxes(0, 1)
        padded = ((0, 0), (0, capacity - count), (0, 0))
        return np.pad(rows[self._positions].astype(np.int32), padded)

    def chunk(self, step: int, count: int, capacity: int) -> np.ndarray:
        """The examples of these rows: [devices, capacity, B / D, ...], zeros after `count`."""
        rows = self.rows(step, count, capacity)
        if count == capacity:
            return self.examples[rows]
        chunk = np.zeros((*rows.shape, *self.examples.shape[1:]), self.examples.dtype)
        chunk[:, :count] = self.examples[rows[:, :count]]
        return chunk
