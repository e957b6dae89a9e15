"""Export of a trained VAE as StableHLO, for programs without jaxvae.

Each function is a file that `jax.export.deserialize` reads; params are constants in it. The batch
size is symbolic: any number of rows. metadata.json says what goes in and what comes out.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from jaxvae.distributions import mean_of
from jaxvae.evaluation import MEAN_SAMPLES, make_score

if TYPE_CHECKING:
    from jaxvae.trained.trained_vae import TrainedVAE

PLATFORMS = ("cpu", "cuda", "tpu")


def export(trained: TrainedVAE, folder: Path, num_samples: int) -> None:
    """Write encode, decode and log_likelihood below a folder, and metadata.json.

        encode(x [N, *data_shape], seed uint32 []) -> {"mean": [N, Z], "sample": [N, Z]}
        decode(z [N, Z]) -> mean of p(x|z) [N, *data_shape], in the unit of the stored rows
        log_likelihood(x, seed) -> {"value": [N], "standard_error": [N]}

    Row i uses the key fold_in(key(seed), i), as the methods of `TrainedVAE` do.

    Args:
        trained: the model.
        folder: folder to write; created if it is missing.
        num_samples: K of log_likelihood.

    Raises:
        ModuleNotFoundError: flatbuffers is not installed.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ModuleNotFoundError(
            "export needs flatbuffers, which jax.export writes with. Install jaxvae[export]."
        )
    z = jax.eval_shape(trained.vae.prior(trained.params).sample, jax.random.key(0))
    dtype = jnp.dtype(trained.description.trained.dtype)
    functions = _functions(trained, num_samples)
    x = ((*trained.data_shape,), dtype)
    inputs = {"encode": x, "decode": (z.shape, z.dtype), "log_likelihood": x}
    about: dict[str, Any] = {
        "format": 1,
        "read_with": "jax.export.deserialize(open(FILE, 'rb').read()).call(...)",
        "model": trained.about,
        "preprocessing": trained.description.name,
        "range_of_training_data": [
            trained.description.trained.low,
            trained.description.trained.high,
        ],
        "num_samples": num_samples,
        "jax": jax.__version__,
        "platforms": list(PLATFORMS),
        "functions": {},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, (shape, kind) in inputs.items():
        (batch,) = jax_export.symbolic_shape("n")
        arguments = [jax.ShapeDtypeStruct((batch, *shape), kind)]
        arguments += [] if name == "decode" else [jax.ShapeDtypeStruct((), jnp.uint32)]
        exported = jax_export.export(jax.jit(functions[name]), platforms=PLATFORMS)(*arguments)
        (folder / f"{name}.jax_export").write_bytes(bytes(exported.serialize()))
        about["functions"][name] = {
            "file": f"{name}.jax_export",
            "inputs": [_described(leaf) for leaf in exported.in_avals],
            "outputs": jax.tree.unflatten(exported.out_tree, map(_described, exported.out_avals)),
        }
    (folder / "metadata.json").write_text(json.dumps(about, indent=2), encoding="utf-8")


def _functions(trained: TrainedVAE, num_samples: int) -> dict[str, Any]:
    """Functions of batches with symbolic size."""
    params = jax.tree.map(jnp.asarray, trained.params)
    score = make_score(trained.vae, prepare=trained.prepare, num_samples=num_samples)

    def over_rows(one: Any, x: jax.Array, seed: jax.Array) -> Any:
        key = jax.random.key(seed, impl="threefry2x32")
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(x.shape[0]))
        return jax.vmap(one)(keys, x)

    def encode_one(key: jax.Array, stored: jax.Array) -> dict[str, jax.Array]:
        key_data, key_mean, key_sample = jax.random.split(key, 3)
        q = trained.vae.encode(params, trained.prepare(key_data, stored))
        return {"mean": mean_of(q, key_mean, MEAN_SAMPLES), "sample": q.sample(key_sample)}

    def likelihood_one(key: jax.Array, stored: jax.Array) -> dict[str, jax.Array]:
        found = score(params, key, stored)
        return {"value": found.log_likelihood, "standard_error": found.log_likelihood_error}

    def decode_one(z: jax.Array) -> jax.Array:
        return jnp.asarray(
            trained.description.conversion.stored(trained.vae.decode(params, z).mean())
        )

    return {
        "encode": lambda x, seed: over_rows(encode_one, x, seed),
        "decode": jax.vmap(decode_one),
        "log_likelihood": lambda x, seed: over_rows(likelihood_one, x, seed),
    }


def _described(leaf: Any) -> str:
    return f"{leaf.dtype}[{', '.join(map(str, leaf.shape))}]"
