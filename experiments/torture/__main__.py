"""Command that tortures real runs on this machine.

python -m experiments.torture
"""

import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.flags import command
from experiments.flags.config import require


@dataclass(frozen=True)
class TortureConfig:
    """Kill, stop, damage, move and starve real runs, and check that nothing is lost.

    Prints a table of cases with the tries and how many of them survived. Ends with exit code 1 at
    the first loss, whose folders are not deleted.
    """

    kills: int = 50
    """SIGKILLs of one run, a fifth of them while it saves a checkpoint."""
    tries: int = 4
    """Tries of each other case."""
    bad_input: int = 2000
    """Generated cases of bad input; a tenth as many run as separate commands."""
    hostile: int = 500
    """Generated malicious run folders."""
    cases: tuple[str, ...] = ()
    """Names of cases, or parts of names. Default: all cases."""


def torture(config: TortureConfig) -> int:
    """Run the cases; return the exit code."""
    with command.as_user_errors():
        require(config.kills >= 1, "kills", config.kills, "at least 1")
        require(config.tries >= 1, "tries", config.tries, "at least 1")
        require(config.bad_input >= 10, "bad_input", config.bad_input, "at least 10")
        require(config.hostile >= 1, "hostile", config.hostile, "at least 1")
        from experiments.torture import (
            accidents,
            fuzz,
            hostile,
            kills,
            large,
            long_runs,
            processes,
        )
        from experiments.torture.victim import Outcome

        cases: dict[str, tuple[Callable[[Path, int], Outcome], int]] = {
            "killed anywhere": (kills.killed_anywhere, config.kills),
            "SIGTERM and Ctrl-C": (kills.signalled, config.tries),
            "Ctrl-C twice": (kills.interrupted_twice, config.tries),
            "one of two processes": (processes.lost_processes, config.tries),
            "other hardware": (accidents.other_hardware, config.tries),
            "damaged checkpoint": (accidents.damaged_checkpoint, config.tries),
            "full disk": (accidents.full_disk, config.tries),
            "second start": (accidents.second_start, config.tries),
            "numbers not finite": (accidents.not_finite, config.tries),
            "200,000 steps": (long_runs.long_run, 1),
            "checkpoint of 500 MB": (large.large_checkpoint, config.tries),
            "data larger than memory": (large.larger_than_memory, 1),
            "bad input": (fuzz.bad_input, config.bad_input),
            "bad input, as commands": (fuzz.bad_commands, config.bad_input // 10),
            "bad input, hostile runs": (hostile.hostile_runs, config.hostile),
        }
        chosen = {name: case for name, case in cases.items()
                  if not config.cases or any(part in name for part in config.cases)}  # fmt: skip
        require(bool(chosen), "cases", " ".join(config.cases), f"among {', '.join(cases)}")
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns about read-only folders
    print(f"{'case':24}{'tries':>7}{'survived':>10}")
    for name, (case, tries) in chosen.items():
        folder = Path(tempfile.mkdtemp(prefix="jaxvae-torture-"))
        try:
            outcome = case(folder, tries)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            outcome = Outcome(tries, 0, str(error))
        print(f"{name:24}{outcome.tries:>7}{outcome.survived:>10}  {outcome.note}", flush=True)
        if outcome.survived < outcome.tries:
            print(f"error: {name} failed. Its files are in {folder}.", file=sys.stderr)
            return 1
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    command.main(TortureConfig, torture)
