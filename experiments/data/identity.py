"""Identity of a data set: each split's shape, stored type, contents and range.

Every checkpoint stores the identity of its training data. A run continues only on the same rows,
and an evaluation on other rows is labelled as such.
"""

import hashlib
import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from experiments.data import Dataset
from experiments.data.splits import SPLITS
from experiments.record.progress import counted
from jaxvae.preprocessing.support import Trained

ABOUT = "data_digest"
"""Key of the identity in the description that a checkpoint stores."""
PIECE_BYTES = 2**24
"""Bytes that are hashed at once. The digest depends on this number: never change it."""
MOST_THREADS = 8
SHOWN_BYTES = 2**30
"""Size of data from which hashing can take seconds, so that progress is shown."""
SMALL = 100
"""Rows are unusual if their largest magnitude is smaller than in training by this factor."""


class RowsIdentity(NamedTuple):
    """Identity of some rows.

    Attributes:
        shape: [N, *data_shape].
        dtype: Stored type: uint8, int32 or float32.
        digest: SHA-256 over shape, type and contents, in hexadecimal digits.
        range: Smallest and largest value, or None without rows.
    """

    shape: list[int]
    dtype: str
    digest: str
    range: list[float] | None


DataIdentity = dict[str, RowsIdentity]
"""Name of a split -> identity of its rows."""


def identify(rows: np.ndarray, *, quiet: bool = False) -> RowsIdentity:
    """Compute the identity of rows [N, ...], in memory or on disk.

    Pieces of whole rows are hashed by several threads, and the digests of the pieces are hashed
    in their order: one thread hashes about 0.5 to 2 GB/s, as fast as a disk reads.

    Args:
        rows: As loaded.
        quiet: Show no progress; it is never shown for less than `SHOWN_BYTES`.
    """
    count = max(1, PIECE_BYTES * len(rows) // max(1, rows.nbytes))

    def identify_piece(start: int) -> tuple[bytes, Any, Any, int]:
        piece = np.ascontiguousarray(rows[start : start + count])
        digest = hashlib.sha256(piece.reshape(-1).view(np.uint8).data).digest()
        return digest, piece.min(), piece.max(), piece.nbytes

    total = hashlib.sha256(f"{list(rows.shape)} {rows.dtype} ".encode())
    low, high, done = math.inf, -math.inf, 0
    bar = counted("bytes of data checked", rows.nbytes, quiet=quiet or rows.nbytes < SHOWN_BYTES)
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as threads, bar as progress:
        for digest, least, most, size in threads.map(identify_piece, range(0, len(rows), count)):
            total.update(digest)
            low, high = min(low, float(least)), max(high, float(most))
            done += size
            progress(done)
    limits = [low, high] if len(rows) else None
    return RowsIdentity(list(rows.shape), str(rows.dtype), total.hexdigest(), limits)


def identify_splits(dataset: Dataset, *, quiet: bool = False) -> DataIdentity:
    """Compute the identity of every split of a data set."""
    return {split: identify(getattr(dataset, split), quiet=quiet) for split in SPLITS}


def to_json(identity: DataIdentity) -> dict[str, Any]:
    """Return the identity as JSON values."""
    return {split: rows._asdict() for split, rows in identity.items()}


def from_json(about: dict[str, Any]) -> DataIdentity | None:
    """Read the identity from a checkpoint's description; None if an older release wrote it.

    Raises:
        ValueError: The entry does not have the form that `to_json` writes.
    """
    if ABOUT not in about:
        return None
    try:
        identity = {split: RowsIdentity(**about[ABOUT][split]) for split in SPLITS}
        if not all(map(_is_valid, identity.values())):
            raise ValueError("a value has another type")
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"the checkpoint's {ABOUT} must hold shape, dtype, digest and range of each split; "
            f"reading it gave: {error}. Restore the checkpoint."
        ) from error
    return identity


def _is_valid(rows: RowsIdentity) -> bool:
    limits = [0.0, 0.0] if rows.range is None else rows.range
    return (
        isinstance(rows.dtype, str)
        and isinstance(rows.digest, str)
        and isinstance(rows.shape, list)
        and len(rows.shape) > 1
        and all(type(size) is int for size in rows.shape)
        and isinstance(limits, list)
        and [type(limit) for limit in limits] == [float, float]
    )


def describe_differences(trained: DataIdentity, now: DataIdentity) -> str:
    """Describe the splits in which two data sets differ; empty if they are the same.

    >>> one = {"test": RowsIdentity([2, 3], "uint8", "ab", [0.0, 1.0])}
    >>> describe_differences(one, {"test": one["test"]._replace(digest="cd")})
    'the test split has other contents'
    """
    return "; ".join(
        _difference(split, trained[split], now[split])
        for split in now
        if trained[split].digest != now[split].digest
    )


def _difference(split: str, trained: RowsIdentity, now: RowsIdentity) -> str:
    before, after = (f"{rows.shape} {rows.dtype}" for rows in (trained, now))
    if before == after:
        return f"the {split} split has other contents"
    return f"the {split} split is {after} now and was {before}"


def require_data_of_run(
    trained: DataIdentity | None, now: DataIdentity, *, allow_other: bool
) -> str:
    """Check that a run is continued on the data of its newest checkpoint.

    Args:
        trained: Identity in that checkpoint; None allows all data.
        now: Identity of the loaded data.
        allow_other: Accept other rows of the same shape and type.

    Returns:
        The accepted differences, in words; empty if nothing differs.

    Raises:
        ValueError: The data differ; the text names every split that does.
    """
    differences = "" if trained is None else describe_differences(trained, now)
    if trained is None or not differences:
        return ""
    alike = _kind(trained["train"]) == _kind(now["train"])
    if allow_other and alike:
        return differences
    remedy = "pass --allow-other-data to continue on these rows, " if alike else ""
    raise ValueError(
        f"the run was trained on other data: {differences}. Restore the data (a relative path is "
        f"relative to the current folder), {remedy}or start a new run with --run."
    )


def _kind(rows: RowsIdentity) -> tuple[list[int], str]:
    return rows.shape[1:], rows.dtype


def unusual_range(name: str, rows: RowsIdentity, trained: RowsIdentity) -> str | None:
    """Warn of rows whose values may have another scale than the training data; None if usual.

    Their range is far outside that of the training data (`Trained.far`), or much smaller (`SMALL`).
    """
    if rows.range is None or trained.range is None:
        return None
    (low, high), (least, most) = rows.range, trained.range
    outside = Trained(trained.dtype, least, most).far(low, high)
    magnitude, usual = (max(map(abs, limits)) for limits in (rows.range, trained.range))
    if not outside and not 0 < magnitude < usual / SMALL:
        return None
    return (
        f"{name} has values from {low:.6g} to {high:.6g}, the training data from {least:.6g} to "
        f"{most:.6g}: the scale may be different, and the results would then mean nothing."
    )
