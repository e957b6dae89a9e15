"""Arrays that no model can be trained on, and files that hold no arrays."""

import io
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.torture.case import RUN, Case, Fixture

FORMS = ("npy", "npz")
NOWHERE = "--model=nowhere:f"
"""Invalid model, rejected after the data are read: the case is bad even if the data are valid."""
REAL = "--likelihood=gaussian"
IN_RANGE = ("bernoulli", "continuous_bernoulli", "poisson", "negative_binomial", "categorical",
            "discretized_logistic", "logistic_mixture", "color_logistic_mixture")  # fmt: skip
"""Likelihoods that accept only some numbers."""


class Opened:
    """Object that makes a folder if it is unpickled, which must never happen."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("unpickled",))


def arrays(rng: random.Random, fixture: Fixture) -> Case:
    """Make an invalid array file, one whose arrays are no data, or one outside the support."""
    make = rng.choice(
        (_bad_array, _bad_values, _bad_parts, _bad_file, _bad_path, _pickled, _mutated)
    )
    return make(rng, fixture)


def _case(
    rng: random.Random, fixture: Fixture, path: Path, *flags: str, names: tuple[str, ...] = ()
) -> Case:
    """Run the training command, or another one on a trained run, with a file as data."""
    form = path.suffix[1:] if path.suffix[1:] in FORMS else "npz"
    dataset = f"--dataset={form}:{path.name}"
    command = "train" if flags else rng.choice(("train", "train", "evaluate", "encode"))
    arguments = (*start(fixture, command), dataset, *flags)
    return Case(command, arguments, (*names, path.name))


def start(fixture: Fixture, command: str) -> tuple[str, ...]:
    """Return the positional arguments that a command needs."""
    if command == "train":
        return ()
    fixture.lay_run()
    return (RUN,)


def _save(path: Path, array: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        np.savez(path, images=array)
    return path


def numbers(rng: random.Random) -> np.random.Generator:
    """Make a numpy generator, seeded from another generator."""
    return np.random.default_rng(rng.getrandbits(32))


def _path(rng: random.Random, fixture: Fixture) -> Path:
    return fixture.folder / f"data.{rng.choice(FORMS)}"


def _bad_array(rng: random.Random, fixture: Fixture) -> Case:
    """Make an array that is empty, of one example, of a wrong rank, or of a non-numeric type."""
    n, d = rng.randint(2, 9), rng.randint(1, 9)
    shapes = [(0, d), (n, 0), (0, 0), (0, 8, 8), (n, 0, 8), (n, 8, 8, 0), (0, 8, 8, 1)]
    shapes += [(), (n,), (0,), (n, 2, 2, 2, 2), (n, 1, 1, 1, 1, 1), (1, d), (1, 8, 8), (1, 8, 8, 3)]
    drawn = numbers(rng)
    right = drawn.integers(0, 2, (n, d))
    makers: tuple[Callable[[], np.ndarray], ...] = (
        lambda: drawn.integers(0, 2, rng.choice(shapes)).astype(
            rng.choice(["u1", "i4", "f4", "f8", "?", ">i2", "f2"])
        ),
        lambda: right.astype(rng.choice(["c8", "c16", "U5", "S3", "V4", "m8[s]"])),
        lambda: right.astype("M8[D]"),
        lambda: np.zeros((n, d), [("a", "i4"), ("b", "f4")]),
        lambda: right + rng.choice([2**31, 2**40, -(2**33), 2**62]),
        lambda: np.full((n, d), 2**64 - 1, np.uint64),
    )
    return _case(rng, fixture, _save(_path(rng, fixture), rng.choice(makers)()))


def _bad_values(rng: random.Random, fixture: Fixture) -> Case:
    """Make an array with NaN, infinities, or numbers outside the likelihood's support."""
    drawn, n, d = numbers(rng), rng.randint(2, 40), rng.randint(1, 9)
    at = (rng.randrange(n), rng.randrange(d))
    values: np.ndarray
    if rng.random() < 0.5:
        values = drawn.random((n, d)).astype(rng.choice(["f2", "f4", "f8", "g"]))
        values[at] = rng.choice([np.nan, np.inf, -np.inf])
        if values.dtype == np.float64 and rng.random() < 0.5:
            values[at] = rng.choice([1e39, -1e300])
        return _case(rng, fixture, _save(_path(rng, fixture), values), REAL)
    likelihood = rng.choice(("grey", *IN_RANGE))
    flag = f"--likelihood={likelihood}"
    if likelihood == "grey":
        flag, values = "--binarize=none", drawn.uniform(0.1, 0.9, (n, d))
    elif likelihood in ("bernoulli", "continuous_bernoulli"):
        values = drawn.random((n, d)).astype(np.float32)
        values[at] = rng.choice([1.5, -0.1, 255, -1e30, 1.0001])
    elif likelihood in ("poisson", "negative_binomial"):
        values = drawn.integers(0, 9, (n, d)).astype(np.float32)
        values[at] = rng.choice([-1, 0.5, 2.0**25, 1e30, -1e-6])
    else:
        values = drawn.integers(0, 9, (n, d)).astype(rng.choice(["i2", "f4", "i8"]))
    path = _save(_path(rng, fixture), values)
    return _case(rng, fixture, path, flag, names=("--binarize",) if likelihood == "grey" else ())


