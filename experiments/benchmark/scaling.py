"""Subcommand scaling: speed of a step over numbers of devices and processes."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmark import plots, tables
from experiments.benchmark.comparison import Comparison, compare
from experiments.benchmark.flags import Measurement
from experiments.benchmark.nets import NETS, NetName
from experiments.benchmark.rounds import column, ratios, summarize
from experiments.benchmark.workers import Variant, WorkerFailed, Workers, ask_once
from experiments.flags import command
from experiments.flags.config import require
from experiments.flags.processes import Processes

QUESTION = "How much do more devices help?"
MODULE = "experiments.benchmark"
STRONG, WEAK, EXCHANGE = "strong", "weak", "exchange"
MOST_SIMULATED = 8


@dataclass(frozen=True)
class ScalingConfig(Measurement):
    """Measure how much more devices help.

    Runs the library's step on 1, 2, 4, 8, ... devices: strong scaling fixes the global batch size,
    weak scaling the batch size per device. Efficiency is the speed-up over one device, divided by
    the number of devices; the time of averaging the gradients alone is shown beside it. CPU devices
    are simulated and share the cores, so that n of them have an efficiency of at most 1/n: use them
    to test correctness, not speed. On a pod, start the same command on every host with
    --distributed.
    """

    rounds: int = 5
    """Timed segments per point, interleaved."""
    segment_seconds: float = 1.0
    """Approximate length of a segment."""
    net: NetName = "a"
    """a: 784-400-20; b: 784-200-200-50; c: b with 50-sample IWAE; d: convolutional."""
    batch_size: int | None = None
    """Examples per step: on all devices (strong), or on each one (weak). Default: the net's."""
    num_devices: int | None = None
    """Most devices per process. Default: all devices; on the CPU, 8 simulated ones."""
    processes: Processes = field(default_factory=Processes)
    """Several processes. --num-processes without --distributed starts them on this machine."""

    def check(self) -> None:
        """Reject invalid values.

        Raises:
            ValueError: a flag is invalid; the message is one line that names it.
        """
        super().check()
        for name in ("batch_size", "num_devices"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1")
        local = self.processes.num_processes
        if self.processes.distributed or self.processes.coordinator is not None:
            self.processes.check()
        elif local is not None:
            require(local >= 1, "num_processes", local, "at least 1")


class Point(NamedTuple):
    """A number of processes, and the number of devices of each."""

    num_processes: int
    per_process: int

    @property
    def num_devices(self) -> int:
        """Number of devices of all processes together."""
        return self.num_processes * self.per_process

    def __str__(self) -> str:
        if self.num_processes == 1:
            return f"{self.per_process}"
        return f"{self.num_devices} ({self.num_processes} processes x {self.per_process})"


ONE = Point(1, 1)


def scaling(config: ScalingConfig) -> None:
    """Measure, print the table, and write the numbers and the plot; on a pod, process 0 reports."""
    with command.as_user_errors():
        config.check()
    shares_hosts = config.processes.distributed
    where: dict[str, Any] = {"accelerator": config.accelerator, "num_devices": config.num_devices}
    if shares_hosts:
        where["processes"] = _fields(config.processes)
    about = Variant("start", f"{MODULE}.setting:Machine", where | config.data(config.net))
    machine = {} if shares_hosts else ask_once(about)
    with Workers(one_process=shares_hosts or machine["platform"] == "tpu") as workers:
        if shares_hosts:
            machine = _joined(workers, about)
        points = _points(config, machine)
        variants = [variant for point in points for variant in _variants(config, point, machine)]
        compared = compare(workers, variants, config.rounds, "scaling")
    if machine["process_index"] > 0:
        return
    measured = _efficiencies(config, points, compared)
    _print(config, measured, compared, machine)
    results = compared.to_json() | {"points": measured, "simulated": _is_simulated(machine)}
    json = tables.write(config, "scaling", QUESTION, machine, results)
    tables.say_where(json, _plot(config, measured, machine))


def _joined(workers: Workers, about: Variant) -> dict[str, Any]:
    try:
        return workers.prepare(about)
    except WorkerFailed as error:
        raise command.UserError(str(error)) from error


def _fields(processes: Processes) -> dict[str, Any]:
    return {name: getattr(processes, name) for name in processes.__dataclass_fields__}


def _is_simulated(machine: Mapping[str, Any]) -> bool:
    return machine["platform"] == "cpu"


def _points(config: ScalingConfig, machine: Mapping[str, Any]) -> list[Point]:
    """Return 1, 2, 4, 8, ... devices of one process, then of several if the flags request them."""
    found = machine["num_devices"] // machine["num_processes"]
    if config.num_devices is None and _is_simulated(machine):
        found = MOST_SIMULATED
    counts = [2**i for i in range(found.bit_length()) if 2**i <= found]
    counts += [found] * (found not in counts)
    processes = config.processes.num_processes or machine["num_processes"]
    if config.processes.distributed:
        processes = machine["num_processes"]
        return [ONE, *(Point(processes, count) for count in counts if processes * count > 1)]
    alone = [Point(1, count) for count in counts]
    several = [
        Point(processes, count) for count in counts if processes * count <= max(found, processes)
    ]
    return alone + (several if processes > 1 else [])


def _variants(config: ScalingConfig, point: Point, machine: Mapping[str, Any]) -> list[Variant]:
    batch_size = config.batch_size or NETS[config.net].batch_size
    arguments = {
        "net": config.net,
        "accelerator": config.accelerator,
        "num_devices": point.per_process,
        "segment_seconds": config.segment_seconds,
        **config.data(config.net),
    }
    steps, exchange = f"{MODULE}.library_steps:prepare", f"{MODULE}.gradient_exchange:prepare"
    found = []
    for kind, size in ((STRONG, batch_size), (WEAK, batch_size * point.num_devices)):
        if kind == STRONG and (size % point.num_devices or (point == ONE)):
            continue
        more = {"way": "chunked", "batch_size": size}
        found.append(Variant(f"{kind} {point}", steps, arguments | more))
    if point != ONE:
        found.append(Variant(f"{EXCHANGE} {point}", exchange, arguments))
    # Variants on the same devices share a process: eight processes would fill a laptop's memory.
    peers = _peers(config, point)
    return [variant._replace(process=str(point), peers=peers) for variant in found]


def _peers(config: ScalingConfig, point: Point) -> tuple[dict[str, Any], ...]:
    """Return the arguments by which each process of a variant joins the others."""
    if point.num_processes == 1:
        return ({},)
    if config.processes.distributed:
        return ({"processes": _fields(config.processes)},)
    with socket.socket() as free:  # the system chooses a free port
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    start = {
        "distributed": True,
        "coordinator": coordinator,
        "num_processes": point.num_processes,
    }
    return tuple({"processes": start | {"process_id": i}} for i in range(point.num_processes))


def _efficiencies(
    config: ScalingConfig, points: list[Point], compared: Comparison
) -> list[dict[str, Any]]:
    """Speed and efficiency of each point, in JSON types; both kinds share the one-device point."""
    batch_size = config.batch_size or NETS[config.net].batch_size
    alone = compared.rounds.get(f"{WEAK} {ONE}")
    found = []
    for kind in (STRONG, WEAK):
        for point in points:
            rounds = compared.rounds.get(f"{WEAK if point == ONE else kind} {point}")
            if rounds is None or alone is None:
                continue
            rates = column(rounds, "images_per_second")
            speed_ups = ratios(rounds, alone, "images_per_second")
            global_batch = batch_size * (point.num_devices if kind == WEAK else 1)
            exchange = compared.rounds.get(f"{EXCHANGE} {point}")
            found.append({
                "kind": kind, "processes": point.num_processes,
                "devices": point.num_devices, "label": str(point), "batch_size": global_batch,
                "images_per_second": rates, "speed_up": speed_ups,
                "efficiency": [ratio / point.num_devices for ratio in speed_ups],
                "step_seconds": [global_batch / rate for rate in rates],
                "exchange_seconds": None if exchange is None else [
                    round_["seconds"] / round_["steps"] for round_ in exchange
                ],
            })  # fmt: skip
    return found


def _print(
    config: ScalingConfig,
    measured: list[dict[str, Any]],
    compared: Comparison,
    machine: Mapping[str, Any],
) -> None:
    rows = []
    for point in measured:
        step = summarize(point["step_seconds"], higher_is_better=False).median
        exchange = point["exchange_seconds"]
        cost = summarize(exchange, higher_is_better=False).median if exchange else 0.0
        efficiency = summarize(point["efficiency"])
        rows.append([
            f"{point['kind']}, {point['label']}", f"{point['batch_size']:,}",
            *tables.cells(summarize(point["images_per_second"])),
            f"{summarize(point['speed_up']).median:.2f} x",
            f"{100 * efficiency.median:.0f} %", f"{100 * efficiency.worst:.0f} %",
            tables.number(1e3 * step), tables.number(1e3 * cost), f"{100 * cost / step:.0f} %",
        ])  # fmt: skip
    header = ["kind, devices", "batch", "images/s", "quartiles", "worst", "speed-up",
              "efficiency", "worst", "ms/step", "ms/exchange", "of step"]  # fmt: skip
    devices = (
        "simulated devices that share the cores" if _is_simulated(machine) else machine["devices"]
    )
    net = f"net {config.net}: {NETS[config.net].about}"
    tables.print_table(f"{QUESTION} ({net}; {devices})", header, rows)
    for label, reason in compared.failed.items():
        print(f"{label} was left out: {reason}")


def _plot(
    config: ScalingConfig, measured: list[dict[str, Any]], machine: Mapping[str, Any]
) -> Path:
    simulated = _is_simulated(machine)
    lines = []
    for kind in (STRONG, WEAK):
        for several in (False, True):
            points = [
                point
                for point in measured
                if point["kind"] == kind
                and (point["devices"] == 1 or (point["processes"] > 1) == several)
            ]
            if max((point["devices"] for point in points), default=1) == 1:
                continue
            label = f"{kind}, several processes" if several else f"{kind}"
            values = {p["devices"]: [100 * e for e in p["efficiency"]] for p in points}
            lines.append(plots.Line(label, values, dashed=several))
    if simulated:
        counts = sorted({point["devices"] for point in measured})
        shared = {count: [100 / count] for count in counts}
        lines.append(plots.Line("shared cores, nothing lost", shared, dashed=True))
    kind = "simulated devices that share the cores" if simulated else machine["devices"]
    title = f"Scaling of net {config.net}, {kind}"
    return plots.lines(
        config.output / "scaling.png", title, lines, "devices", "efficiency, % of one device's"
    )
