"""Order of the training data, which depends only on seed and step."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from jaxvae.leaves import at_rows, count_rows


class Batches:
    """Endless, stateless batches of a training split, each epoch in a new order.

    Batch t is rows [t B, (t + 1) B) of the concatenated permutations of the epochs. So the step
    number alone is the position in the data, and every epoch has every example once.

    Args:
        examples: [N, ...] as stored, or a pytree of such arrays.
        batch_size: B, size of the global batch.
        seed: seed of the order.
        num_devices: number of devices that share each batch evenly.
        positions: indices of this process's devices among them; None: all.
    """

    def __init__(
        self,
        examples: Any,
        batch_size: int,
        seed: int,
        num_devices: int,
        positions: Sequence[int] | None = None,
    ) -> None:
        self.examples = examples
        self._num_rows = count_rows(examples)
        self.batch_size = batch_size
        self._num_devices = num_devices
        self._positions = list(range(num_devices) if positions is None else positions)
        self._permutation = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng([seed, epoch]).permutation(self._num_rows)
        )

    def position(self, step: int) -> dict[str, int]:
        """Return the epoch and the offset in it at which batch `step` starts."""
        epoch, offset = divmod(step * self.batch_size, self._num_rows)
        return {"epoch": epoch, "offset": offset}

    def indices(self, step: int, count: int) -> np.ndarray:
        """Row indices [count * B] of `count` batches from `step` on."""
        first, last = step * self.batch_size, (step + count) * self.batch_size
        num = self._num_rows
        epochs = range(first // num, -(-last // num))
        order = np.concatenate([self._permutation(epoch) for epoch in epochs])
        return order[first - epochs[0] * num : last - epochs[0] * num]

    def rows(self, step: int, count: int, capacity: int) -> np.ndarray:
        """Row indices of `count` batches for this process's devices: [devices, capacity, B / D].

        They are int32; D is the number of devices of all processes. Batches after `count` are
        filled with row 0.
        """
        rows = self.indices(step, count).reshape(count, self._num_devices, -1).swapaxes(0, 1)
        padded = ((0, 0), (0, capacity - count), (0, 0))
        return np.pad(rows[self._positions].astype(np.int32), padded)

    def chunk(self, step: int, count: int, capacity: int) -> Any:
        """Examples of these rows: [devices, capacity, B / D, ...], zeros after `count`."""
        rows = self.rows(step, count, capacity)
        if count == capacity:
            return at_rows(self.examples, rows)

        def of_array(examples: np.ndarray) -> np.ndarray:
            chunk = np.zeros((*rows.shape, *examples.shape[1:]), examples.dtype)
            chunk[:, :count] = examples[rows[:, :count]]
            return chunk

        return jax.tree.map(of_array, self.examples)