def _bad_parts(rng: random.Random, fixture: Fixture) -> Case:
    """Make an .npz whose arrays have unknown names, do not match, or have invalid labels."""
    n = rng.randint(4, 20)
    x, labels = np.zeros((n, 3), np.float32), np.arange(n)
    choices: list[dict[str, Any]] = [
        {"a": x, "b": x}, {}, {"labels": labels}, {"train": x, "val": x}, {"val": x, "test": x},
        {"train": x, "test": np.zeros((n, 4), np.float32)}, {"train": x, "test": x.astype("u1")},
        {"train": x, "test": x[:0]}, {"x_train": x, "x_test": x[0]}, {"x": x, "data": x},
        {"x": x, "y": labels[:-1]}, {"x": x, "y": labels / 2}, {"x": x, "y": np.eye(n)},
        {"x": x, "labels": labels + 2**40}, {"x": x, "Images": x}, {"train": x, "X_train": x},
        {"x": x, "y": labels, "Target": labels}, {"x": x, "y": labels + 1j},
        {"train": x, "test": x, "y_train": labels, "y_test": labels.astype("U4")},
        {"ids": labels, "latents": x, "weights": x}, {"x": x, "y": np.full(n, np.nan)},
        {"x": x, "labels": np.array(3)}, {"x": x, "y": labels.astype(object)},
        {"train": x, "test": x, "y_train": labels[1:]}, {"train": x[:1], "test": x},
        {"train": x, "test": np.full((2, 3), np.nan, np.float32)}, {"x_train": x},
        {"train": np.full((n, 3), 1, "u1"), "test": np.full((n, 3), 9, "u1")},
    ]  # fmt: skip
    parts = rng.choice(choices)
    path = fixture.folder / "data.npz"
    np.savez(path, **parts)
    flags: tuple[str, ...] = ()
    if set(parts) == {"train", "test"} and len(parts["train"]) == 1:
        flags = ("--num-validation=1",)
    if set(parts) == {"x_train"}:
        flags = (f"--num-validation={rng.choice((n, n + 1, 10**6, -1))}",)
    return _case(rng, fixture, path, *flags, names=("--num-validation",))


def _contents(rng: random.Random, form: str) -> bytes:
    file = io.BytesIO()
    array = numbers(rng).integers(0, 2, (rng.randint(3, 30), 4)).astype(np.float32)
    if form == "npy":
        np.save(file, array)
    else:
        rng.choice((np.savez, np.savez_compressed))(file, images=array)
    return file.getvalue()


def _bad_file(rng: random.Random, fixture: Fixture) -> Case:
    """Make a file that is truncated, empty, of another format, or has an invalid header."""
    path = _path(rng, fixture)
    whole = _contents(rng, path.suffix[1:])
    other = _contents(rng, "npz" if path.suffix == ".npy" else "npy")
    choices: tuple[Callable[[], bytes], ...] = (
        lambda: whole[: rng.randrange(len(whole))],
        lambda: whole[: rng.randrange(len(whole))],
        lambda: rng.choice((b"", b"\0", b"x" * 900, b"1,2\n3,4\n", b"{}", b"\x93NUMPY", b"PK\3\4")),
        lambda: rng.randbytes(rng.randint(1, 3000)),
        lambda: other,
        lambda: _with_header(rng),
    )
    path.write_bytes(rng.choice(choices)())
    return _case(rng, fixture, path)


