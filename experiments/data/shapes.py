"""shapes:32 and shapes:64: drawn shapes with textures, in colour, computed when they are needed.

All arithmetic is on integers, so that every machine draws the same images bit for bit.
"""

import numpy as np

from experiments.data.splits import Examples, Source
from experiments.record.progress import counted

SIDES = ("32", "64")
CLASSES = ("disk", "square", "diamond", "triangle", "ring")
SIZES = {"train": 10_000, "test": 2_000}
SEEDS = {"train": 1, "test": 2}
UNIT = 1024
"""Side of an image in the unit of all lengths, so that both sizes show the same scenes."""
AT_ONCE = 50
"""Images drawn at once: their integers take 10 MB for 64 x 64 pixels."""


def read_source(side: str) -> Source:
    """Draw 10,000 training and 2,000 test images, uint8 [side, side, 3].

    One shape on a background, each with a texture of two colours of its own: stripes, checks or
    rings of random direction and width. The label is the kind of shape.

    Each channel of each pixel has independent triangular noise in {-3, ..., 3}, and none is cut off
    at 0 or 255. So no model can need fewer bits per dimension than the noise's entropy, 2.66.

    Raises:
        ValueError: the side is neither 32 nor 64.
    """
    if side not in SIDES:
        raise ValueError(f"shapes: the side must be {' or '.join(SIDES)}, got {side!r}. Use one.")
    parts, drawn = {}, 0
    with counted("Images drawn", sum(SIZES.values())) as progress:
        for part, number in SIZES.items():
            # The stream of a bit generator never changes, unlike those of numpy's distributions.
            bits = np.random.PCG64(SEEDS[part])
            images = np.empty((number, int(side), int(side), 3), np.uint8)
            labels = _below(bits, len(CLASSES), number)
            for start in range(0, number, AT_ONCE):
                rows = slice(start, start + AT_ONCE)
                images[rows] = np.moveaxis(_draw(bits, labels[rows], int(side)), 1, -1)
                progress(drawn := drawn + len(labels[rows]))
            parts[part] = Examples(images, labels, label_names=CLASSES)
    return Source(f"shapes:{side}", parts, "drawn shapes with textures", "computed", 1_000)


def _below(bits: np.random.PCG64, limit: int, *shape: int) -> np.ndarray:
    """Uniform integers from 0 to limit - 1, int32, up to a bias of limit / 2^32."""
    raw = bits.random_raw(int(np.prod(shape))).reshape(shape)
    return ((raw >> np.uint64(32)) * np.uint64(limit) >> np.uint64(32)).astype(np.int32)


def _draw(bits: np.random.PCG64, labels: np.ndarray, side: int) -> np.ndarray:
    """Images [n, 3, side, side] for labels [n]; with channels last, numpy is three times slower."""
    n, step = len(labels), UNIT // side
    place = step // 2 + step * np.arange(side, dtype=np.int32)
    y, x = place[:, None], place[None, :]  # centres of the pixels
    background, filling = (_texture(bits, n, x, y) for _ in range(2))
    inside = _inside(bits, labels, x, y)
    image = np.where(inside[:, None], filling, background)
    return image + _noise(bits, image.size).reshape(image.shape)


def _noise(bits: np.random.PCG64, size: int) -> np.ndarray:
    """Triangular noise [size] in {-3, ..., 3}: the sum of two integers of two bits, centered."""
    raw = bits.random_raw(-(-size // 16)).astype("<u8").view(np.uint8)
    sums = [(raw >> first & 3) + (raw >> first + 2 & 3) for first in (0, 4)]
    return np.concatenate(sums)[:size].astype(np.int16) - 3


def _texture(bits: np.random.PCG64, n: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Textures [n, 3, side, side] of two colours each, int16 from 3 to 252."""
    first, second = (3 + _below(bits, 250, n, 3, 1, 1).astype(np.int16) for _ in range(2))
    right, down = (_below(bits, 17, n, 1, 1) - 8 for _ in range(2))
    frequency = 512 + _below(bits, 1536, n, 1, 1)
    along, across = right * x + down * y, right * y - down * x
    stripes = _wave(along * frequency)
    checks = (stripes + _wave(across * frequency)) // 2
    rings = _wave(((x - UNIT // 2) ** 2 + (y - UNIT // 2) ** 2) // 64 * frequency)
    kind = _below(bits, 3, n, 1, 1)
    share = np.where(kind == 0, stripes, np.where(kind == 1, checks, rings))[:, None]
    return first + ((second - first) * share >> 7)


def _wave(phase: np.ndarray) -> np.ndarray:
    """A triangular wave, int16 from 0 to 128, with period 2^21."""
    return np.abs((phase >> 13 & 255) - 128).astype(np.int16)


def _inside(bits: np.random.PCG64, labels: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The places [n, side, side] that the shapes of these labels [n] cover."""
    n = len(labels)
    radius = 160 + _below(bits, 160, n, 1, 1)
    dx, dy = (place - 352 - _below(bits, 320, n, 1, 1) for place in (x, y))
    square = dx**2 + dy**2
    covered = [
        square < radius**2,
        np.maximum(np.abs(dx), np.abs(dy)) < radius,
        np.abs(dx) + np.abs(dy) < radius,
        (np.abs(dx) * 2 < dy + radius) & (dy < radius),
        (square < radius**2) & (square * 4 > radius**2),
    ]
    return np.choose(labels[:, None, None], covered)
