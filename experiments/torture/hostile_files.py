"""Malicious run folders: copies of a trained run with one change."""

import functools
import io
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.run.own_files import NAMES
from experiments.torture.bad_data import Opened
from experiments.torture.hostile_checkpoints import (
    about,
    arguments,
    arrays,
    orbax,
    recipe,
    steps,
)
from experiments.torture.hostile_values import (
    ESCAPES,
    MODULE,
    SCRIPT,
    SPARSE_BYTES,
    Place,
    edit_json,
    text,
    twice,
    values,
)


def config(rng: random.Random, place: Place) -> None:
    """Name outside places, code, or absurd sizes in config.json."""
    path, outside = place.run / "config.json", str(place.outside)
    kind = rng.randrange(5)
    if kind == 0:
        path.write_bytes(text(rng))
    elif kind == 1:
        path.write_text(twice(path.read_text(), rng))
    elif kind == 2:
        names = list(json.loads(path.read_text()))
        edit_json(path, {rng.choice(names): values(rng)})
    else:
        edit_json(path, rng.choice((
            {"model": f"{MODULE}:make"}, {"run": outside}, {"run": "/"}, {"run": ".."},
            {"compilation_cache": outside}, {"tensorboard": True, "run": outside},
            {"dataset": "mnist", "data_dir": outside}, {"dataset": "kmnist", "data_dir": outside},
            {"dataset": "mnist", "manual_dir": outside, "data_dir": outside},
            {"hidden": [10**9]}, {"latent_dim": 2**31 - 1}, {"hidden": [20_000, 20_000]},
            {"num_components": 2**31 - 1, "prior": "mixture"}, {"batch_size": 2**31 - 1},
            {"num_devices": 2**31 - 1}, {"hidden": [1] * 10_000}, {"eval_samples": 2**31 - 1},
        )))  # fmt: skip


def dataset(rng: random.Random, place: Place) -> None:
    """Name as data in config.json a device, a pipe, objects, or data far larger than their file."""
    run = place.run
    kind = rng.choice(("device", "pipe", "passwd", "folder", "objects", "bomb", "header", "tfds"))
    if kind == "device":
        name = rng.choice(("npz:/dev/zero", "npy:/dev/random", "npz:/proc/self/mem", "npy:/dev"))
    elif kind == "pipe":
        os.mkfifo(run / "data.npz")
        name = f"npz:{run / 'data.npz'}"
    elif kind == "passwd":
        name = rng.choice(("npz:/etc/passwd", "npy:/etc/shadow", "folder:/etc"))
    elif kind == "folder":
        name = f"folder:{run}"
    elif kind == "objects":
        np.savez(run / "data.npz", x=np.array([[Opened(), 1]], object))
        name = f"npz:{run / 'data.npz'}"
    elif kind == "bomb":
        (run / "data.npz").write_bytes(_bomb())
        name = f"npz:{run / 'data.npz'}"
    elif kind == "header":
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000, 64), }\n"
        start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
        (run / "data.npy").write_bytes(start + header + bytes(64))
        name = f"npy:{run / 'data.npy'}"
    else:
        _write_features(run / "prepared")
        edit_json(run / "config.json", {"data_dir": str(run / "prepared")})
        name = "tfds:tiny"
    edit_json(run / "config.json", {"dataset": name})


