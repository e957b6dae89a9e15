"""Encode a data set with a trained run: write the latent codes to an npz file.

python -m experiments.encode runs/mnist_small-mlp --split=test
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from experiments.flags import command
from experiments.flags.config import Accelerator, require, require_representable
from experiments.flags.path_checks import require_folder, require_new_file
from experiments.record.progress import announced, counted

if TYPE_CHECKING:
    import jax

    from experiments.data.run_rows import RunRows
    from experiments.run.folder import OpenRun


@dataclass(frozen=True)
class EncodeConfig:
    """Encode every example: mean, log scale and a sample of q(z|x), as one npz file.

    `mean` (estimated from draws if q has no closed form), `log_scale` (Gaussian posteriors only)
    and `sample` are [N, Z], in the order of the rows. `index` [N] is each row's position in the
    array or list of files that it comes from. `labels` (names of classes if the data have names),
    `files` (for folders) and `parts` (train or test, with --dataset) are included if the data have
    them.
    """

    run: Annotated[Path, command.Positional]
    """Folder of the trained run, such as runs/mnist_small-mlp."""
    dataset: str | None = None
    """Data set to encode instead of the run's own, of the same shape:
    npz:PATH, folder:PATH, ..."""
    split: Literal["test", "validation", "train"] | None = None
    """Split to encode. Default: test; with --dataset, all rows in their
    order."""
    model: str | None = None
    """package.module:function. Required for a run trained with this --model:
    your code is imported only if you name it here."""
    output: Path | None = None
    """File to write. Default: RUN/codes/SPLIT.npz; the name also shows
    --checkpoint=latest, a --seed other than 0, and data that are not the
    run's."""
    checkpoint: Literal["best", "latest"] = "best"
    """Weights to use: best (by the validation bound) or latest."""
    batch_size: int = 1000
    """Examples computed at once, over all devices. Lower it if memory runs
    out."""
    seed: int = 0
    """Seed of the samples."""
    accelerator: Accelerator = "auto"
    """Device type. auto: the one jax picks; any other value fails if jax
    does not find it."""
    compilation_cache: str = "auto"
    """Folder for compiled programs, as in training; none: compile at every
    start."""
    num_devices: int | None = None
    """Number of devices. Default: all; on a CPU 1, and larger numbers
    simulate devices."""

    def name_of_codes(self, data: "RunRows") -> str:
        """File name without suffix; different flags or data give different names."""
        latest = ["latest"] if self.checkpoint == "latest" else []
        seed = [f"seed{self.seed}"] if self.seed else []
        return "-".join([data.split, *latest, *seed, *data.label])


def encode(config: EncodeConfig) -> None:
    """Encode the examples and write the npz file."""
    with command.as_user_errors():
        require(config.batch_size >= 1, "batch_size", config.batch_size, "at least 1")
        require(config.seed >= 0, "seed", config.seed, "0 or more")
        require_representable(config)
        folder = config.run / "codes"
        if config.output is None:
            require_folder(folder, "--output")
        else:
            require_new_file(config.output, "--output")
        with announced("Starting JAX"):
            from experiments.machine import accelerators, compilation_cache

            compilation_cache.use(config.compilation_cache)
            devices = accelerators.start(config.accelerator, config.num_devices)
            import numpy as np

            from experiments.run.folder import open_run
        with announced(f"Reading {config.run} and its data"):
            run = open_run(
                config.run, config.checkpoint, config.dataset, config.split, config.model
            )
        data, rows = run.data, run.data.rows
        require(len(rows.examples) > 0, "split", config.split, "a split that has examples")
        path = config.output or folder / f"{config.name_of_codes(data)}.npz"
        require_new_file(path, "--output")
    data.print_doubts()

    codes = _codes(config, run, devices)
    labels = rows.labels
    if labels is not None and rows.label_names is not None:
        labels = np.array(rows.label_names)[labels]
    origin = {
        "labels": labels,
        "index": rows.indices,
        "files": rows.files,
        "parts": rows.parts,
    }
    codes |= {name: array for name, array in origin.items() if array is not None}
    with command.as_user_errors(), announced(f"Writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:  # given a path, numpy would append .npz
            np.savez_compressed(file, **codes)
    print(f"written: {path} ({', '.join(f'{k} {v.shape}' for k, v in codes.items())})")


def _codes(config: EncodeConfig, run: "OpenRun", devices: "list[jax.Device]") -> dict[str, Any]:
    """Encode the rows into named arrays [N, ...]; entry i belongs to row i."""
    import jax

    from experiments.machine.keys import root_key
    from jaxvae.distributions import mean_of
    from jaxvae.evaluation import MEAN_SAMPLES, map_dataset
    from jaxvae.training.devices import make_map, make_mesh, replicate

    def code(params: object, key: jax.Array, stored: jax.Array) -> dict[str, jax.Array]:
        key_data, key_sample, key_mean = jax.random.split(key, 3)
        given, x = run.vae.of_example(stored)
        q = given.encode(params, run.preprocessing.prepare(key_data, x))
        mean = mean_of(q, key_mean, MEAN_SAMPLES)
        codes = {"mean": mean, "sample": q.sample(key_sample)}
        log_scale = getattr(q, "log_scale", None)
        return codes if log_scale is None else codes | {"log_scale": log_scale}

    mesh, count = make_mesh(devices), len(run.data.rows.examples)
    with counted("Encoding examples", count, first="compiling") as progress:
        return map_dataset(
            make_map(code, mesh),
            replicate(run.params, mesh),
            replicate(root_key(config.seed), mesh),
            run.examples,
            mesh=mesh,
            batch_size=config.batch_size,
            progress=progress,
        )


if __name__ == "__main__":
    command.main(EncodeConfig, encode)
