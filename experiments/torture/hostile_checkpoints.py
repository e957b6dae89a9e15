"""Malicious checkpoints: those of a trained run with one change."""

import json
import random
import shutil
from collections.abc import Callable
from typing import Any

import tensorstore as ts

from experiments.torture.hostile_values import MODULE, Place, edit_json, text, twice, values
from jaxvae.checkpoints.manifest import digest_of_values


def functions(place: Place) -> dict[str, dict[str, Any]]:
    """Return functions with arguments; calling any of them would create the mark."""
    mark = str(place.mark)
    write = f"open({mark!r}, 'w').close()"
    return {
        "os:system": {"command": f"touch {mark}"},
        "os:mkdir": {"path": mark},
        "subprocess:run": {"args": ["touch", mark]},
        "subprocess:check_output": {"args": ["touch", mark]},
        "builtins:exec": {"source": write},
        "builtins:eval": {"source": write},
        "builtins:open": {"file": mark, "mode": "w"},
        "pathlib:Path.touch": {"self": mark},
        "importlib:import_module": {"name": MODULE},
        "runpy:run_module": {"mod_name": MODULE},
        "timeit:timeit": {"stmt": write, "number": 1},
        f"{MODULE}:make": {"data_shape": [8, 8, 1]},
        MODULE: {},
        f"jaxvae.vae:mlp_vae:{MODULE}": {},
        f"../{MODULE}:make": {},
        f"jaxvae.{MODULE}:make": {},
        "mlp_vae.__globals__": {},
    }


def change_abouts(place: Place, change: Callable[[dict[str, Any]], Any], signed: bool) -> None:
    """Change the description of every checkpoint; signed: with a digest that matches."""
    for path in place.run.glob("checkpoints/*/about/metadata"):
        about = json.loads(path.read_text())
        about.pop("digest", None)
        change(about)
        if signed:
            about["digest"] = digest_of_values(about)
        path.write_text(json.dumps(about))


def recipe(rng: random.Random, place: Place) -> None:
    """Name a function to call in the recipe, and sometimes in config.json, too."""
    name, arguments = rng.choice(list(functions(place).items()))
    new = {"function": name, "arguments": arguments}
    change_abouts(place, lambda about: about.update(vae=new), rng.random() < 0.7)
    if rng.random() < 0.5:
        edit_json(place.run / "config.json", {"model": name})


def arguments(rng: random.Random, place: Place) -> None:
    """Give the recipe's function an argument that no model has."""
    names = ("latent_dim", "hidden", "data_shape", "sigma", "posterior", "prior", "likelihood",
             "num_components", "num_categories", "activation", "data_mean", "data_scale",
             "channels", "blocks", "latent_channels", "condition", "self", "__class__",
             "more")  # fmt: skip
    new = {rng.choice(names): values(rng)}
    if rng.random() < 0.3:
        large = rng.choice((10**5, 10**7, 10**9, 2**31 - 1))
        new = {"latent_dim": large, "posterior": rng.choice(("full_covariance", "iaf", "spline")),
               "prior": rng.choice(("flow", "mixture", "vamp"))}  # fmt: skip
        new |= rng.choice(({}, {"num_components": large}, {"hidden": [large, large]}))

    def change(about: dict[str, Any]) -> None:
        about["vae"]["arguments"].update(new)
        if rng.random() < 0.5:  # as if such a model had been saved
            size = rng.choice((10**6, 10**12))
            for item in about["leaves"].values():
                item.update(dict.fromkeys(item, f"float32 [{size}]"))

    change_abouts(place, change, rng.random() < 0.8)


def about(rng: random.Random, place: Place) -> None:
    """Make a checkpoint's description lack a field, have a wrong type, or not be JSON."""
    names = ("step", "data", "data_shape", "vae", "config", "format", "digests", "leaves",
             "preprocessing", "summary", "categories")  # fmt: skip
    name, kind = rng.choice(names), rng.randrange(4)
    path = rng.choice(sorted(place.run.glob("checkpoints/*/about/metadata")))
    if kind == 0:
        change_abouts(place, lambda about: about.pop(name, None), signed=True)
    elif kind == 1:
        value = values(rng)
        change_abouts(place, lambda about: about.update({name: value}), rng.random() < 0.8)
    elif kind == 2:
        path.write_text(twice(path.read_text(), rng))
    else:
        path.write_bytes(text(rng))


