"""Score rows with a trained run: a CSV file with the likelihood of each row.

python -m experiments.score runs/mnist_small-mlp --dataset=npz:new.npz
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from experiments.flags import command
from experiments.flags.config import Accelerator, require, require_representable
from experiments.flags.path_checks import require_folder, require_new_file
from experiments.record.progress import announced, counted

if TYPE_CHECKING:
    import jax

    from experiments.data import Rows
    from experiments.data.run_rows import RunRows
    from experiments.run.folder import OpenRun
    from jaxvae.trained import Score

RARE = 0.01
"""Quantile below which a row is counted as unusual."""


@dataclass(frozen=True)
class ScoreConfig:
    """Score every row: a CSV file with one line per row, in the order of the rows.

    Columns: id (the row's position, or its file), part (if the source has several), label (if
    there are labels), elbo and log_likelihood in nats, standard_error (the Monte Carlo error of
    log_likelihood), quantile (the share of the training rows that are at most as likely: small for
    unusual rows).
    """

    run: Annotated[Path, command.Positional]
    """Folder of the trained run, such as runs/mnist_small-mlp."""
    dataset: str | None = None
    """Data set to score instead of the run's own, of the same shape:
    npz:PATH, folder:PATH, ..."""
    split: Literal["test", "validation", "train"] | None = None
    """Split to score. Default: test; with --dataset, all rows in their
    order."""
    num_samples: int | None = None
    """Samples K per row of log p(x). Default: those of the training rows
    that the quantiles refer to, as other numbers have no quantiles."""
    model: str | None = None
    """package.module:function. Required for a run trained with this --model:
    your code is imported only if you name it here."""
    output: Path | None = None
    """File to write. Default: RUN/scores/SPLIT.csv; the name also shows
    --checkpoint=latest, a --seed other than 0, and data that are not the
    run's."""
    checkpoint: Literal["best", "latest"] = "best"
    """Weights to use: best (by the validation bound) or latest."""
    batch_size: int = 200
    """Rows computed at once, over all devices. Lower it if memory runs out."""
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

    def check(self) -> None:
        """Check the values of the flags.

        Raises:
            ValueError: a value is invalid; one line that names the flag.
        """
        for name in ("batch_size", "num_samples"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require_representable(self)

    def name_of_scores(self, data: "RunRows") -> str:
        """File name without suffix; different flags or data give different names."""
        samples = [f"samples{self.num_samples}"] if self.num_samples else []
        latest = ["latest"] if self.checkpoint == "latest" else []
        seed = [f"seed{self.seed}"] if self.seed else []
        return "-".join([data.split, *samples, *latest, *seed, *data.label])


def score(config: ScoreConfig) -> None:
    """Score the rows and write the CSV file."""
    with command.as_user_errors():
        config.check()
        if config.output is None:
            require_folder(config.run / "scores", "--output")
        else:
            require_new_file(config.output, "--output")
        with announced("Starting JAX"):
            from experiments.machine import accelerators, compilation_cache

            compilation_cache.use(config.compilation_cache)
            devices = accelerators.start(config.accelerator, config.num_devices)
            from experiments.record.files import write_text
            from experiments.run.folder import open_run
        with announced(f"Reading {config.run} and its data"):
            run = open_run(
                config.run, config.checkpoint, config.dataset, config.split, config.model
            )
        data = run.data
        require(len(data.rows.examples) > 0, "split", config.split, "a split that has examples")
        name = f"{config.name_of_scores(data)}.csv"
        path = config.output or config.run / "scores" / name
        require_new_file(path, "--output")
    data.print_doubts()
    scores = _scores(config, run, devices)
    with command.as_user_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, _table(data.rows, scores))
    count = len(data.rows.examples)
    print(f"written: {path} ({count:,} row{'s' * (count != 1)})")


def _scores(config: ScoreConfig, run: "OpenRun", devices: "list[jax.Device]") -> "Score":
    """Score the rows, and say where their quantiles come from."""
    import numpy as np

    from experiments.machine.keys import root_key
    from experiments.show.numbers import make_scorer
    from jaxvae.checkpoints import read_reference
    from jaxvae.trained import USUAL_SAMPLES, ranked
    from jaxvae.training.devices import make_mesh

    with command.as_user_errors():
        reference = read_reference(config.run, run.step)
    default = USUAL_SAMPLES if reference is None else reference.num_samples
    num_samples = config.num_samples or default
    if reference is not None and reference.num_samples != num_samples:
        reference = None
    scorer = make_scorer(
        run.vae,
        run.params,
        run.preprocessing,
        key=root_key(config.seed),
        mesh=make_mesh(devices),
        most_samples=num_samples,
        batch_size=config.batch_size,
    )
    with counted("Scoring rows", len(run.data.rows.examples), first="compiling") as progress:
        found = ranked(scorer(run.examples, progress=progress), reference)
    if reference is None:
        print(
            "no quantiles: they need a run that has ended, and the number of samples that its "
            "training rows were scored with."
        )
    else:
        few, total = int(np.sum(found.quantile < RARE)), len(found.elbo)
        print(f"{few:,} of {total:,} rows are less likely than 99 % of the training rows.")
    return found


def _table(rows: "Rows", scores: "Score") -> str:
    """Return the CSV text."""
    ids = rows.indices if rows.files is None else rows.files
    columns: dict[str, Any] = {"id": ids}
    columns |= {} if rows.parts is None else {"part": rows.parts}
    if rows.labels is not None:
        names = rows.label_names
        columns["label"] = rows.labels if names is None else [names[i] for i in rows.labels]
    numbers = scores._asdict()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, *numbers])
    for i in range(len(ids)):
        shown = [_number(values[i]) for values in numbers.values()]
        writer.writerow([*(column[i] for column in columns.values()), *shown])
    return text.getvalue()


def _number(value: Any) -> str:
    """Format a number with six digits; empty if it is not known (NaN)."""
    return "" if value != value else f"{value:.6g}"


if __name__ == "__main__":
    command.main(ScoreConfig, score)
