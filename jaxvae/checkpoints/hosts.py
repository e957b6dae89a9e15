"""Agreement between processes: an error of one stops all, and process 0 reads files for all.

After `jax.distributed.initialize`, every process must call these functions in the same order. With
one process they add nothing to the work itself.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

PIECE_BYTES = 2**24
"""Most bytes that one broadcast sends."""


class Stopped(ValueError):
    """An error that every process raises at the same point."""


def is_first() -> bool:
    """True in process 0, the only one that reads and writes files.

    >>> is_first()
    True
    """
    return jax.process_index() == 0


@contextlib.contextmanager
def raise_on_all_processes() -> Iterator[None]:
    """Turn an error of one process in the `with` block into an error of all, so that none hangs.

    Raises:
        Stopped: with several processes, if any raised a ValueError, TypeError or OSError.
    """
    if jax.process_count() == 1:
        yield
        return
    caught: Exception | None = None
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        caught = error
    texts = gather("" if caught is None else str(caught) or type(caught).__name__)
    if caught is not None:
        raise Stopped(str(caught)) from caught
    for index, text in enumerate(texts):
        if text:
            raise Stopped(f"process {index}: {text}")


def gather_numbers(numbers: Sequence[int]) -> np.ndarray:
    """Gather numbers from every process: [processes, len(numbers)] int32, row i from process i.

    >>> gather_numbers([3, 4])
    array([[3, 4]], dtype=int32)
    """
    return _gather(np.array(numbers, np.int32))


def gather(text: str) -> list[str]:
    """Gather a text from every process, in the order of the processes.

    >>> gather("here")
    ['here']
    """
    if jax.process_count() == 1:
        return [text]
    # A file name in an error may have bytes that are not text.
    data = np.frombuffer(text.encode(errors="backslashreplace"), np.uint8)
    lengths = gather_numbers([len(data)])[:, 0]
    padded = np.zeros(1 << int(lengths.max()).bit_length(), np.uint8)
    padded[: len(data)] = data
    rows = _gather(padded)
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]


def from_first(read: Callable[[], Any]) -> Any:
    """Call `read` in process 0, and return its JSON value in every process.

    Raises:
        Stopped: with several processes, if `read` raised.

    >>> from_first(lambda: {"step": 3})
    {'step': 3}
    """
    if jax.process_count() == 1:
        return read()
    text = ""
    with raise_on_all_processes():
        if is_first():
            text = json.dumps(read())
    return json.loads(gather(text)[0])


def arrays_from_first(read: Callable[[], Any], targets: Any) -> Any:
    """Call `read` in process 0, and return its pytree of numpy arrays in every process.

    Args:
        read: called in process 0.
        targets: a tree of the same structure, of anything that has shape and dtype.

    Raises:
        Stopped: with several processes, if `read` raised.
    """
    if jax.process_count() == 1:
        return read()
    leaves, structure = jax.tree.flatten(targets)
    data = np.zeros(sum(_num_bytes(leaf) for leaf in leaves), np.uint8)
    with raise_on_all_processes():
        if is_first():
            arrays = jax.tree.leaves(read())
            data[:] = np.concatenate([_bytes(array) for array in arrays] or [data])
    with jax.transfer_guard("allow"):
        for start in range(0, len(data), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            piece[:] = multihost_utils.broadcast_one_to_all(piece)
    ends = np.cumsum([_num_bytes(leaf) for leaf in leaves])
    return jax.tree.unflatten(structure, [
        data[end - _num_bytes(leaf) : end].view(leaf.dtype).reshape(leaf.shape)
        for end, leaf in zip(ends, leaves, strict=True)
    ])  # fmt: skip


def _gather(array: np.ndarray) -> np.ndarray:
    if jax.process_count() == 1:
        return array[None]
    with jax.transfer_guard("allow"):
        return multihost_utils.process_allgather(array)


def _num_bytes(leaf: Any) -> int:
    return int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize


def _bytes(array: Any) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
