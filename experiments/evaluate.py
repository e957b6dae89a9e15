"""Evaluate a trained run on a whole split, with standard errors.

python -m experiments.evaluate runs/mnist_small-mlp --num-samples=5000
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from experiments.flags import command
from experiments.flags.config import Accelerator, require, require_representable
from experiments.flags.path_checks import require_folder
from experiments.flags.processes import ALONE, Processes
from experiments.machine.processes import agree_on_flags, as_peer
from experiments.record.progress import announced, counted

if TYPE_CHECKING:
    from experiments.data.run_rows import RunRows
    from jaxvae.evaluation import Scores


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a run: ELBO, K-sample log-likelihood, bits per dimension, active units.

    Prints a table and writes SPLIT-CHECKPOINT-K.json, and SPLIT-CHECKPOINT-K.npz with the numbers
    of every example. The name also shows a --seed other than 0 and data that are not the run's.
    """

    run: Annotated[Path, command.Positional]
    """Folder of the trained run, such as runs/mnist_small-mlp."""
    split: Literal["test", "validation", "train"] | None = None
    """Split to evaluate. Default: test; with --dataset, all rows in their
    order."""
    num_samples: int = 1000
    """Samples K per example of the log-likelihood estimate; more samples
    give a tighter bound."""
    checkpoint: Literal["best", "latest"] = "best"
    """Weights to use: best (by the validation bound) or latest."""
    dataset: str | None = None
    """Data set to evaluate instead of the run's own, of the same shape:
    npz:PATH, ..."""
    model: str | None = None
    """package.module:function. Required for a run trained with this --model:
    your code is imported only if you name it here."""
    output: Path | None = None
    """Folder for the results. Default: RUN/evaluations."""
    batch_size: int = 100
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
    """Number of devices per process. Default: all; on a CPU 1, and larger
    numbers simulate devices."""
    processes: Processes = ALONE
    """Flags for running as one of several processes."""

    def check(self) -> None:
        """Check the values of the flags.

        Raises:
            ValueError: a value is invalid; one line that names the flag.
        """
        self.processes.check()
        for name in ("num_samples", "batch_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require_representable(self)

    def name_of_results(self, data: "RunRows") -> str:
        """File name without suffix; different flags or data give different names."""
        seed = [f"seed{self.seed}"] if self.seed else []
        return "-".join([data.split, self.checkpoint, str(self.num_samples), *seed, *data.label])


def evaluate(config: EvaluateConfig) -> None:
    """Measure a run on a split, print a table and write the numbers."""
    with as_peer(config.processes):
        _evaluate(config)


def _evaluate(config: EvaluateConfig) -> None:
    with command.as_user_errors():
        config.check()
        with announced("Starting JAX", quiet=config.processes.may_follow):
            from experiments.machine import accelerators, compilation_cache

            compilation_cache.use(config.compilation_cache)
            devices = accelerators.start(config.accelerator, config.num_devices, config.processes)
            agree_on_flags(config)
            from experiments.machine.keys import root_key
            from experiments.machine.versions import versions
            from experiments.run.folder import open_run
            from experiments.show import numbers as of_split
            from jaxvae.checkpoints.hosts import is_first, raise_on_all_processes
            from jaxvae.training.devices import make_mesh

        folder = config.output or config.run / "evaluations"
        with raise_on_all_processes():
            if is_first():
                require_folder(folder, "--output")
        with announced(f"Reading {config.run} and its data", quiet=not is_first()):
            run = open_run(
                config.run, config.checkpoint, config.dataset, config.split, config.model
            )
        data, examples = run.data, run.data.rows.examples
        with raise_on_all_processes():
            require(len(examples) > 0, "split", config.split, "a split that has examples")
    if is_first():
        data.print_doubts()
    scorer = of_split.make_scorer(
        run.vae,
        run.params,
        run.preprocessing,
        key=root_key(config.seed),
        mesh=make_mesh(devices),
        most_samples=config.num_samples,
        batch_size=config.batch_size,
    )
    what, quiet = f"Evaluating {data.split} examples", not is_first()
    with counted(what, len(examples), first="compiling", quiet=quiet) as progress:
        scores = scorer(run.examples, progress=progress)
    if not is_first():
        return
    numbers = of_split.summarize(scores, examples.shape[1:], run.preprocessing, config.num_samples)
    if run.categories is not None:
        numbers["classes"] = of_split.summarize_classes(scores, run.examples.y, run.categories)
    name = config.name_of_results(data)
    about = {
        "dataset": data.name,
        "split": data.split,
        "data": data.to_json(),
        "checkpoint": {"which": config.checkpoint, "step": run.step},
        "preprocessing": run.preprocessing.name,
        "seed": config.seed,
        "device": accelerators.describe(devices),
        "versions": versions(),
    }
    _write(folder, name, about | {data.split: numbers}, scores)
    of_split.print_numbers(f"{data.title}, step {run.step:,}", numbers)
    print(f"written: {folder / name}.json and .npz")


def _write(folder: Path, name: str, numbers: dict[str, Any], scores: "Scores") -> None:
    """Write the numbers as JSON and each example's scores as arrays."""
    import numpy as np

    from experiments.record.files import write_json

    arrays = {key: value for key, value in scores._asdict().items() if value is not None}
    with command.as_user_errors():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{name}.json", numbers)
        np.savez_compressed(folder / f"{name}.npz", **arrays)


if __name__ == "__main__":
    command.main(EvaluateConfig, evaluate)
