"""Subcommand peers: speed of the training command, next to PyTorch, Flax and a bare loop."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmark import plots, tables
from experiments.benchmark.comparison import Comparison, compare, say
from experiments.benchmark.flags import Measurement
from experiments.benchmark.nets import NETS, PeerNetName
from experiments.benchmark.quality import Training, tolerance, verify
from experiments.benchmark.rounds import column, ratios, summarize
from experiments.benchmark.workers import Variant, WorkerFailed, Workers, ask_once
from experiments.flags import command
from experiments.flags.config import require

QUESTION = "How fast is experiments.train, against the same net and work elsewhere?"
COMMAND, BARE, FLAX = "jaxvae, the command", "bare scanned loop", "flax script"
TUNED, EAGER = "PyTorch, tuned", "PyTorch, as usual"
NATIVE = "jaxvae, native convolutions"
MODULE = "experiments.benchmark"


@dataclass(frozen=True)
class PeersConfig(Measurement):
    """Measure how fast experiments.train is, against the same net and work elsewhere.

    Compares the whole training command (metrics, progress, checkpoints, validation and averages
    on) with a bare scanned loop in jax, a plain Flax script with a jitted step, PyTorch as it is
    usually written, and PyTorch tuned (arrays, logits, fused Adam, torch.compile). A short race
    finds the two best settings of PyTorch, and in every round the faster one counts. Then all
    variants train from the same weights, and one function computes the test bound of each. PyTorch
    is the optional extra "peers".
    """

    nets: tuple[PeerNetName, ...] = ("a", "b", "b20", "c", "d", "e")
    """a: 784-400-20; b: 784-200-200-50 (b20: batch 20); c: b with 50-sample IWAE (c20: batch 20);
    d: convolutional; e: residual, 64 x 64 x 3, against PyTorch alone."""
    segment_seconds: float = 5.0
    """Approximate length of a segment; it includes writing the command's last checkpoint."""
    verify_steps: int | None = None
    """Steps that each variant trains from the same weights, to compare test bounds. 0: none.
    Default: 3000, and 200 for net e."""
    verify_runs: int = 3
    """Most training runs per variant, each from other weights. All variants train again only if one
    of them differs from the median of all by more than 0.5 nats, or 0.5 % of it."""

    def check(self) -> None:
        """Reject invalid values.

        Raises:
            ValueError: a flag is invalid; the message is one line that names it.
        """
        super().check()
        steps = self.verify_steps
        require(steps is None or steps >= 0, "verify_steps", self.verify_steps, "0 or more")
        require(self.verify_runs >= 1, "verify_runs", self.verify_runs, "at least 1")
        sizes = {NETS[name].data_shape for name in self.nets}
        one = "left out, or --nets nets of one size of images: e alone, or without e"
        require(self.dataset is None or len(sizes) == 1, "dataset", self.dataset, one)


def peers(config: PeersConfig) -> None:
    """Measure, print the table, and write the numbers and the plot, also if it is interrupted."""
    with command.as_user_errors():
        config.check()
    where = {"accelerator": config.accelerator, "num_devices": 1}
    for name in config.nets:  # data that a net does not accept end all of it before it starts
        start = Variant("start", f"{MODULE}.setting:Machine", where | config.data(name))
        machine = ask_once(start)
    found: dict[str, Comparison] = {}
    learned: dict[str, dict[str, Any]] = {name: {} for name in config.nets}
    try:
        for name in config.nets:
            arguments = {**where, **config.data(name)}
            with (
                tempfile.TemporaryDirectory(prefix="jaxvae-benchmark-") as folder,
                Workers(one_process=machine["platform"] == "tpu") as workers,
            ):
                variants = _variants(config, name, arguments, Path(folder))
                found[name] = compare(workers, variants, config.rounds, f"net {name}")
                learned[name] = _learned(config, workers, found[name], arguments)
    finally:
        if found:  # after an interrupt, too: the measurements take long
            _report(config, found, learned, machine)


def _report(
    config: PeersConfig,
    found: dict[str, Comparison],
    learned: dict[str, dict[str, Any]],
    machine: dict[str, Any],
) -> None:
    _print(found, learned, machine)
    results = {
        name: compared.to_json() | {"net": NETS[name]._asdict(), "learned": learned[name],
                                    "ratios": _ratios(compared)}
        for name, compared in found.items()
    }  # fmt: skip
    json = tables.write(config, "peers", QUESTION, machine, results)
    tables.say_where(json, _plot(config, found, machine))


