"""SIGKILL of one of the two processes of a run, alternately the coordinator and the worker."""

import contextlib
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from experiments.machine.processes import FAILED, USER_ERROR
from experiments.torture.victim import Outcome, Victim, difference, fingerprint

STEPS_PER_KILL = 100
LONGEST_START, LONGEST_TRAINING = 8.0, 2.0
"""Most seconds from the start, or from the first step, to a kill; each for half of the kills."""
SECONDS_TO_TRAIN = 120.0
START_TIMEOUT = LOST_TIMEOUT = 15
MOST_SECONDS_TO_END = {FAILED: 20.0, USER_ERROR: 45.0}
"""Exit code of the other process -> most seconds from the kill to its end. USER_ERROR: they had not
joined yet, and the START_TIMEOUT of the other begins once it is ready itself."""
NAMES = ("coordinator", "worker")


def lost_processes(folder: Path, tries: int, seed: int = 0) -> Outcome:
    """Kill one process: the other must end in time, and the restarted run as if uninterrupted."""
    steps = f"--num-steps={STEPS_PER_KILL * tries}"
    whole, killed = folder / "whole", folder / "killed"
    _to_the_end(whole, steps)
    generator, phases, slowest = random.Random(seed), Counter[str](), 0.0
    while phases.total() < tries:
        with _both(killed, steps) as both:
            _let_live(both[0], generator, training=phases.total() % 4 > 1)
            phase, lost = both[0].phase(), phases.total() % 2
            seconds, code = _seconds_alone(both[lost], both[1 - lost])
        if code == 0:
            break  # on a fast machine the run ends before all kills
        errors = both[1 - lost].errors
        if len(errors) != 1 or seconds > MOST_SECONDS_TO_END.get(code, 0):
            reason = f"{NAMES[lost]} killed while {phase}: the other ended with {code} after "
            reason += f"{seconds:.1f} s, in {len(errors)} lines: {' '.join(errors)}"
            return Outcome(phases.total() + 1, phases.total(), reason)
        if code == FAILED:
            slowest = max(slowest, seconds)
        phases[phase] += 1
    _to_the_end(killed, steps)
    tries = phases.total()
    different = difference(fingerprint(whole), fingerprint(killed))
    note = ", ".join(f"{count} while {phase}" for phase, count in phases.most_common())
    note += f"; the other ended after {slowest:.1f} s at most"
    return Outcome(tries, 0 if different else tries, f"{different} differ; {note}" if different
                   else note)  # fmt: skip


def _let_live(victim: Victim, generator: random.Random, *, training: bool) -> None:
    """Wait for a random moment of a process's start, or of its training."""
    if training:
        victim.wait_for("training", SECONDS_TO_TRAIN)
    time.sleep(generator.uniform(0, LONGEST_TRAINING if training else LONGEST_START))


def _seconds_alone(lost: Victim, other: Victim) -> tuple[float, int]:
    """Kill one process; return the seconds until the other ends, and the other's exit code."""
    lost.process.send_signal(signal.SIGKILL)
    since = time.monotonic()
    code, _ = other.end()
    return time.monotonic() - since, code


@contextlib.contextmanager
def _both(run: Path, *flags: str) -> Iterator[list[Victim]]:
    """Start the two processes of a run, and end both on exit."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    several = ("--eval-every=50", "--log-every=10", "--num-devices=1", "--num-processes=2",
               "--distributed", f"--coordinator={address}",
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
