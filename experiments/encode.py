"""The latent codes of a data set under a trained run.

python -m experiments.encode runs/mnist_small-mlp --split=test
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from experiments.flags import command
from experiments.flags.config import Accelerator, require, require_representable
from experiments.flags.path_checks import require_folder, require_new_file

if TYPE_CHECKING:
    import jax

    from experiments.data.run_rows import RunRows
    from experiments.run.folder import OpenRun


@dataclass(frozen=True)
class EncodeConfig:
    """Encode every example: mean, log scale and a sample of q(z|x), as one npz file.

    `mean` (estimated where q has none in closed form), `log_scale` (of Gaussian posteriors) and
    `sample` are [N, Z], in the order of the rows. `index` [N] is each row's position in the array
    or list of files that it is from; `labels`, `files` (of folders) and `parts` (train, test of
    --dataset) are there where the data have them.
    """

    run: Annotated[Path, command.Positional]
    """Folder of the run."""
    dataset: str | None = None
    """Another data set than the run's own, of the same shape: npz:PATH, folder:PATH, ..."""
    split: Literal["test", "validation", "train"] | None = None
    """Which examples. Default: test; of --dataset all rows in their order."""
    model: str | None = None
    """package.module:function, for a run that was trained with this --model: it is imported only
    if you name it here."""
    output: Path | None = None
    """The file to write. Default: RUN/codes/SPLIT.npz; --checkpoint=latest, another --seed, and
    rows that are not the run's data, are part of the name."""
    checkpoint: Literal["best", "latest"] = "best"
    """Which weights: best by the validation bound, or latest."""
    batch_size: int = 1000
    """Examples in flight over all devices."""
    seed: int = 0
    """Of the samples."""
    accelerator: Accelerator = "auto"
    """Where to run. auto: what jax finds. Anything else is verified."""
    compilation_cache: str = "auto"
    """Folder of compiled programs, as for training; none: compile each time."""
    num_devices: int | None = None
    """Devices to use. Default: all; on the CPU 1, more are simulated."""

    def name_of_codes(self, data: "RunRows") -> str:
        """Name of the file without its suffix, which differs wherever the codes may."""
        latest = ["latest"] if self.checkpoint == "latest" else []
        seed = [f"seed{self.seed}"] if self.seed else []
        return "-".join([data.split, *latest, *seed, *data.label])


def encode(config: EncodeConfig) -> None:
    """Encode a split and write the file."""
    with command.refusing():
        require(config.batch_size >= 1, "batch_size", config.batch_size, "at least 1")
        require(config.seed >= 0, "seed", config.seed, "0 or more")
        require_representable(config)
        folder = config.run / "codes"
        if config.output is None:
            require_folder(folder, "--output")
        else:
            require_new_file(config.output, "--output")
        from experiments.machine import accelerators, compilation_cache

        compilation_cache.use(config.compilation_cache)
        devices = accelerators.start(config.accelerator, config.num_devices)
        import numpy as np

        from experiments.run.folder import open_run

        run = open_run(config.run, config.checkpoint, config.dataset, config.split, config.model)
        data, rows = run.data, run.data.rows
        require(len(rows.examples) > 0, "split", config.split, "a split that has examples")
        path = config.output or folder / f"{config.name_of_codes(data)}.npz"
        require_new_file(path, "--output")
    data.print_doubts()

    codes = _codes(config, run, devices)
    origin = {
        "labels": rows.labels,
        "index": rows.indices,
        "files": rows.files,
        "parts": rows.parts,
    }
    codes |= {name: array for name, array in origin.items() if array is not None}
    with command.refusing():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:  # given a path, numpy adds a suffix of its own
            np.savez_compressed(file, **codes)
    print(f"written: {path} ({', '.join(f'{k} {v.shape}' for k, v in codes.items())})")


def _codes(config: EncodeConfig, run: "OpenRun", devices: "list[jax.Device]") -> dict[str, Any]:
    """Encode the rows: arrays [N, ...], the i-th entry from the i-th row."""
    import jax

    from experiments.machine.keys import root_key
    from experiments.record.progress import counted
    from jaxvae.distributions import mean_of
    from jaxvae.evaluation import MEAN_SAMPLES, map_dataset
    from jaxvae.training.devices import make_map, make_mesh, replicate

    def code(params: object, key: jax.Array, stored: jax.Array) -> dict[str, jax.Array]:
        key_data, key_sample, key_mean = jax.random.split(key, 3)
        q = run.vae.encode(params, run.preprocessing.prepare(key_data, stored))
        mean = mean_of(q, key_mean, MEAN_SAMPLES)
        codes = {"mean": mean, "sample": q.sample(key_sample)}
        log_scale = getattr(q, "log_scale", None)
        return codes if log_scale is None else codes | {"log_scale": log_scale}

    mesh, examples = make_mesh(devices), run.data.rows.examples
    with counted("examples", len(examples)) as progress:
        return map_dataset(
            make_map(code, mesh),
            replicate(run.params, mesh),
            replicate(root_key(config.seed), mesh),
            examples,
            mesh=mesh,
            batch_size=config.batch_size,
            progress=progress,
        )


if __name__ == "__main__":
    command.main(EncodeConfig, encode)
