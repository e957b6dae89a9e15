"""Fuzzing with bad input of every kind: each case must fail with one line and change no file."""

import random
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.flags.config import TrainConfig
from experiments.machine import accelerators
from experiments.torture.bad_data import arrays
from experiments.torture.bad_flags import absent_devices, not_together, out_of_range, wrong_type
from experiments.torture.bad_folders import folders
from experiments.torture.bad_runs import edited_config, edited_metrics, no_run
from experiments.torture.case import Case, Fixture
from experiments.torture.rejection import Ending, as_command, contents, in_process, why_lost
from experiments.torture.victim import Outcome

CATEGORIES: dict[str, Callable[[random.Random, Fixture], Case]] = {
    "types": wrong_type,
    "ranges": out_of_range,
    "combinations": not_together,
    "config.json": edited_config,
    "arrays": arrays,
    "folders": folders,
    "metrics": edited_metrics,
    "runs": no_run,
    "devices": absent_devices,
}
"""Generators of cases; case i is of category i modulo their number."""
STEPS = 6
"""Steps of the trained run that cases copy."""


def bad_input(folder: Path, tries: int = 2000, seed: int = 0) -> Outcome:
    """Run cases of bad input, each as a command in this process."""
    return _fuzz(folder, tries, seed, in_process)


def bad_commands(folder: Path, tries: int = 200, seed: int = 1) -> Outcome:
    """Run cases of bad input, each as a command in a separate process."""
    return _fuzz(folder, tries, seed, as_command)


def _fuzz(folder: Path, tries: int, seed: int, give: Callable[[Case, Path], Ending]) -> Outcome:
    """Run the cases; the folders of failed ones are not deleted."""
    trained = trained_run(folder)
    counts, lost, slowest = Counter[str](), list[str](), (0.0, "")
    for index in range(tries):
        place = folder / f"{seed}-{index}"
        place.mkdir()
        fixture = trained._replace(folder=place, separate=give is as_command)
        case, ending, why = judged(seed, index, fixture, give)
        counts[category(index)] += 1
        slowest = max(slowest, (ending.seconds, shlex.join((case.command, *case.arguments))))
        if why:
            lost.append(f"case {index} of seed {seed}, {case.command} {case.arguments}: {why}")
        else:
            shutil.rmtree(place)
    each = ", ".join(f"{count} {name}" for name, count in counts.items())
    note = f"{each}; slowest {slowest[0]:.1f} s: {slowest[1][:80]}"
    return Outcome(tries, tries - len(lost), "; ".join([*lost, note]))


def judged(
    seed: int, index: int, fixture: Fixture, give: Callable[[Case, Path], Ending]
) -> tuple[Case, Ending, str]:
    """Run a case; return it, its ending, and why it failed (empty if it passed)."""
    case = case_of(seed, index, fixture)
    before = contents(fixture.folder)
    ending = give(case, fixture.folder)
    return case, ending, why_lost(case, ending, before, contents(fixture.folder))


def case_of(seed: int, index: int, fixture: Fixture) -> Case:
    """Make case number `index` of a seed, with its files in the fixture's folder."""
    return CATEGORIES[category(index)](random.Random(f"{seed} {index}"), fixture)


def category(index: int) -> str:
    """Return the category of case number `index`."""
    return list(CATEGORIES)[index % len(CATEGORIES)]


def trained_run(folder: Path) -> Fixture:
    """Train a run of a few steps in `folder` as material for cases; jax starts on the CPU."""
    images = np.zeros((40, 8, 8), np.uint8)
    images[np.arange(40), np.arange(40) % 8] = 250
    np.savez(folder / "bars.npz", images=images)
    data = f"npz:{folder / 'bars.npz'}"
    config = TrainConfig(
        run=folder / "trained",
        dataset=data,
        log_every=1,
        quiet=True,
        latent_dim=2,
        hidden=(4,),
        batch_size=8,
        num_steps=STEPS,
        eval_every=3,
    )
    devices = accelerators.start("cpu", None)[:1]
    from experiments.run.loop import training

    with training(config, devices) as loop:
        loop.train()
    flags = ("--latent-dim=2", "--hidden", "4", "--batch-size=8", f"--num-steps={STEPS}",
             "--eval-every=3", "--log-every=1", "--quiet", f"--dataset={data}")  # fmt: skip
    return Fixture(folder, folder / "trained", flags, STEPS, data, _absent(), separate=False)


def _absent() -> tuple[str, ...]:
    """Return the accelerators that a command in a separate process would not find."""
    program = "import jax; print(jax.devices()[0].platform)"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    ).stdout.split()
    return tuple(kind for kind in ("gpu", "tpu") if kind not in found)
