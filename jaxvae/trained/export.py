"""Export of a trained VAE as StableHLO, for programs without jaxvae.

Each function is a file that `jax.export.deserialize` reads; params are constants in it. The batch
size is symbolic: any number of rows. metadata.json says what goes in and what comes out.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from jaxvae.distributions import mean_of
from jaxvae.evaluation import MEAN_SAMPLES, make_score
from jaxvae.models.vae import VAE, Params
from jaxvae.preprocessing.description import Description

PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    vae: VAE,
    params: Params,
    data_shape: tuple[int, ...],
    description: Description,
    *,
    num_samples: int,
    about: dict[str, str],
    folder: Path,
) -> None:
    """Write encode, decode and log_likelihood below a folder, and metadata.json.

        encode(x [N, *data_shape], seed uint32 []) -> {"mean": [N, Z], "sample": [N, Z]}
        decode(z [N, Z]) -> mean of p(x|z) [N, *data_shape], in the unit of the stored rows
        log_likelihood(x, seed) -> {"value": [N], "standard_error": [N]}

    Row i uses the key fold_in(key(seed), i), as the methods of `TrainedVAE` do.

    Args:
        vae, params, data_shape, description, about: the model, as the attributes of `TrainedVAE`.
        num_samples: K of log_likelihood.
        folder: folder to write; created if it is missing.

    Raises:
        ModuleNotFoundError: flatbuffers is not installed.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ModuleNotFoundError(
            "export needs flatbuffers, which jax.export writes with. Install jaxvae[export]."
        )
    params = jax.tree.map(jnp.asarray, params)
    z = jax.eval_shape(vae.prior(params).sample, jax.random.key(0))
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    trained = description.trained
    x = _rows(data_shape, trained.dtype)
    exported = {
        "encode": _exported(_encode(vae, params, description), x, seed),
        "decode": _exported(_decode(vae, params, description), _rows(z.shape, z.dtype)),
        "log_likelihood": _exported(_likelihood(vae, params, description, num_samples), x, seed),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, function in exported.items():
        (folder / f"{name}.jax_export").write_bytes(bytes(function.serialize()))
    metadata = {
        "format": 1,
        "read_with": "jax.export.deserialize(bytearray(open(FILE, 'rb').read())).call(...)",
        "model": about,
        "preprocessing": description.name,
        "range_of_training_data": [trained.low, trained.high],
        "num_samples": num_samples,
        "jax": jax.__version__,
        "platforms": list(PLATFORMS),
        "functions": {name: _signature(name, function) for name, function in exported.items()},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2), encoding="utf-8")


def _rows(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """Rows of any number."""
    (count,) = jax_export.symbolic_shape("n")
    return jax.ShapeDtypeStruct((count, *shape), jnp.dtype(dtype))


def _exported(function: Callable[..., Any], *arguments: Any) -> Any:
    return jax_export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)


def _signature(name: str, function: Any) -> dict[str, Any]:
    outputs = jax.tree.unflatten(function.out_tree, map(_described, function.out_avals))
    inputs = [_described(leaf) for leaf in function.in_avals]
    return {"file": f"{name}.jax_export", "inputs": inputs, "outputs": outputs}


def _described(leaf: Any) -> str:
    return f"{leaf.dtype}[{', '.join(map(str, leaf.shape))}]"


def _over_rows(one: Callable[..., Any]) -> Callable[[jax.Array, jax.Array], Any]:
    """Map a function (key, row) over rows, each with its own key from a seed."""

    def mapped(x: jax.Array, seed: jax.Array) -> Any:
        key = jax.random.key(seed, impl="threefry2x32")
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(x.shape[0]))
        return jax.vmap(one)(keys, x)

    return mapped


def _encode(vae: VAE, params: Params, description: Description) -> Callable[..., Any]:
    def one(key: jax.Array, stored: jax.Array) -> dict[str, jax.Array]:
        key_data, key_mean, key_sample, _ = jax.random.split(key, 4)
        q = vae.encode(params, description.conversion.prepare(key_data, stored))
        return {"mean": mean_of(q, key_mean, MEAN_SAMPLES), "sample": q.sample(key_sample)}

    return _over_rows(one)


def _decode(vae: VAE, params: Params, description: Description) -> Callable[..., Any]:
    return jax.vmap(
        lambda z: jnp.asarray(description.conversion.stored(vae.decode(params, z).mean()))
    )


def _likelihood(
    vae: VAE, params: Params, description: Description, num_samples: int
) -> Callable[..., Any]:
    score = make_score(vae, prepare=description.conversion.prepare, num_samples=num_samples)

    def one(key: jax.Array, stored: jax.Array) -> dict[str, jax.Array]:
        found = score(params, key, stored)
        return {"value": found.log_likelihood, "standard_error": found.log_likelihood_error}

    return _over_rows(one)
