"""A training step computed again, bit for bit, and what went wrong in it.

python -m experiments.replay runs/mnist_small-mlp 1234
"""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from experiments.flags import command
from experiments.flags.config import require, require_representable

NO_END = 10**9


@dataclass(frozen=True)
class ReplayConfig:
    """Compute a step of a run again, from the checkpoint before it, and say what went wrong.

    Nothing in the run's folder changes. On the same devices and packages the numbers are those of
    the run, bit for bit; where the run wrote the step down they are compared. Then: which example,
    which term, which operation and which layer's gradient first were not finite.
    """

    run: Annotated[Path, command.Positional]
    """Folder of the run."""
    step: Annotated[int, command.Positional]
    """Which step, from 1; metrics.jsonl has the skipped ones."""
    model: str | None = None
    """package.module:function, for a run that was trained with this --model: it is imported only
    if you name it here."""
    compilation_cache: str = "auto"
    """Folder of compiled programs, as for training; none: compile each time."""


def replay(config: ReplayConfig) -> None:
    """Compute the step again and print what it gave."""
    with command.refusing(), tempfile.TemporaryDirectory(prefix="jaxvae-replay-") as folder:
        require(config.step >= 1, "step", config.step, "at least 1")
        require_representable(config)
        from experiments.machine import accelerators, compilation_cache
        from experiments.record.metrics import read_metrics
        from experiments.record.recorder import METRICS
        from experiments.run.folder import read_config

        compilation_cache.use(config.compilation_cache)
        flags = read_config(config.run)
        if flags is None:
            raise FileNotFoundError(
                f"no run at {config.run}: give the folder that `python -m experiments.train` wrote."
            )
        if not (config.run / METRICS).exists():
            raise FileNotFoundError(
                f"{config.run} must have {METRICS}, which says how far it has come; there is none. "
                "Restore it, or train again with another --run."
            )
        rows = read_metrics(config.run / METRICS)
        last = max((row["step"] for row in rows), default=0)
        require(config.step <= last, "step", config.step, f"one that the run has come to ({last})")
        devices = accelerators.start(
            flags.accelerator, flags.num_devices, deterministic=flags.deterministic_reduction
        )
        from experiments.run.diagnosis import diagnose
        from experiments.run.loop import training
        from experiments.run.replayed_run import check_replayable, next_step, start_before

        check_replayable(flags, config.run, config.model)
        quiet = dataclasses.replace(
            flags,
            run=Path(folder) / "run",
            quiet=True,
            tensorboard=False,
            eval_every=NO_END,
            log_every=1,
            max_skipped=NO_END,
        )
        with training(quiet, devices) as loop:
            started = start_before(loop, config.run / "checkpoints", config.step)
            loop.train(config.step - 1)
            step = next_step(loop)
            loop.train(config.step)
        again = _row(read_metrics(quiet.folder / METRICS), config.step)
    written = _row(rows, config.step)
    print(f"step {config.step:,}, computed again from step {started:,}:")
    for name, value in again.items():
        print(f"  {name} {'not finite' if value is None else value}")
    print(f"  {_compared(again, written)}")
    lines = diagnose(step)
    print("\n".join(lines) or "all examples' terms and gradients are finite")


def _row(rows: list[dict[str, Any]], step: int) -> dict[str, Any]:
    """The numbers of a training step, but for times; empty where it is not written down."""
    for row in rows:
        if (row["step"], row["split"]) == (step, "train"):
            return {k: v for k, v in row.items() if k not in ("step", "split", "timing")}
    return {}


def _compared(again: dict[str, Any], written: dict[str, Any]) -> str:
    assert again, "the step was not computed"
    if not written:
        return "the run did not write this step's numbers down (--log-every)"
    different = [name for name in again if again[name] != written.get(name)]
    if not different:
        return "bit for bit what the run wrote down"
    pairs = "; ".join(f"{name} was {written.get(name)}" for name in different)
    return f"not what the run wrote down, on other devices or packages perhaps: {pairs}"


if __name__ == "__main__":
    command.main(ReplayConfig, replay)
