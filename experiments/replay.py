"""Recompute a training step, bit for bit, and report what went wrong in it.

python -m experiments.replay runs/mnist_small-mlp 1234
"""

import contextlib
import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from experiments.flags import command
from experiments.flags.config import require, require_representable
from experiments.record.progress import announced

NO_END = 10**9
"""More steps than any run has: turns evaluations and the limit on skipped steps off."""


@dataclass(frozen=True)
class ReplayConfig:
    """Recompute a step of a run, from the checkpoint before it, and report what went wrong.

    Nothing in the run's folder changes. On the same devices and packages, the numbers equal the
    run's bit for bit; they are compared if the run logged the step. The report names the first
    example, term, operation and layer gradient that is not finite.
    """

    run: Annotated[Path, command.Positional]
    """Folder of the trained run, such as runs/mnist_small-mlp."""
    step: Annotated[int, command.Positional]
    """Number of the step, from 1; metrics.jsonl lists the skipped steps."""
    model: str | None = None
    """package.module:function. Required for a run trained with this --model:
    your code is imported only if you name it here."""
    compilation_cache: str = "auto"
    """Folder for compiled programs, as in training; none: compile at every
    start."""


def replay(config: ReplayConfig) -> None:
    """Recompute the step and print its numbers and the diagnosis."""
    with command.as_user_errors(), tempfile.TemporaryDirectory(prefix="jaxvae-replay-") as folder:
        require(config.step >= 1, "step", config.step, "at least 1")
        require_representable(config)
        with announced("Starting JAX"):
            from experiments.machine import accelerators, compilation_cache
            from experiments.record.metrics import read_metrics
            from experiments.record.recorder import METRICS
            from experiments.run.diagnosis import diagnose
            from experiments.run.folder import read_config
            from experiments.run.loop import training
            from experiments.run.replayed_run import check_replayable, next_step, start_before

        compilation_cache.use(config.compilation_cache)
        flags = read_config(config.run)
        if flags is None:
            raise FileNotFoundError(
                f"no run at {config.run}: give the folder that `python -m experiments.train` wrote."
            )
        if not (config.run / METRICS).exists():
            raise FileNotFoundError(
                f"{config.run} has no {METRICS}, which records how far the run has come. Restore "
                "it, or train again with another --run."
            )
        rows = read_metrics(config.run / METRICS)
        devices = accelerators.start(
            flags.accelerator, flags.num_devices, deterministic=flags.deterministic_reduction
        )
        with announced(f"Reading {config.run}"):
            newest = check_replayable(flags, config.run, config.model)
        last = max([newest, *(row["step"] for row in rows)])
        require(config.step <= last, "step", config.step, f"one that the run has come to ({last})")
        quiet = dataclasses.replace(
            flags,
            run=Path(folder) / "run",
            quiet=True,
            tensorboard=False,
            eval_every=NO_END,
            log_every=1,
            max_skipped=NO_END,
        )
        with contextlib.ExitStack() as opened:
            with announced("Building the run"):
                loop = opened.enter_context(training(quiet, devices))
                started = start_before(loop, config.run / "checkpoints", config.step)
            how_far = lambda: f"step {loop.step:,} of {config.step:,}"
            with announced("Recomputing steps", how_far):
                loop.train(config.step - 1)
                step = next_step(loop)
                loop.train(config.step)
        again = _row(read_metrics(quiet.folder / METRICS), config.step)
    written = _row(rows, config.step)
    print(f"step {config.step:,}, recomputed from step {started:,}:")
    for name, value in again.items():
        print(f"  {name} {'not finite' if value is None else value}")
    print(f"  {_compared(again, written)}")
    with announced("Looking for the first number that is not finite"):
        lines = diagnose(step)
    print("\n".join(lines) or "all examples' terms and gradients are finite")


def _row(rows: list[dict[str, Any]], step: int) -> dict[str, Any]:
    """Numbers of a training step, without its times; empty if the step was not logged."""
    for row in rows:
        if (row["step"], row["split"]) == (step, "train"):
            return {k: v for k, v in row.items() if k not in ("step", "split", "timing")}
    return {}


def _compared(again: dict[str, Any], written: dict[str, Any]) -> str:
    assert again, "the step was not computed"
    if not written:
        return "the run did not log this step (--log-every), so there is nothing to compare"
    different = [name for name in again if again[name] != written.get(name)]
    if not different:
        return "bit for bit what the run logged"
    pairs = "; ".join(f"{name} was {written.get(name)}" for name in different)
    return f"not what the run logged, perhaps because devices or packages differ: {pairs}"


if __name__ == "__main__":
    command.main(ReplayConfig, replay)
