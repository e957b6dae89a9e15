"""SIGKILL of one of two processes that are one run, at any moment, the coordinator in its turn."""

import contextlib
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from experiments.torture.victim import Outcome, Victim, difference, fingerprint

STEPS_PER_KILL = 100
LONGEST_START, LONGEST_TRAINING = 8.0, 2.0
"""Seconds from the start, or from the first step, to a kill: half of them this, half that."""
SECONDS_TO_TRAIN = 120.0
START_TIMEOUT = LOST_TIMEOUT = 15
MOST_SECONDS_TO_END = 20.0
"""From a kill to the other's end, its last line included."""
NAMES = ("coordinator", "worker")


def lost_processes(folder: Path, tries: int, seed: int = 0) -> Outcome:
    """One killed, the other ends in time with one line; restarted, the run ends as one never so."""
    steps = f"--num-steps={STEPS_PER_KILL * tries}"
    whole, killed = folder / "whole", folder / "killed"
    _to_the_end(whole, steps)
    generator, phases, slowest = random.Random(seed), Counter[str](), 0.0
    while phases.total() < tries:
        lost = phases.total() % 2
        with _both(killed, steps) as both:
            if phases.total() % 4 < 2:
                time.sleep(generator.uniform(0.1, LONGEST_START))
            else:
                both[0].wait_for("training", SECONDS_TO_TRAIN)
                time.sleep(generator.uniform(0, LONGEST_TRAINING))
            phase = both[0].phase()
            if all(victim.process.poll() == 0 for victim in both):
                break  # on a quick machine it comes to its end before all kills
            both[lost].process.send_signal(signal.SIGKILL)
            since = time.monotonic()
            code, line = both[1 - lost].end()
            seconds = time.monotonic() - since
            slowest = max(slowest, seconds)
            if not code or len(both[1 - lost].errors) != 1 or seconds > MOST_SECONDS_TO_END:
                reason = (
                    f"{NAMES[lost]} killed while {phase}: after {seconds:.1f} s the other ended "
                    f"with {code} and {len(both[1 - lost].errors)} lines: {line}"
                )
                return Outcome(phases.total() + 1, phases.total(), reason)
        phases[phase] += 1
    _to_the_end(killed, steps)
    tries = phases.total()
    different = difference(fingerprint(whole), fingerprint(killed))
    where = ", ".join(f"{count} while {phase}" for phase, count in phases.most_common())
    note = f"the other ended after {slowest:.1f} s at most; {where}"
    return Outcome(tries, 0 if different else tries, f"{different} differ; {note}" if different
                   else note)  # fmt: skip


@contextlib.contextmanager
def _both(run: Path, *flags: str) -> Iterator[list[Victim]]:
    """The two processes of a run, none of which is left behind."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    several = ("--eval-every=50", "--log-every=10", "--distributed", f"--coordinator={address}", "--num-processes=2", "--num-devices=1",
               f"--start-timeout-seconds={START_TIMEOUT}",
               f"--lost-timeout-seconds={LOST_TIMEOUT}")  # fmt: skip
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Victim(run, *flags, *several, f"--process-id={rank}"))
               for rank in (0, 1)]  # fmt: skip


def _to_the_end(run: Path, *flags: str) -> None:
    """Train in both processes to the end.

    Raises:
        RuntimeError: one of them failed.
    """
    with _both(run, *flags) as both:
        ends = [victim.end() for victim in both]
    for name, (code, line) in zip(NAMES, ends, strict=True):
        if code:
            raise RuntimeError(f"the {name} ended with {code}: {line}")
