"""Signals to a run: SIGKILL at any moment, SIGTERM, and Ctrl-C once and twice."""

import random
import signal
import time
from collections import Counter
from pathlib import Path

from experiments.torture.victim import Outcome, Victim, difference, fingerprint, train

STEPS_PER_KILL = 2500
LONGEST_LIFE = 5.0
"""Most seconds from a start to a kill; some starts are killed before their first step."""
SECONDS_TO_STOP = 10.0
SECONDS_TO_START = 120.0


def killed_anywhere(folder: Path, tries: int, seed: int = 0) -> Outcome:
    """Kill a run again and again, restart it: it must end like an uninterrupted run."""
    steps = f"--num-steps={STEPS_PER_KILL * tries}"
    whole, killed = folder / "whole", folder / "killed"
    train(whole, steps)
    generator, phases = random.Random(seed), Counter[str]()
    while phases.total() < tries:
        with Victim(killed, steps) as victim:
            if phases.total() % 5 == 4:
                victim.wait_for("saving", SECONDS_TO_START)
            else:
                time.sleep(generator.uniform(0.1, LONGEST_LIFE))
            phase = victim.phase()
            if victim.process.poll() is not None:
                code, line = victim.end()
                if code:
                    reason = f"ended with {code}: {line}"
                    return Outcome(phases.total() + 1, phases.total(), reason)
                break  # on a fast machine the run ends before all kills
            victim.process.send_signal(signal.SIGKILL)
            victim.process.wait()
        phases[phase] += 1
    train(killed, steps)
    tries = phases.total()
    different = difference(fingerprint(whole), fingerprint(killed))
    where = ", ".join(f"{count} while {phase}" for phase, count in phases.most_common())
    return Outcome(tries, 0 if different else tries, f"{different} differ; {where}" if different
                   else where)  # fmt: skip


def signalled(folder: Path, tries: int) -> Outcome:
    """Send SIGTERM or Ctrl-C: a run must end within seconds, with exit code 128 + signal."""
    survived, slowest, note = 0, 0.0, ""
    for i in range(tries):
        number = (signal.SIGTERM, signal.SIGINT)[i % 2]
        with Victim(folder / "run", "--num-steps=1000000") as victim:
            victim.wait_for("training", SECONDS_TO_START)
            started = time.monotonic()
            victim.process.send_signal(number)
            code, line = victim.end()
            slowest = max(slowest, time.monotonic() - started)
        if code == 128 + number and slowest < SECONDS_TO_STOP:
            survived += 1
        else:
            note = f"; {number.name} ended with {code}: {line}"
    return Outcome(tries, survived, f"slowest after {slowest:.1f} s{note}")


def interrupted_twice(folder: Path, tries: int) -> Outcome:
    """Send Ctrl-C twice: a run must end at once, and resume from its last checkpoint."""
    survived, slowest = 0, 0.0
    for _ in range(tries):
        with Victim(folder / "run", "--num-steps=1000000") as victim:
            victim.wait_for("training", SECONDS_TO_START)
            started = time.monotonic()
            victim.process.send_signal(signal.SIGINT)
            victim.process.send_signal(signal.SIGINT)
            code, _ = victim.end()
            slowest = max(slowest, time.monotonic() - started)
        survived += code == 128 + signal.SIGINT
    return Outcome(tries, survived, f"slowest after {slowest:.1f} s")