@functools.cache
def _bomb() -> bytes:
    """Return an .npz of a few megabytes that unpacks to 3 GiB of zeros."""
    shape = (3 * 2**30 // 64, 8, 8)
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        member.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        for _ in range(3 * 2**6):
            member.write(bytes(2**24))
    return file.getvalue()


def _write_features(data_dir: Path) -> None:
    """Write prepared data whose feature names a class of the hostile module."""
    folder = data_dir / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    feature = {"pythonClassName": f"{MODULE}.Feature", "tensor": {"shape": {}, "dtype": "uint8"}}
    (folder / "features.json").write_text(json.dumps(feature))
    (folder / "dataset_info.json").write_text('{"name": "tiny", "version": "1.0.0"}')


def links(rng: random.Random, place: Place) -> None:
    """Replace a file or folder of the run by a link to another place, or by a pipe."""
    run, outside = place.run, place.outside
    parts = [*NAMES, ".config.json.part", ".results.json.part", ".report.html.part",
             "pictures/samples.png", "evaluations/test-best-2.json", "evaluations/test-best-2.npz",
             "samples/samples.png", "codes/test.npz", "checkpoints/9"]  # fmt: skip
    inner = [path.relative_to(run) for path in run.glob("checkpoints/**/*")]
    path = run / rng.choice([*map(Path, parts), *inner])
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    path.parent.mkdir(exist_ok=True)
    target = rng.choice((outside / path.name, outside / path.name, outside / "pipe", outside,
                         outside / "nothing", Path(path.name), Path("/dev/zero"), Path("/"),
                         Path("..") / ".." / "outside", None))  # fmt: skip
    if target is None:
        os.mkfifo(path)
    else:
        path.symlink_to(target)


def metrics(rng: random.Random, place: Place) -> None:
    """Make rows of metrics.jsonl absurd, scripts, or gigabytes long."""
    path = place.run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    at = rng.randrange(len(lines))
    row = json.loads(lines[at])
    row[rng.choice(("elbo", "kl", "step", "split", "timing", "gradient_norm", SCRIPT))] = values(
        rng
    )
    lines[at] = json.dumps(row)
    if rng.random() < 0.2:
        lines[at] = text(rng).decode("latin-1")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
    if rng.random() < 0.15:
        os.truncate(path, SPARSE_BYTES)


def results(rng: random.Random, place: Place) -> None:
    """Make a results.json that cannot be shown, or that would inject a script into the report."""
    path = place.run / "results.json"
    whole = json.loads(path.read_text())
    kind = rng.randrange(4)
    if kind == 0:
        path.write_bytes(text(rng))
    elif kind == 1:
        path.write_text(json.dumps(whole | {rng.choice(list(whole)): values(rng)}))
    elif kind == 2:
        split = rng.choice(("test", "validation"))
        entry = rng.choice(list(whole[split]))
        whole[split][entry] = rng.choice((values(rng), {"value": values(rng), "unit": SCRIPT}))
        path.write_text(json.dumps(whole))
    else:
        os.truncate(path, SPARSE_BYTES)


def sparse(rng: random.Random, place: Place) -> None:
    """Make a file of the run sparse, gigabytes long without content."""
    names = ("config.json", ".lock", "checkpoints/{}/about/metadata", "pictures/more.png",
             "checkpoints/{}/_CHECKPOINT_METADATA", "checkpoints/{}/metrics/metrics")  # fmt: skip
    step = rng.choice(sorted(path.name for path in (place.run / "checkpoints").iterdir()))
    path = place.run / rng.choice(names).format(step)
    path.touch()
    os.truncate(path, SPARSE_BYTES)


def lock(rng: random.Random, place: Place) -> None:
    """Write odd text to the lock, add files named like modules, or make a file a folder."""
    kind = rng.randrange(3)
    if kind == 0:
        (place.run / ".lock").write_text(rng.choice((ESCAPES, SCRIPT, "x" * 3_000_000, "\0", "\n")))
    elif kind == 1:
        name = rng.choice(("jax", "numpy", "sitecustomize", "conftest", "usercustomize", MODULE))
        source = f"open({str(place.mark)!r}, 'w').close()\n"
        (place.run / f"{name}.py").write_text(source)
    else:
        path = place.run / rng.choice(("report.html", ".lock", "results.json", "metrics.jsonl"))
        path.unlink(missing_ok=True)
        path.mkdir()


CATEGORIES: dict[str, Callable[[random.Random, Place], None]] = {
    "recipes": recipe,
    "arguments": arguments,
    "descriptions": about,
    "config.json": config,
    "data": dataset,
    "links": links,
    "metrics": metrics,
    "results": results,
    "large files": sparse,
    "arrays": arrays,
    "orbax": orbax,
    "steps": steps,
    "locks": lock,
}
"""Functions that change a run; case i is of category i modulo their number."""