def _with_header(rng: random.Random) -> bytes:
    """Return an .npy of sixteen bytes of data with an invalid header."""
    good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }"
    header = rng.choice([
        good.replace("(2, 2)", rng.choice([
            "(10000000000, 3)", "(-1, 3)", "(2, 3)", f"({'9' * 30}, 2)", "(2.0, 2)", "2", "[2, 2]",
            "(True, 2)", "('2', 2)", "(2, 2", "(0, 2)", "(4294967296, 4294967296, 4294967296)"])),
        good.replace("'<f4'", rng.choice([
            "'|O'", "'<f3'", "'x'", "''", "None", "[('a', '<f4')]", "['<f4']", "b'<f4'", "'<U1'",
            "'(2,)f4'", "{'names': ['a'], 'formats': ['<f4']}", "'<f4,<f4'", "3", "'<M8[s]'"])),
        "", "{}", "{", "((", "'", "(" * 300, "[" * 100_000, "1 if", "\t\n x", "{1: 2}", good * 2,
        "__import__('os').mkdir('unpickled')", good.replace("False", "2"), "\0" * 9, '"""',
    ])  # fmt: skip
    version, size = rng.choice([((1, 0), "<H"), ((2, 0), "<I"), ((3, 0), "<I"), ((9, 9), "<H")])
    encoded = header.encode()[:65535] + b"\n"
    length = struct.pack(size, min(len(encoded), 65535))
    return b"\x93NUMPY" + bytes(version) + length + encoded + b"\0" * 16


def _bad_path(rng: random.Random, fixture: Fixture) -> Case:
    """Name a missing file, something that is not a file, or an unknown data set."""
    form, folder = rng.choice(FORMS), fixture.folder
    (folder / "folder").mkdir()
    (folder / f"loop.{form}").symlink_to(f"loop.{form}")
    (folder / f"dangling.{form}").symlink_to("nowhere")
    os.mkfifo(folder / f"pipe.{form}")
    name = rng.choice([
        f"nowhere.{form}", "folder", f"loop.{form}", f"dangling.{form}", f"pipe.{form}", "x" * 300,
        f"folder/../nowhere.{form}", f"~nobody/x.{form}", f"/dev/null/x.{form}", "/dev/null", " ",
        f"{folder.name}\n.{form}", f"{'d/' * 2000}x.{form}", "..", ".", "/", "\t", f"é.{form}",
    ])  # fmt: skip
    dataset, names = f"{form}:{name}", (form,)
    if rng.random() < 0.3:
        dataset = rng.choice([
            "", ":", "npz", "npz:", "MNIST", "mnits", "mnist:x", "tfds", "tfds:", "torch:x",
            "npz :x", "../mnist", "mnist_small/..", "mnist_small:", "..", "a/b", "a\\b", "--",
            "x" * 5000,
        ])  # fmt: skip
        names = ("data set",)
    return Case("train", (f"--dataset={dataset}", REAL), names)


def _pickled(rng: random.Random, fixture: Fixture) -> Case:
    """Make a file of pickled objects; unpickling them makes a folder, which the judge detects."""
    path = _path(rng, fixture)
    objects = np.array([[Opened(), 1], [None, "x"]], object)
    kind = rng.randrange(4)
    if kind == 0:
        np.save(path.with_suffix(".npy"), objects, allow_pickle=True)
        return _case(rng, fixture, path.with_suffix(".npy"))
    if kind == 1:
        named: dict[str, Any] = {rng.choice(("x", "train", "images")): objects}
        np.savez(path.with_suffix(".npz"), **named)
        return _case(rng, fixture, path.with_suffix(".npz"))
    if kind == 2:
        np.savez(path.with_suffix(".npz"), x=np.zeros((2, 3)), y=objects)
        return _case(rng, fixture, path.with_suffix(".npz"))
    path.write_bytes(pickle.dumps(objects, protocol=rng.randint(0, 5)))
    return _case(rng, fixture, path)


def _mutated(rng: random.Random, fixture: Fixture) -> Case:
    """Make a file with some bytes changed, inserted or deleted."""
    path = _path(rng, fixture)
    path.write_bytes(changed(rng, _contents(rng, path.suffix[1:])))
    return _case(rng, fixture, path, NOWHERE, REAL, names=("--model",))


def changed(rng: random.Random, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data))
        if rng.random() < 0.5:
            at = rng.randrange(min(len(data), 160))  # headers
        kind = rng.randrange(4)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.randint(1, 4))
        else:
            del data[at : at + rng.randint(1, 4)]
    return bytes(data or b"x")
