"""folder:PATH as a source of examples: pixels, classes and file names of the pictures below it.

Pixels are read anew each time if they are few, and are prepared once in the cache folder otherwise.
"""

import warnings
from pathlib import Path

import numpy as np

from experiments.data import PictureOptions
from experiments.data.pictures.cache import Entry, Prepared, in_memory
from experiments.data.pictures.decode import accept_large
from experiments.data.pictures.find import NAMES_SHOWN, WHOLE, Found, classes, find, total_bytes
from experiments.data.pictures.prepare import FoundColour, Rows
from experiments.data.splits import Examples, Source, random_order
from experiments.flags.path_checks import path_of

FEW = 1000
FEW_BYTES = 2**26
"""Pictures that are at most so many, and whose files and pixels together have at most so many
bytes, are not cached: reading them takes about a second, and leaves no files behind."""


def read_source(where: str, options: PictureOptions, *, to_split: bool) -> Source:
    """Read the pictures below a folder, uint8 [N, H, W, C].

    Args:
        where: The folder.
        options: How to prepare the pictures.
        to_split: Store pictures without splits in the order in which `assemble` splits them, so
            that the splits are slices.
    """
    folder = path_of(where)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"folder:PATH must name a folder of images; {folder} is not a folder. Correct the path."
        )
    found = find(folder)
    is_whole = WHOLE in found.parts
    to_split = to_split and is_whole
    order = random_order(len(found.files)) if is_whole else None
    listing = np.arange(len(found.files)) if order is None or not to_split else order
    prepared, notes = _prepare(found, listing, options, "splits" if to_split else "files")
    files = found.files
    readable = np.array([name not in prepared.unreadable for name in files])
    kept = listing[readable[listing]]  # numbers of files, in the order of their rows
    rows = np.sort(kept)
    parts = _parts(found, kept, prepared.values)
    if to_split:
        indices = np.searchsorted(rows, kept)
        parts = {WHOLE: parts[WHOLE]._replace(indices=indices)}
    if order is not None:  # without the pictures that were skipped
        order = np.searchsorted(rows, order[np.isin(order, rows)])
    return Source(
        f"folder:{where}",
        parts,
        what="own images",
        origin="; ".join([f"from {folder}", *notes, *found.left_out]),
        whole=prepared.values,
        order=order,
    )


def _parts(found: Found, kept: np.ndarray, values: np.ndarray) -> dict[str, Examples]:
    """Cut the rows into parts, with labels and file names.

    Args:
        found: The pictures.
        kept: Number of the file of each row.
        values: The rows.

    Raises:
        ValueError: No picture of a part can be read.
    """
    labels = classes(found)
    parts, start, first = {}, 0, 0
    for part, names in found.parts.items():
        own = kept[(kept >= start) & (kept < start + len(names))] - start
        if not len(own):
            raise ValueError(
                f"{found.folder / part} must have images that can be read; none of its "
                f"{len(names):,} can. Repair them, or move the folder away."
            )
        codes = labels.codes.get(part)
        parts[part] = Examples(
            values[first : first + len(own)],
            None if codes is None else codes[own],
            np.array(names)[own],
            label_names=None if codes is None else labels.names,
        )
        start, first = start + len(names), first + len(own)
    return parts


def _prepare(
    found: Found, listing: np.ndarray, options: PictureOptions, order: str
) -> tuple[Prepared, list[str]]:
    """Read the pixels from the cache, or else from the pictures, into the cache if they are many.

    Args:
        found: The pictures.
        listing: Numbers of their files, in the order to store them.
        options: How to prepare them.
        order: Name of that order.

    Returns:
        The pixels, and notes for `about`.
    """
    files = found.files
    listed = [files[i] for i in listing]
    entry = None if options.cache is None else Entry(found.folder, listed, options, order)
    prepared = None if entry is None else entry.read()
    notes: list[str] = []
    if prepared is None:
        try:
            prepared, notes = _decode(found.folder, listed, options, entry)
        except FoundColour:  # the pictures before it were decoded as grey
            colour = options._replace(channels=3)
            prepared, notes = _decode(found.folder, listed, colour, entry)
    if options.resize is not None:
        notes.append("scaled and cropped to {} x {}".format(*options.resize))
    notes += [f"{count:,} {note}" for note, count in prepared.notes.items()]
    if prepared.changed:
        notes.append("prepared again, as the folder has changed since it was prepared")
    if prepared.unreadable:
        count, some = len(prepared.unreadable), sorted(prepared.unreadable)[:NAMES_SHOWN]
        more = f" and {count - NAMES_SHOWN:,} more" if count > NAMES_SHOWN else ""
        plural = "s" * (count != 1)
        notes.append(f"{count:,} unreadable picture{plural} skipped: {', '.join(some)}{more}")
    return prepared, notes


def _decode(
    folder: Path, files: list[str], options: PictureOptions, entry: Entry | None
) -> tuple[Prepared, list[str]]:
    """Decode pictures into the cache if they are many and it can be written, else into memory."""
    with warnings.catch_warnings():
        accept_large()
        rows = Rows(folder, files, options)
        few = len(files) <= FEW and total_bytes(folder, files) + rows.size <= FEW_BYTES
        if entry is None or few:
            return in_memory(rows), []
        if not entry.is_writable():
            return in_memory(rows), [f"in memory, as {entry.folder} cannot be written"]
        return entry.write(rows), []
