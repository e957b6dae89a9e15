"""Subcommand evaluate: speed of the K-sample estimate of log p(x)."""

import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmark import plots, tables
from experiments.benchmark.comparison import Comparison, compare, say
from experiments.benchmark.flags import Measurement
from experiments.benchmark.nets import NETS, NetName
from experiments.benchmark.rounds import column, ratios, summarize
from experiments.benchmark.workers import Variant, WorkerFailed, Workers, ask_once
from experiments.flags import command
from experiments.flags.config import require

QUESTION = "How fast is log p(x) estimated from K samples?"
OURS, TORCH = "jaxvae", "PyTorch loop, tuned"
MODULE = "experiments.benchmark"
ALL_IMAGES = 10_000
CHECKED_IMAGES = 100
TRAINED_STEPS = 400


@dataclass(frozen=True)
class EvaluateConfig(Measurement):
    """Measure how fast log p(x) is estimated from K samples.

    Compares the estimate of `experiments.evaluate` with a tuned PyTorch loop (no gradients, chunks
    of rows that fit the cache), both with the same trained weights, for every K. A segment
    evaluates some of the images, and the time for 10,000 is extrapolated; --full evaluates 10,000
    in every segment. The two estimates are also compared on the same images.
    """

    segment_seconds: float = 3.0
    """Approximate length of a segment."""
    num_samples: tuple[int, ...] = (50, 500, 5000)
    """Values of K, the number of samples."""
    net: NetName = "b"
    """a: 784-400-20; b: 784-200-200-50; d: convolutional."""
    full: bool = False
    """Evaluate 10,000 images in every segment (take --rounds=1: at K = 5,000 several minutes)."""
    num_devices: int = 1
    """Devices that jaxvae uses. CPU devices are simulated."""

    def check(self) -> None:
        """Reject invalid values.

        Raises:
            ValueError: a flag is invalid; the message is one line that names it.
        """
        super().check()
        smallest = min(self.num_samples, default=0)
        require(smallest >= 1, "num_samples", list(self.num_samples), "at least 1 throughout")


def evaluate(config: EvaluateConfig) -> None:
    """Measure, print the table, and write the numbers and the plot."""
    with command.as_user_errors():
        config.check()
    where = {"accelerator": config.accelerator, "num_devices": config.num_devices}
    machine = ask_once(
        Variant("start", f"{MODULE}.setting:Machine", where | config.data(config.net))
    )
    arguments = {**where, **config.data(config.net)}
    found: dict[int, Comparison] = {}
    agreements: dict[int, dict[str, float] | None] = {}
    with tempfile.TemporaryDirectory(prefix="jaxvae-benchmark-") as folder:
        path = str(Path(folder) / "weights.npz")
        say(f"training net {config.net} for {TRAINED_STEPS} steps, to have something to evaluate")
        training = arguments | {"steps": TRAINED_STEPS, "path": path}
        ask_once(Variant("training", f"{MODULE}.jax_log_likelihood:Trained", training))
        for num_samples in config.num_samples:
            with Workers(one_process=machine["platform"] == "tpu") as workers:
                variants = _variants(config, arguments | {"path": path}, num_samples)
                found[num_samples] = compare(
                    workers, variants, config.rounds, f"K = {num_samples:,}"
                )
                agreements[num_samples] = _agreement(workers, found[num_samples])
    _print(config, found, agreements, machine)
    results = {
        str(num_samples): compared.to_json() | {"agreement": agreements[num_samples]}
        for num_samples, compared in found.items()
    }
    json = tables.write(config, "evaluate", QUESTION, machine, results)
    tables.say_where(json, _plot(config, found, machine))


def _variants(config: EvaluateConfig, arguments: dict[str, Any], num_samples: int) -> list[Variant]:
    arguments = arguments | {
        "num_samples": num_samples,
        "segment_seconds": config.segment_seconds,
        "num_images": ALL_IMAGES if config.full else None,
    }
    return [
        Variant(OURS, f"{MODULE}.jax_log_likelihood:LogLikelihoods", arguments),
        Variant(TORCH, f"{MODULE}.pytorch.log_likelihood:LogLikelihoods", arguments),
    ]


def _agreement(workers: Workers, compared: Comparison) -> dict[str, float] | None:
    """Compare both estimates on the same images; None unless both variants were measured."""
    if not {OURS, TORCH} <= compared.rounds.keys():
        return None
    try:
        ours, theirs = (
            workers.ask(name, "values", num_images=CHECKED_IMAGES) for name in (OURS, TORCH)
        )
    except WorkerFailed as error:
        say(f"the estimates are not compared: {error}")
        return None
    return compare_estimates(ours, theirs)


def compare_estimates(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Mean of each estimate, and mean and standard error of the differences per image, in nats.

    >>> compare_estimates([-1.0, -2.0, -4.5], [-1.0, -2.5, -4.0])["difference"]
    0.0
    """
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    return {
        "ours": statistics.fmean(ours),
        "theirs": statistics.fmean(theirs),
        "difference": statistics.fmean(differences),
        "standard_error": statistics.stdev(differences) / math.sqrt(len(differences)),
    }


def _print(
    config: EvaluateConfig,
    found: dict[int, Comparison],
    agreements: dict[int, dict[str, float] | None],
    machine: dict[str, Any],
) -> None:
    rows = []
    for num_samples, compared in found.items():
        over = _ratios(compared)
        for label, measured in compared.rounds.items():
            speed = summarize(column(measured, "images_per_second"))
            ratio = summarize(over) if over and label == TORCH else None
            rows.append([
                f"K = {num_samples:,}: {label}", *tables.cells(speed),
                tables.number(speed.median * num_samples),
                tables.number(ALL_IMAGES / speed.median),
                *([f"{ratio.median:.2f} x", f"{ratio.worst:.2f} x"] if ratio else ["", ""]),
                tables.megabytes(measured[-1]["peak_bytes"]),
                compared.setting(label),
            ])  # fmt: skip
    measured_as = "measured" if config.full else "extrapolated"
    header = ["variant", "images/s", "quartiles", "worst", "rows/s",
              f"s for 10,000 ({measured_as})", "jaxvae is", "worst", "MB", "setting"]  # fmt: skip
    net = f"net {config.net}: {NETS[config.net].about}"
    tables.print_table(f"{QUESTION} ({net}; {machine['devices']})", header, rows)
    for num_samples, agreement in agreements.items():
        for label, reason in found[num_samples].failed.items():
            print(f"K = {num_samples:,}: {label} was left out: {reason}")
        if agreement:
            print(
                f"K = {num_samples:,}: mean log p(x) of {CHECKED_IMAGES} images "
                f"{agreement['ours']:.3f} and {agreement['theirs']:.3f} nats, difference "
                f"{agreement['difference']:+.3f} +- {agreement['standard_error']:.3f}"
            )


def _ratios(compared: Comparison) -> list[float]:
    """Ratio of jaxvae's speed to PyTorch's in each round; empty unless both were measured."""
    if not {OURS, TORCH} <= compared.rounds.keys():
        return []
    return ratios(compared.rounds[OURS], compared.rounds[TORCH], "images_per_second")


def _plot(config: EvaluateConfig, found: dict[int, Comparison], machine: dict[str, Any]) -> Path:
    panels = [
        plots.Panel(
            f"K = {num_samples:,} samples",
            {label: column(rounds, "rows_per_second") for label, rounds in compared.rounds.items()},
            "samples of images per second",
        )
        for num_samples, compared in found.items()
    ]
    title = f"log p(x), net {config.net}, {machine['devices']}"
    return plots.bars(config.output / "evaluate.png", title, panels, highlighted=OURS)