def _variants(
    config: PeersConfig, name: str, arguments: dict[str, Any], folder: Path
) -> list[Variant]:
    """Return the variants of a net.

    Args:
        config: the flags.
        name: a key of `NETS`.
        arguments: arguments that all variants take.
        folder: folder for the runs of the training command.
    """
    arguments = arguments | {"segment_seconds": config.segment_seconds}
    runs = lambda name: {"folder": str(folder / name)}
    by_hand = [
        Variant(BARE, f"{MODULE}.scanned_loop:prepare", arguments),
        Variant(FLAX, f"{MODULE}.flax_script:prepare", arguments),
    ]
    variants = [
        Variant(COMMAND, f"{MODULE}.real_training:prepare", arguments | runs("own")),
        *([] if NETS[name].model == "resnet" else by_hand),
        Variant(TUNED, f"{MODULE}.pytorch.training:prepare", arguments | {"style": "tuned"}),
        Variant(EAGER, f"{MODULE}.pytorch.training:prepare", arguments | {"style": "eager"}),
    ]
    if NETS[name].model == "conv":
        native = arguments | runs("native") | {"native_convolutions": True}
        variants.append(Variant(NATIVE, f"{MODULE}.real_training:prepare", native))
    return variants


def _learned(
    config: PeersConfig, workers: Workers, compared: Comparison, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Train and judge the variants, except the native convolutions, which learn the same."""
    steps = config.verify_steps
    steps = NETS[arguments["net"]].verify_steps if steps is None else steps
    training = Training(steps, config.verify_runs)
    if not training.steps:
        return {}
    names = [name for name in compared.rounds if name != NATIVE]
    title = f"net {arguments['net']}"
    try:
        return verify(workers, names, training, arguments, title)
    except WorkerFailed as error:
        say(f"{title}: test bounds are not compared: {error}")
        return {}


def _ratios(compared: Comparison) -> dict[str, list[float]]:
    """Ratio of the command's speed to each variant's, in each round."""
    ours = compared.rounds.get(COMMAND)
    if ours is None:
        return {}
    return {
        label: ratios(ours, measured, "images_per_second")
        for label, measured in compared.rounds.items()
        if label != COMMAND
    }


def _print(
    found: dict[str, Comparison], learned: dict[str, dict[str, Any]], machine: dict[str, Any]
) -> None:
    header = ["net, variant", "images/s", "quartiles", "worst", "command is", "worst", "MB",
              "test bound", "from median", "setting"]  # fmt: skip
    rows = []
    for name, compared in found.items():
        for label, measured in compared.rounds.items():
            speed = summarize(column(measured, "images_per_second"))
            row = [f"{name}: {label}", *tables.cells(speed)]
            over = _ratios(compared).get(label)
            ratio = summarize(over) if over else None
            row += [f"{ratio.median:.2f} x", f"{ratio.worst:.2f} x"] if ratio else ["", ""]
            row += [tables.megabytes(measured[-1]["peak_bytes"]), *_bound(learned[name].get(label))]
            rows.append([*row, compared.setting(label)])
    tables.print_table(f"{QUESTION} ({machine['devices']})", header, rows)
    for name, compared in found.items():
        for label, reason in compared.failed.items():
            print(f"net {name}: {label} was left out: {reason}")
        over = _ratios(compared).get(BARE)
        if over:
            overhead = 100 * (1 / summarize(over).median - 1)
            print(f"net {name}: the command takes {overhead:+.0f} % time over the bare loop")


def _bound(result: dict[str, Any] | None) -> list[str]:
    if result is None or "error" in result:
        return ["-" if result is None else "failed", "-"]
    agrees = "" if result["agrees"] else f" (beyond {tolerance(result['bound']):.1f})"
    return [f"{result['bound']:.2f}", f"{result['difference']:+.2f}{agrees}"]


def _plot(config: PeersConfig, found: dict[str, Comparison], machine: dict[str, Any]) -> Path:
    panels = [
        plots.Panel(
            f"net {name}: {NETS[name].about}",
            {
                label: column(measured, "images_per_second")
                for label, measured in compared.rounds.items()
            },
            "images per second",
        )
        for name, compared in found.items()
    ]
    title = f"Training, {machine['devices']}"
    return plots.bars(config.output / "peers.png", title, panels, highlighted=COMMAND)
