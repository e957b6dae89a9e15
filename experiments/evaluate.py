"""A trained run's numbers on a whole split, with standard errors.

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

if TYPE_CHECKING:
    from experiments.data.run_rows import RunRows
    from jaxvae.evaluation import Scores


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a run: ELBO, K-sample log-likelihood, bits per dimension, active units.

    Prints a table, and writes SPLIT-CHECKPOINT-K.json and, with every example's own numbers, the
    same name as .npz. Another --seed, and rows that are not the run's data, are part of the name.
    """

    run: Annotated[Path, command.Positional]
    """Folder of the run."""
    split: Literal["test", "validation", "train"] | None = None
    """Which examples. Default: test; of --dataset all rows in their order."""
    num_samples: int = 1000
    """Samples K of the log-likelihood estimate; more are tighter."""
    checkpoint: Literal["best", "latest"] = "best"
    """Which weights: best by the validation bound, or latest."""
    dataset: str | None = None
    """Another data set than the run's own, of the same shape."""
    model: str | None = None
    """package.module:function, for a run that was trained with this --model: it is imported only
    if you name it here."""
    output: Path | None = None
    """Folder for the results. Default: RUN/evaluations."""
    batch_size: int = 100
    """Examples in flight over all devices."""
    seed: int = 0
    """Of the samples."""
    accelerator: Accelerator = "auto"
    """Where to run. auto: what jax finds. Anything else is verified."""
    compilation_cache: str = "auto"
    """Folder of compiled programs, as for training; none: compile each time."""
    num_devices: int | None = None
    """Devices to use, of each process. Default: all; on the CPU 1, more are simulated."""
    processes: Processes = ALONE
    """The others, where there are any."""

    def check(self) -> None:
        """Refuse sizes that mean nothing.

        Raises:
            ValueError: one line, naming the flag.
        """
        self.processes.check()
        for name in ("num_samples", "batch_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require_representable(self)

    def name_of_results(self, data: "RunRows") -> str:
        """Name of the files, which differs wherever the numbers may."""
        seed = [f"seed{self.seed}"] if self.seed else []
        return "-".join([data.split, self.checkpoint, str(self.num_samples), *seed, *data.label])


def evaluate(config: EvaluateConfig) -> None:
    """Measure a run on a split, print the table and write the numbers."""
    with as_peer(config.processes):
        _evaluate(config)


def _evaluate(config: EvaluateConfig) -> None:
    with command.refusing():
        config.check()
        from experiments.machine import accelerators, compilation_cache

        compilation_cache.use(config.compilation_cache)
        devices = accelerators.start(config.accelerator, config.num_devices, config.processes)
        agree_on_flags(config)
        from experiments.machine.keys import root_key
        from experiments.machine.versions import versions
        from experiments.record.progress import counted
        from experiments.run.folder import open_run
        from experiments.show.numbers import make_scorer, print_numbers, summarize
        from jaxvae.checkpoints.hosts import is_first, raise_on_all_processes
        from jaxvae.training.devices import make_mesh

        folder = config.output or config.run / "evaluations"
        with raise_on_all_processes():
            if is_first():
                require_folder(folder, "--output")
        run = open_run(config.run, config.checkpoint, config.dataset, config.split, config.model)
        data, examples = run.data, run.data.rows.examples
        with raise_on_all_processes():
            require(len(examples) > 0, "split", config.split, "a split that has examples")
    if is_first():
        data.print_doubts()
    scorer = make_scorer(
        run.vae,
        run.params,
        run.preprocessing,
        key=root_key(config.seed),
        mesh=make_mesh(devices),
        num_samples=config.num_samples,
        batch_size=config.batch_size,
    )
    with counted("examples", len(examples), quiet=not is_first()) as progress:
        scores = scorer(examples, progress=progress)
    if not is_first():
        return
    numbers = summarize(scores, examples.shape[1:], run.preprocessing, config.num_samples)
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
    print_numbers(f"{data.title}, step {run.step:,}", numbers)
    print(f"written: {folder / name}.json and .npz")


def _write(folder: Path, name: str, numbers: dict[str, Any], scores: "Scores") -> None:
    """Write the numbers as JSON and each example's scores as arrays."""
    import numpy as np

    from experiments.record.files import write_json

    arrays = {key: value for key, value in scores._asdict().items() if value is not None}
    with command.refusing():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{name}.json", numbers)
        np.savez_compressed(folder / f"{name}.npz", **arrays)


if __name__ == "__main__":
    command.main(EvaluateConfig, evaluate)