def arrays(rng: random.Random, place: Place) -> None:
    """Change the metadata of an array in a checkpoint: absurd shapes, chunks, types, nesting."""
    for step in (place.run / "checkpoints").iterdir():
        item = step / rng.choice(("params", "average", "training"))
        store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{item}/"}).result()
        keys = [key for key in store.list().result() if key.endswith(b"/.zarray")]
        key = rng.choice(keys)
        about = json.loads(store.read(key).result().value)
        field = rng.choice(("shape", "shape", "chunks", "chunks", *about))
        absurd = rng.choice(([10**9] * 2, [10**12], [2**62] * 2, [40_000, 20_000], [-1], [0],
                             values(rng)))  # fmt: skip
        about[field] = absurd
        content = json.dumps(about).encode()
        if rng.random() < 0.2:
            content = text(rng)
        store.write(key, content).result()


def orbax(rng: random.Random, place: Place) -> None:
    """Make files of orbax name handlers, other formats or paths, or hold no JSON."""
    step = rng.choice(sorted((place.run / "checkpoints").iterdir()))
    kind = rng.randrange(6)
    if kind == 0:
        handler = rng.choice((f"{MODULE}.Handler", "os.system", "builtins.exec", values(rng)))
        handlers = {name: handler for name in ("about", "params", "average", "training")}
        new = {"item_handlers": rng.choice((handlers, handler)), "custom_metadata": values(rng)}
        edit_json(step / "_CHECKPOINT_METADATA", new)
    elif kind == 1:
        path = step / rng.choice(("params", "average", "training")) / "_METADATA"
        edit_json(path, {rng.choice(list(json.loads(path.read_text()))): values(rng)})
    elif kind == 2:
        path = step / rng.choice(("params", "average")) / "_METADATA"
        old = rng.choice(('"bias"', '"np.ndarray"', '"key_type": 2', "false", '"Dense_0"'))
        new_text = rng.choice((
            '"../../../../outside"', '"/etc/passwd"', '"jax.Array"', "true", '"string"',
            '"scalar"', '"key_type": 9', f'"{MODULE}.C"', "1e400",
        ))  # fmt: skip
        path.write_text(path.read_text().replace(old, new_text))
    elif kind == 3:
        files = sorted(path for path in step.rglob("*") if path.is_file())
        rng.choice(files).write_bytes(text(rng))
    elif kind == 4:
        (step / "params" / rng.choice(("checkpoint", "_sharding", "array_metadatas"))).write_bytes(
            text(rng)
        )
    else:
        names = ("_METADATA", "_ROOT_METADATA", "metadata", "_CHECKPOINT_METADATA")
        path = rng.choice((step, step.parent)) / rng.choice(names)
        path.write_bytes(text(rng))


def steps(rng: random.Random, place: Place) -> None:
    """Add folders with odd names among the checkpoints, or odd metrics to a checkpoint."""
    checkpoints = place.run / "checkpoints"
    step = rng.choice(sorted(checkpoints.iterdir()))
    name = rng.choice((
        "²", "007", "-5", "9" * 200, "1e3", "20 ", "٣", "0x10", "1_0", "..x", "\n", "9" * 30, "0",
        "6.orbax-checkpoint-tmp", "checkpoint_6", "\udcff",
    ))  # fmt: skip
    kind = rng.randrange(3)
    if kind == 0:
        shutil.copytree(step, checkpoints / name)
    elif kind == 1:
        (checkpoints / name).mkdir(exist_ok=True)
    else:
        content = {"metric": values(rng)}
        (step / "metrics" / "metrics").write_text(json.dumps(content))
