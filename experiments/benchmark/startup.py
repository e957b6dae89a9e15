"""Subcommand startup: time until the first training step, and peak memory."""

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from experiments.benchmark import plots, tables
from experiments.benchmark.comparison import say
from experiments.benchmark.flags import Measurement
from experiments.benchmark.nets import NETS, NetName
from experiments.benchmark.rounds import Rounds, column, interleaved, summarize
from experiments.benchmark.timed import peak_bytes_of
from experiments.benchmark.workers import ROOT, Variant, ask_once
from experiments.flags import command
from experiments.flags.config import require
from experiments.record.metrics import read_metrics

QUESTION = "How long until the first training step, and how much memory?"
COLD, CACHED = "cold", "cached"
IMPORTS = ("jax", "jaxvae", "experiments.run.loop")
POLL_SECONDS = 0.005
LONG_POLL_SECONDS = 0.5
MOST_SECONDS = 600.0
"""Time after which a command that has written no metrics is given up."""


@dataclass(frozen=True)
class StartupConfig(Measurement):
    """Measure the time until the first training step, and the memory that it takes.

    Starts `python -m experiments.train` in fresh processes and waits for its first row of metrics:
    with an empty folder for compiled programs (cold), and with the folder that the previous run has
    filled (cached). Also measures the time of imports, and the peak memory at the first step and
    many steps later.
    """

    rounds: int = 3
    """Starts of each kind, interleaved."""
    nets: tuple[NetName, ...] = ("a", "d")
    """a: 784-400-20; b: 784-200-200-50; c: b with 50-sample IWAE; d: convolutional."""
    later_step: int = 1200
    """Step until which the last start of each net runs, to see whether its memory grows."""
    num_devices: int = 1
    """Devices that the training command uses. CPU devices are simulated."""

    def check(self) -> None:
        """Reject invalid values.

        Raises:
            ValueError: a flag is invalid; the message is one line that names it.
        """
        super().check()
        require(self.later_step >= 1, "later_step", self.later_step, "at least 1")


def startup(config: StartupConfig) -> None:
    """Measure, print the table, and write the numbers and the plot."""
    with command.as_user_errors():
        config.check()
    where = {"accelerator": config.accelerator, "num_devices": config.num_devices}
    machine = ask_once(
        Variant(
            "start", "experiments.benchmark.setting:Machine", where | config.data(config.nets[0])
        )
    )
    with tempfile.TemporaryDirectory(prefix="jaxvae-benchmark-") as folder:
        imports = interleaved(IMPORTS, config.rounds, _import, lambda text: say(f"imports, {text}"))
        commands: dict[str, Rounds] = {
            name: _starts(config, name, Path(folder) / name) for name in config.nets
        }
    _print(imports, commands, machine)
    results = {"imports": imports, "commands": commands}
    json = tables.write(config, "startup", QUESTION, machine, results)
    tables.say_where(json, _plot(config, imports, commands, machine))


