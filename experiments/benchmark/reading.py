"""Subcommand reading: speed of reading a folder of pictures."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmark import plots, tables
from experiments.benchmark.comparison import Comparison, compare, say
from experiments.benchmark.flags import Output
from experiments.benchmark.rounds import column, ratios, summarize
from experiments.benchmark.workers import Variant, Workers, ask_once
from experiments.flags import command
from experiments.flags.config import require
from experiments.flags.packages import require_packages

QUESTION = "How fast is a folder of pictures read?"
FIRST, CACHED = "jaxvae, first time", "jaxvae, from its cache"
PILLOW, TORCH = "Pillow in a loop", "PyTorch DataLoader, 2 workers"
MODULE = "experiments.benchmark"
FEWEST = 1001


@dataclass(frozen=True)
class ReadingConfig(Output):
    """Measure how fast a folder of JPEG files of 128 x 128 is read into arrays of pixels.

    Makes the pictures in a temporary folder. In every round each variant reads all of them once:
    folder:PATH the first time, which writes its cache, and again from the cache; Pillow in a plain
    loop; and a PyTorch Dataset behind a DataLoader of two workers. All must return the same pixels.
    """

    num_images: int = 10_000
    """Number of pictures. folder:PATH caches no fewer than 1,001."""

    def check(self) -> None:
        """Reject invalid values.

        Raises:
            ValueError: a flag is invalid; the message is one line that names it.
        """
        super().check()
        require(self.num_images >= FEWEST, "num_images", self.num_images, f"at least {FEWEST:,}")
        require_packages("PIL")


def reading(config: ReadingConfig) -> None:
    """Measure, print the table, and write the numbers and the plot."""
    with command.as_user_errors():
        config.check()
    with tempfile.TemporaryDirectory(prefix="jaxvae-benchmark-") as folder:
        say(f"making {config.num_images:,} pictures")
        made = {"folder": f"{folder}/pictures", "count": config.num_images}
        machine = ask_once(Variant("pictures", f"{MODULE}.picture_readers:Pictures", made))
        with Workers() as workers:
            compared = compare(workers, _variants(folder), config.rounds, "reading")
    _print(config, compared, machine)
    results = compared.to_json() | {"same_pixels": _same_pixels(compared)}
    json = tables.write(config, "reading", QUESTION, machine, results)
    tables.say_where(json, _plot(config, compared, machine))


def _variants(folder: str) -> list[Variant]:
    pictures = {"folder": f"{folder}/pictures"}
    first = pictures | {"cache": f"{folder}/first", "is_first": True}
    cached = pictures | {"cache": f"{folder}/cached", "is_first": False}
    return [
        Variant(FIRST, f"{MODULE}.picture_readers:Ours", first),
        Variant(CACHED, f"{MODULE}.picture_readers:Ours", cached),
        Variant(PILLOW, f"{MODULE}.picture_readers:PillowLoop", pictures),
        Variant(TORCH, f"{MODULE}.pytorch.reading:Loader", pictures),
    ]


def _same_pixels(compared: Comparison) -> bool:
    """Return True if the pixels of all variants and rounds have the same sum."""
    sums = {round_["sum"] for rounds in compared.rounds.values() for round_ in rounds}
    return len(sums) == 1


def _print(config: ReadingConfig, compared: Comparison, machine: dict[str, Any]) -> None:
    rows = []
    for label, measured in compared.rounds.items():
        speed = summarize(column(measured, "images_per_second"))
        over = _first_over(compared, label)
        rows.append([
            label, *tables.cells(speed),
            tables.number(config.num_images / speed.median),
            *([f"{over.median:.2f} x", f"{over.worst:.2f} x"] if over else ["", ""]),
            tables.megabytes(max(column(measured, "peak_bytes"))),
            compared.about[label]["setting"],
        ])  # fmt: skip
    header = ["variant", "images/s", "quartiles", "worst", f"s for {config.num_images:,}",
              "first time is", "worst", "MB", "setting"]  # fmt: skip
    tables.print_table(f"{QUESTION} ({machine['devices']})", header, rows)
    for label, reason in compared.failed.items():
        print(f"{label} was left out: {reason}")
    if not _same_pixels(compared):
        print("The variants returned different pixels: their speeds are not comparable.")


def _first_over(compared: Comparison, label: str) -> Any:
    """Summarize the ratio of the first reading's speed to another variant's, if both are there."""
    if label in (FIRST, CACHED) or FIRST not in compared.rounds:
        return None
    return summarize(ratios(compared.rounds[FIRST], compared.rounds[label], "images_per_second"))


def _plot(config: ReadingConfig, compared: Comparison, machine: dict[str, Any]) -> Path:
    bars = {label: column(rounds, "images_per_second") for label, rounds in compared.rounds.items()}
    panel = plots.Panel(f"{config.num_images:,} JPEG files of 128 x 128", bars, "pictures/s")
    title = f"Reading pictures, {machine['devices']}"
    return plots.bars(config.output / "reading.png", title, [panel], highlighted=FIRST)
