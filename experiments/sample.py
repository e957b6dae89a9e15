"""Draw samples, reconstructions, interpolations and traversals of a run: PNG grids, npz arrays.

python -m experiments.sample runs/mnist_small-mlp
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from experiments.flags import command
from experiments.flags.config import Accelerator, require, require_representable
from experiments.flags.packages import require_packages
from experiments.flags.path_checks import require_folder
from experiments.record.progress import announced

if TYPE_CHECKING:
    import jax

    from experiments.data.run_rows import RunRows
    from experiments.run.folder import OpenRun

MOST_RANKED = 1000
"""Examples over which the latents are ranked by their variance."""
AT_ONCE = 500
"""Rows that are reconstructed at once, over all devices."""


@dataclass(frozen=True)
class SampleConfig:
    """Draw samples, reconstructions, interpolations and latent traversals of a trained model.

    Each is written as a picture (*.png) and as an array (*.npz). With --dataset or --split,
    reconstructions.npz has all rows of the data in their order, with `index` and `files`.
    """

    run: Annotated[Path, command.Positional]
    """Folder of the trained run, such as runs/mnist_small-mlp."""
    dataset: str | None = None
    """Data set to reconstruct instead of the run's own, of the same shape:
    npz:PATH, folder:PATH, ..."""
    split: Literal["test", "validation", "train"] | None = None
    """Split to reconstruct. Default: test; with --dataset, all rows."""
    num_samples: int = 100
    """Number of samples decoded from draws of the prior."""
    num_examples: int = 20
    """Number of examples in the pictures of reconstructions, and to
    interpolate between in pairs."""
    num_steps: int = 11
    """Number of pictures along each interpolation and traversal."""
    seed: int = 0
    """Seed of the samples."""
    checkpoint: Literal["best", "latest"] = "best"
    """Weights to use: best (by the validation bound) or latest."""
    model: str | None = None
    """package.module:function. Required for a run trained with this --model:
    your code is imported only if you name it here."""
    output: Path | None = None
    """Folder for the results. Default: RUN/samples; the name also shows
    other flags that differ from their defaults, and changed data:
    RUN/samples-seed1, for example."""
    accelerator: Accelerator = "auto"
    """Device type. auto: the one jax picks; any other value fails if jax
    does not find it."""
    compilation_cache: str = "auto"
    """Folder for compiled programs, as in training; none: compile at every
    start."""

    def name_of_folder(self, data: "RunRows") -> str:
        """Name of the default folder; different flags or data give different names."""
        flags = ("checkpoint", "num_samples", "num_examples", "num_steps", "seed")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        changed = [flag for flag in flags if getattr(self, flag) != defaults[flag]]
        values = [f"{flag.removeprefix('num_')}{getattr(self, flag)}" for flag in changed]
        of_run = self.split is not None or (self.dataset is not None and data.is_of_run)
        return "-".join(["samples", *([data.split] if of_run else []), *values, *data.label])

    def check(self) -> None:
        """Check the values of the flags.

        Raises:
            ValueError: a value is invalid; one line that names the flag.
        """
        require(self.num_samples >= 1, "num_samples", self.num_samples, "at least 1")
        require(self.num_examples >= 2, "num_examples", self.num_examples, "at least 2")
        require(self.num_steps >= 2, "num_steps", self.num_steps, "at least 2")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require_representable(self)


def sample(config: SampleConfig) -> None:
    """Draw from the model of a run and write pictures and arrays."""
    with command.as_user_errors():
        config.check()
        require_packages("PIL")
        require_folder(config.output or config.run / "samples", "--output")
        with announced("Starting JAX"):
            from experiments.machine import accelerators, compilation_cache

            compilation_cache.use(config.compilation_cache)
            devices = accelerators.start(config.accelerator, None)
            import numpy as np

            from experiments.machine.keys import root_key
            from experiments.run.folder import open_run
            from experiments.show.drawing import draw, prepared, write_pictures
            from jaxvae.leaves import at_rows

        with announced(f"Reading {config.run} and its data"):
            run = open_run(
                config.run, config.checkpoint, config.dataset, config.split, config.model
            )
        rows = run.data.rows
        require(len(rows.examples) > 0, "split", config.split, "a split that has examples")
        folder = config.output or config.run / config.name_of_folder(run.data)
        require_folder(folder, "--output")
    run.data.print_doubts()
    with announced("Decoding samples and reconstructions"):
        drawing = draw(
            run.vae,
            run.params,
            prepared(run.preprocessing, at_rows(run.examples, slice(MOST_RANKED))),
            root_key(config.seed),
            categories=run.categories,
            num_samples=config.num_samples,
            num_shown=config.num_examples,
            num_steps=config.num_steps,
        )
    drawn = {name: array for name, array in drawing._asdict().items() if array is not None}
    arrays = {name: {name: array} for name, array in drawn.items()}
    if config.dataset is not None or config.split is not None:
        arrays["reconstructions"] = _all_reconstructions(run, root_key(config.seed), devices)
    with command.as_user_errors(), announced(f"Writing pictures and arrays in {folder}"):
        write_pictures(drawing, folder)
        for name, named in arrays.items():
            np.savez_compressed(folder / f"{name}.npz", **named)
    print(f"{folder}: samples, reconstructions, interpolations, traversals (.png and .npz)")


def _all_reconstructions(
    run: "OpenRun", key: "jax.Array", devices: "list[jax.Device]"
) -> dict[str, Any]:
    """Reconstruct all rows: named arrays [N, ...] in the order of the rows."""
    import jax

    from experiments.record.progress import counted
    from jaxvae.evaluation import center_of, map_dataset
    from jaxvae.training.devices import make_map, make_mesh, replicate

    def reconstruct(params: Any, key: jax.Array, stored: jax.Array) -> jax.Array:
        key_data, key_center, *_ = jax.random.split(key, 4)
        given, x = run.vae.of_example(stored)
        q = given.encode(params, run.preprocessing.prepare(key_data, x))
        return given.decode(params, center_of(q, key_center)).mean()

    mesh, rows = make_mesh(devices), run.data.rows
    with counted("Reconstructing rows", len(rows.examples), first="compiling") as progress:
        found = map_dataset(
            make_map(reconstruct, mesh),
            replicate(run.params, mesh),
            replicate(key, mesh),
            run.examples,
            mesh=mesh,
            batch_size=AT_ONCE,
            progress=progress,
        )
    arrays = {"reconstructions": found, "index": rows.indices, "files": rows.files}
    return {name: array for name, array in arrays.items() if array is not None}


if __name__ == "__main__":
    command.main(SampleConfig, sample)