def _import(module: str) -> dict[str, Any]:
    """Time a fresh process that imports a module and ends, in seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], cwd=ROOT, check=True)
    return {"seconds": time.perf_counter() - started}


def _starts(config: StartupConfig, name: str, folder: Path) -> Rounds:
    """Measure cold and cached starts of the training command on a net."""
    cache = folder / "cache"

    def start(kind: str, later_step: int) -> dict[str, Any]:
        if kind == COLD:
            shutil.rmtree(cache, ignore_errors=True)
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        words = command_line(config, name, run, cache)
        return first_step(words, run / "metrics.jsonl", later_step)

    # Never in reverse order: a cached start needs the programs of the cold start before it.
    found: Rounds = {COLD: [], CACHED: []}
    for index in range(config.rounds):
        say(f"net {name}, round {index + 1} of {config.rounds}")
        for kind, rounds in found.items():
            is_last = kind == CACHED and index == config.rounds - 1
            rounds.append(start(kind, config.later_step if is_last else 0))
    return found


def command_line(config: StartupConfig, name: str, run: Path, cache: Path) -> list[str]:
    """Return the training command of a net, with `cache` as the folder of compiled programs."""
    flags = NETS[name].flags() | {
        "run": run,
        "dataset": config.dataset or NETS[name].dataset,
        "accelerator": config.accelerator,
        "num_devices": config.num_devices,
        "log_every": 1,
        "num_steps": max(5000, config.later_step + 1),
        "compilation_cache": cache,
    }
    if config.manual_dir is not None:
        flags["manual_dir"] = config.manual_dir
    words = [sys.executable, "-m", "experiments.train", "--quiet"]
    for flag, value in flags.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{flag.replace('_', '-')}", *map(str, values)]
    return words


def first_step(words: Sequence[str], metrics: Path, later_step: int = 0) -> dict[str, Any]:
    """Measure seconds from the start of a training command to its first metrics, and peak memory.

    Args:
        words: the command.
        metrics: file that the command writes rows of metrics to.
        later_step: step at which peak memory is read again; 0: it is not.

    Raises:
        UserError: the command ended or timed out before it wrote metrics.
    """
    started = time.perf_counter()
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(words, cwd=ROOT, stdout=printed, stderr=printed)
        try:
            _wait(process, printed, lambda: metrics.exists() and metrics.stat().st_size > 0)
            found = {
                "seconds": time.perf_counter() - started,
                "peak_bytes": peak_bytes_of(process.pid),
            }
            if later_step:
                _wait(
                    process, printed, lambda: _last_step(metrics) >= later_step, LONG_POLL_SECONDS
                )
                found["later_peak_bytes"] = peak_bytes_of(process.pid)
            return found
        finally:
            _end(process)


def _wait(
    process: "subprocess.Popen[bytes]",
    printed: IO[bytes],
    until: Callable[[], bool],
    poll_seconds: float = POLL_SECONDS,
) -> None:
    """Wait until a condition holds; raise with the process's last line if it ends or times out."""
    started = time.perf_counter()
    while not until():
        if process.poll() is not None or time.perf_counter() - started > MOST_SECONDS:
            printed.seek(0)
            lines = printed.read().decode(errors="replace").strip().splitlines()
            raise command.UserError(f"the training command wrote no metrics: {lines[-1:]}")
        time.sleep(poll_seconds)


def _last_step(metrics: Path) -> int:
    return max((row["step"] for row in read_metrics(metrics)), default=0)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Stop a run with SIGTERM, at which it saves; kill it if it does not end within 20 s."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _print(imports: Rounds, commands: dict[str, Rounds], machine: dict[str, Any]) -> None:
    rows = [
        [f"import {name}", *tables.cells(_seconds(measured)), "", ""]
        for name, measured in imports.items()
    ]
    for name, starts in commands.items():
        for kind, measured in starts.items():
            first = [round_["peak_bytes"] for round_ in measured]
            later = [round_.get("later_peak_bytes") for round_ in measured]
            label = f"train net {name}, first row of metrics, {kind}"
            rows.append([label, *tables.cells(_seconds(measured)), _most(first), _most(later)])
    header = ["fresh process", "seconds", "quartiles", "worst", "MB", "MB later"]
    tables.print_table(f"{QUESTION} ({machine['devices']})", header, rows)


def _most(peaks: Sequence[int | None]) -> str:
    known = [peak for peak in peaks if peak]
    return tables.megabytes(max(known)) if known else ""


def _seconds(measured: Sequence[dict[str, Any]]) -> Any:
    return summarize(column(measured, "seconds"), higher_is_better=False)


def _plot(
    config: StartupConfig, imports: Rounds, commands: dict[str, Rounds], machine: dict[str, Any]
) -> Path:
    measured = {f"import {name}": rounds for name, rounds in imports.items()}
    for name, starts in commands.items():
        measured |= {f"train net {name}, {kind}": rounds for kind, rounds in starts.items()}
    bars = {label: column(rounds, "seconds") for label, rounds in measured.items()}
    panel = plots.Panel("Fresh processes, to the end of an import or the first step", bars,
                        "seconds")  # fmt: skip
    title = f"Start-up, {machine['devices']}"
    return plots.bars(config.output / "startup.png", title, [panel], highlighted="")
