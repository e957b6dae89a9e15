"""Variants that read a folder of pictures: folder:PATH, and Pillow in a plain loop."""

import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL import __version__ as pillow_version

from experiments.benchmark.timed import peak_bytes
from experiments.data import PictureOptions, load_rows
from experiments.machine.versions import versions

SIDE = 128
"""Height and width of the pictures."""
BATCH = 100
"""Pictures that every variant returns at once."""


class Pictures:
    """JPEG files of smooth colours with some structure, each different.

    Args:
        folder: folder to make them in.
        count: number of pictures.
    """

    def __init__(self, folder: str, count: int) -> None:
        Path(folder).mkdir()
        rng = np.random.default_rng(0)
        for number in range(count):
            small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
            image = small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            image.save(Path(folder) / f"{number:06}.jpg", quality=88)
        self.about = {
            "devices": f"{os.cpu_count()} cores",
            "versions": versions() | {"pillow": pillow_version},
        }


def measured(started: float, batches: Iterable[np.ndarray]) -> dict[str, Any]:
    """Take all batches, which arrive while they are read; return speed, memory and a check sum.

    Args:
        started: `time.perf_counter()` before the reading began.
        batches: arrays of pixels [B, ...] uint8.
    """
    images = total = 0
    for batch in batches:
        images += len(batch)
        total += int(batch.sum(dtype=np.int64))
    seconds = time.perf_counter() - started
    return {
        "images": images,
        "seconds": seconds,
        "images_per_second": images / seconds,
        "sum": total,
        "peak_bytes": peak_bytes(),
    }


class Ours:
    """The data set folder:PATH.

    Args:
        folder: folder of the pictures.
        cache: folder for prepared pixels.
        is_first: whether every segment begins without that folder; else all but the first find it.
    """

    def __init__(self, folder: str, cache: str, is_first: bool) -> None:
        self._name, self._cache, self._is_first = f"folder:{folder}", Path(cache), is_first
        self.about = {"setting": "decoded by threads" if is_first else "memory-mapped"}
        self.segment()  # imports, too; it leaves the cache

    def segment(self) -> dict[str, Any]:
        """Read all pictures once."""
        if self._is_first:
            shutil.rmtree(self._cache, ignore_errors=True)
        started = time.perf_counter()
        options = PictureOptions(cache=self._cache, quiet=True)
        examples = load_rows(self._name, pictures=options).examples
        starts = range(0, len(examples), BATCH)
        return measured(started, (np.array(examples[start : start + BATCH]) for start in starts))


class PillowLoop:
    """Pillow in one thread, a picture after the other.

    Args:
        folder: folder of the pictures.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self.about = {"setting": f"Pillow {pillow_version}"}

    def segment(self) -> dict[str, Any]:
        """Read all pictures once."""
        started = time.perf_counter()
        paths = sorted(self._folder.glob("*.jpg"))
        starts = range(0, len(paths), BATCH)
        return measured(started, (self._read(paths[start : start + BATCH]) for start in starts))

    def _read(self, paths: list[Path]) -> np.ndarray:
        pixels = []
        for path in paths:
            with Image.open(path) as image:
                pixels.append(np.asarray(image.convert("RGB")))
        return np.stack(pixels)
