"""Subcommand step: speed of one training step, and its share of the hardware's peak."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmark import plots, tables
from experiments.benchmark.comparison import Comparison, compare
from experiments.benchmark.flags import Measurement
from experiments.benchmark.nets import NETS, Net, NetName, large_product_flops, step_flops
from experiments.benchmark.rounds import column, summarize
from experiments.benchmark.workers import Variant, Workers, ask_once
from experiments.flags import command

CHOSEN = "jaxvae step"
PEAK = "2048^3 product"
NATIVE = "native convolutions"
WHOLE = "all samples at once"
ALL_ROWS = 2**30
"""More rows than any batch has: nothing is computed in blocks."""
QUESTION = "How fast is one training step, and how much of the hardware does it use?"
WAYS = {
    CHOSEN: "chunked",
    "one dispatch a step": "jitted",
    "lax.scan, fixed length": "scanned",
    "lax.scan, not donated": "scanned_keeping",
}
LOOPS = {"bare loop, one draw a batch": False, "bare loop, a key a row": True}


@dataclass(frozen=True)
class StepConfig(Measurement):
    """Measure how fast one training step is, and how much of the hardware it uses.

    Compares the step that `experiments.train` runs (many steps per dispatch, a key per example,
    running average, guard against non-finite values) with the alternatives that were not chosen.
    For each net and variant: images per second, time of a step, share of the speed of a 2048 x 2048
    matrix product measured in the same rounds, time of the first call (which compiles), and peak
    memory.
    """

    nets: tuple[NetName, ...] = ("a", "b", "c", "d")
    """a: 784-400-20; b: 784-200-200-50 (b20: batch 20); c: b with 50-sample IWAE (c20: batch 20);
    d: convolutional."""
    num_devices: int = 1
    """Devices of the chosen variant; the others run on one. CPU devices are simulated."""
    profile: bool = False
    """Also trace the chosen step, and print the time of each of its parts."""


def step(config: StepConfig) -> None:
    """Measure, print the table, and write the numbers and the plot."""
    with command.as_user_errors():
        config.check()
    where = {"accelerator": config.accelerator, "num_devices": config.num_devices}
    machine = ask_once(
        Variant(
            "start", "experiments.benchmark.setting:Machine", where | config.data(config.nets[0])
        )
    )
    found: dict[str, Comparison] = {}
    rows: list[list[str]] = []
    for name in config.nets:
        with Workers(one_process=machine["platform"] == "tpu") as workers:
            compared = compare(
                workers, _variants(config, name, where), config.rounds, f"net {name}"
            )
        found[name] = compared
        rows += _rows(name, compared)
    header = ["net, variant", "images/s", "quartiles", "worst", "ms/step", "% of peak",
              "first call, s", "MB"]  # fmt: skip
    tables.print_table(f"{QUESTION} ({machine['devices']})", header, rows)
    results = _results(found)
    if config.profile:
        for name in config.nets:
            results[name]["profile"] = _profile(config, name, where)
    json = tables.write(config, "step", QUESTION, machine, results)
    tables.say_where(json, _plot(config, found, machine))


def _variants(config: StepConfig, name: str, where: dict[str, Any]) -> list[Variant]:
    pace = {"segment_seconds": config.segment_seconds}
    steps = {**pace, **where, **config.data(name)}
    module = "experiments.benchmark"
    variants = [
        Variant(label, f"{module}.library_steps:prepare", steps | {"way": way})
        for label, way in WAYS.items()
    ]
    variants += [
        Variant(label, f"{module}.scanned_loop:prepare", steps | {"per_example_keys": per_example})
        for label, per_example in LOOPS.items()
    ]
    if NETS[name].num_samples > 1:
        whole = steps | {"way": "chunked", "rows_at_once": ALL_ROWS}
        variants.append(Variant(WHOLE, f"{module}.library_steps:prepare", whole))
    if NETS[name].model == "conv":
        native = steps | {"way": "chunked", "native_convolutions": True}
        variants.append(Variant(NATIVE, f"{module}.library_steps:prepare", native))
    return [*variants, Variant(PEAK, f"{module}.matrix_product:prepare", pace | where)]


def _profile(config: StepConfig, name: str, where: dict[str, Any]) -> dict[str, float]:
    """Print and return the milliseconds that a net's step spends in each part."""
    arguments = {**where, **config.data(name)}
    about = ask_once(Variant("profile", "experiments.benchmark.profile:Profile", arguments))
    parts, total = about["parts"], sum(about["parts"].values())
    rows = [
        [part, tables.number(milliseconds), tables.number(100 * milliseconds / total)]
        for part, milliseconds in parts.items()
    ]
    title = f"net {name}: time of the device by part, summed over parallel operations"
    tables.print_table(title, ["part", "ms/step", "%"], rows)
    return parts


def peak_flops(compared: Comparison) -> float | None:
    """Best round of the matrix product, in floating point operations per second."""
    rounds = compared.rounds.get(PEAK)
    fastest = max(column(rounds, "images_per_second")) if rounds else 0.0
    return fastest * large_product_flops() or None


def share_of_peak(net: Net, images_per_second: float, peak: float | None) -> float | None:
    """Rate of the net's matrix products as a share of the peak; None if the peak is unknown."""
    if not peak:
        return None
    return images_per_second / net.batch_size * step_flops(net) / peak


def _rows(name: str, compared: Comparison) -> list[list[str]]:
    net, peak = NETS[name], peak_flops(compared)
    rows = []
    for label, measured in compared.rounds.items():
        speed = summarize(column(measured, "images_per_second"))
        memory = tables.megabytes(measured[-1]["peak_bytes"])
        if label == PEAK:
            giga = tables.number(speed.median * large_product_flops() / 1e9)
            rows.append([f"{name}: {label}", f"{giga} GFLOP/s", *[""] * 6])
            continue
        share = share_of_peak(net, speed.median, peak)
        compile_seconds = compared.about[label]["compile_seconds"]
        rows.append([
            f"{name}: {label}", *tables.cells(speed),
            tables.number(1e3 * net.batch_size / speed.median),
            tables.number(share and 100 * share), tables.number(compile_seconds), memory,
        ])  # fmt: skip
    return rows


def _results(found: dict[str, Comparison]) -> dict[str, Any]:
    results = {}
    for name, compared in found.items():
        peak = peak_flops(compared)
        shares = {
            label: share_of_peak(NETS[name], speed, peak)
            for label, measured in compared.rounds.items()
            if label != PEAK
            for speed in [summarize(column(measured, "images_per_second")).median]
        }
        results[name] = compared.to_json() | {
            "net": NETS[name]._asdict(),
            "flops_per_step": step_flops(NETS[name]),
            "peak_flops_per_second": peak,
            "share_of_peak": shares,
        }
    return results


def _plot(config: StepConfig, found: dict[str, Comparison], machine: dict[str, Any]) -> Path:
    panels = []
    for name, compared in found.items():
        peak = peak_flops(compared)
        bars = {
            label: [
                100 * (share_of_peak(NETS[name], speed, peak) or 0)
                for speed in column(measured, "images_per_second")
            ]
            for label, measured in compared.rounds.items()
            if label != PEAK
        }
        panels.append(plots.Panel(f"net {name}: {NETS[name].about}", bars, "% of the GEMM peak"))
    title = f"One training step, {machine['devices']}"
    return plots.bars(config.output / "step.png", title, panels, highlighted=CHOSEN)
