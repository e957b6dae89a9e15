"""Folders without images, or with images that are unreadable or do not fit together."""

import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.torture.bad_data import NOWHERE, changed, numbers, start
from experiments.torture.case import Case, Fixture


def folders(rng: random.Random, fixture: Fixture) -> Case:
    """Make a folder without images, with unreadable ones, with several sizes, or with loops."""
    root = fixture.folder / "pictures"
    root.mkdir()
    choices = (_no_images, _unreadable, _several_sizes, _bad_splits, _mutated_images, _none_left)
    names = rng.choice(choices)(rng, root)
    flags: tuple[str, ...] = (NOWHERE,) if "--model" in names else ()
    if "none left" in names:
        flags = ("--skip-unreadable", *rng.choice(((), ("--resize", "8", "8"))))
    command = "train" if flags else rng.choice(("train", "train", "encode"))
    arguments = (*start(fixture, command), "--dataset=folder:pictures", *flags)
    return Case(command, arguments, names)


def _image(rng: random.Random, path: Path, width: int = 5, height: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width) if rng.random() < 0.5 else (height, width, 3)
    Image.fromarray(numbers(rng).integers(0, 256, shape, np.uint8)).save(path)


def _no_images(rng: random.Random, root: Path) -> tuple[str, ...]:
    kind = rng.randrange(7)
    if kind == 0:
        (root / "notes.txt").write_text("no image")
    elif kind == 1:
        _image(rng, root / ".hidden.png")
    elif kind == 2:
        _image(rng, root / ".hidden" / "a.png")
    elif kind == 3:
        (root / "loop").symlink_to(root)
        (root / "up").symlink_to(root.parent)
    elif kind == 4:
        (root / "a.png").mkdir()
    elif kind == 5:
        root.rmdir()
        root.write_text("a file")
    return ("pictures",)


def _unreadable(rng: random.Random, root: Path) -> tuple[str, ...]:
    """Make a folder with an unreadable image, alone or among good ones."""
    for i in range(rng.randint(0, 3)):
        _image(rng, root / f"{i}.png")
    suffix = rng.choice(("png", "jpg", "bmp"))
    bad = root / rng.choice(("deeper", ".")) / f"bad.{suffix}"
    bad.parent.mkdir(exist_ok=True)
    kind = rng.randrange(9)
    if kind < 3:
        _image(rng, bad, 40, 40)
        whole = bad.read_bytes()
        bad.write_bytes(whole[: rng.randrange(len(whole) // 2)])
    elif kind == 3:
        bad.write_bytes(rng.choice((b"", b"x", b"\x89PNG\r\n\x1a\n", b"BM", b"\xff\xd8\xff")))
    elif kind == 4:
        bad.symlink_to(rng.choice(("nowhere", bad.name, "/dev/null")))
    elif kind == 5:
        os.mkfifo(bad)
    elif kind == 6:
        bad.write_bytes(_png(rng.choice((60_000, 12_000)), 12_000))
    elif kind == 7:
        Image.fromarray(np.zeros((4, 5), np.float32)).save(bad, "tiff")
    else:
        bad.write_bytes(_png(0, rng.choice((0, 4))))
    return ("bad",)


def _png(width: int, height: int) -> bytes:
    """Return a PNG whose header declares a size, but that has no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _several_sizes(rng: random.Random, root: Path) -> tuple[str, ...]:
    for i in range(rng.randint(1, 4)):
        _image(rng, root / f"{i}.png")
    _image(rng, root / "train" / "other.png", *rng.choice(((5, 5), (4, 5), (6, 4), (1, 1))))
    return ("other.png",)


def _bad_splits(rng: random.Random, root: Path) -> tuple[str, ...]:
    kind = rng.randrange(4)
    _image(rng, root / "train" / "a.png")
    if kind == 0:
        _image(rng, root / "validation" / "a.png")
    elif kind == 1:
        (root / "test").symlink_to("train")
    elif kind == 2:
        (root / "test").mkdir()
        (root / "test" / "back").symlink_to("..")
        (root / "test" / "self").symlink_to(".")
    return ("pictures",)  # the last kind has a single image


def _mutated_images(rng: random.Random, root: Path) -> tuple[str, ...]:
    for i in range(2):
        path = root / f"{i}.{rng.choice(('png', 'bmp', 'jpg'))}"
        _image(rng, path)
        path.write_bytes(changed(rng, path.read_bytes()))
    return ("pictures", "--model")


def _none_left(rng: random.Random, root: Path) -> tuple[str, ...]:
    """Make a folder, or a split of it, of which --skip-unreadable leaves nothing."""
    parts = rng.choice(((".",), ("train", "test"), ("a", "b")))
    for part in parts:
        for i in range(rng.randint(1, 3)):
            _image(rng, root / part / f"{i}.png")
            if part in (".", "a", "b", "test"):
                (root / part / f"{i}.png").write_bytes(rng.choice((b"", b"x", _png(4, 5))))
    return ("pictures", "none left")
