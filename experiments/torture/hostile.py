"""Hostile run folders: no command on them may run code, leave the folder, hang or fill memory."""

import contextlib
import os
import random
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from experiments.flags.command import USER_ERROR
from experiments.machine.compilation_cache import give_back_memory
from experiments.torture.case import COMMANDS, RUN, Case, Fixture
from experiments.torture.fuzz import trained_run
from experiments.torture.hostile_files import CATEGORIES
from experiments.torture.hostile_values import MODULE, SCRIPT, Place
from experiments.torture.rejection import Ending, contents, in_process
from experiments.torture.victim import Outcome

MOST_BYTES = 2**31
"""Largest memory, in bytes, of a command on a hostile folder."""
PROCESSOR_SECONDS, PATIENCE_SECONDS = 60.0, 600.0
"""Longest processor time of a command, and longest wall time, which allows for other load."""
SMALL = {
    "train": (),
    "evaluate": ("--num-samples=2", "--num-devices=1"),
    "sample": ("--num-samples=4", "--num-examples=2", "--num-steps=2"),
    "encode": ("--num-devices=1",),
    "replay": ("5",),
}
"""Command -> arguments with which it takes only seconds on a valid run."""


READERS = {"metrics": ("train", "train", "replay"), "results": ("train",), "locks": ("train",)}
"""Category -> commands that read what it changes; all commands read the other categories."""


class Watch(NamedTuple):
    """Observations of a command besides its ending.

    Attributes:
        opened: files outside the run that Python opened, and programs that it started.
        peak_bytes: peak memory.
    """

    opened: list[str]
    peak_bytes: int


def hostile_runs(folder: Path, tries: int = 500, seed: int = 0) -> Outcome:
    """Run commands on hostile run folders; the folders of failed cases are not deleted."""
    trained = finished_run(folder)
    counts, lost, peak, slowest, used = Counter[str](), list[str](), 0, 0.0, 0
    started = time.monotonic()
    for index in range(tries):
        fixture = trained._replace(folder=folder / f"hostile-{index}")
        fixture.folder.mkdir()
        case, ending, watch, why = judged(seed, index, fixture)
        counts[category(index)] += 1
        used += ending.code == 0
        peak, slowest = max(peak, watch.peak_bytes), max(slowest, ending.processor_seconds)
        if why:
            lost.append(f"case {index} ({category(index)}), {case.command}: {why}")
        else:
            shutil.rmtree(fixture.folder)
    each = ", ".join(f"{count} {name}" for name, count in counts.items())
    note = f"{each}; {used} were usable nonetheless; slowest {slowest:.1f} s of processors, all "
    note += f"{time.monotonic() - started:.0f} s; at most {peak / 2**20:,.0f} MiB"
    return Outcome(tries, tries - len(lost), "; ".join([*lost, note]))


def finished_run(folder: Path) -> Fixture:
    """Train a run of a few steps to its end, with results, pictures and a report."""
    trained = trained_run(folder)
    flags = (*trained.flags, "--eval-samples=2", "--num-devices=1")
    case = Case("train", (*flags, f"--run={trained.trained}"), ())
    ending = in_process(case, folder, PATIENCE_SECONDS)
    if ending.code:
        raise RuntimeError(f"the run to copy did not finish: {ending.errors}")
    return trained._replace(flags=flags)


def category(index: int) -> str:
    """Return the category of case number `index`."""
    return list(CATEGORIES)[index % len(CATEGORIES)]


def lay(seed: int, index: int, fixture: Fixture) -> tuple[Case, Place]:
    """Write the files of case number `index` to the fixture's folder."""
    rng = random.Random(f"{seed} {index}")
    outside = fixture.folder / "outside"
    shutil.copytree(fixture.trained, outside)  # so that links can point to files of equal names
    os.mkfifo(outside / "pipe")
    place = Place(fixture.lay_run(), outside, fixture.folder / "mark")
    source = f"open({str(place.mark)!r}, 'w').close()\ndef make(**_): pass\n"
    (fixture.folder / f"{MODULE}.py").write_text(source)
    CATEGORIES[category(index)](rng, place)
    command = rng.choice(READERS.get(category(index), COMMANDS))
    arguments = (*fixture.flags, f"--run={RUN}") if command == "train" else (RUN,)
    return Case(command, (*arguments, *SMALL[command]), ()), place


def judged(seed: int, index: int, fixture: Fixture) -> tuple[Case, Ending, Watch, str]:
    """Run a case; return it, its ending, the observations, and why it failed (empty: passed)."""
    case, place = lay(seed, index, fixture)
    before = _outside_of(fixture.folder)
    watched: list[Watch] = []
    with _watching(place, watched):
        ending = in_process(case, fixture.folder, PATIENCE_SECONDS)
    after = _outside_of(fixture.folder)
    why = why_lost(place, ending, watched[0], before, after)
    return case, ending, watched[0], why


def why_lost(
    place: Place, ending: Ending, watch: Watch, before: dict[str, str], after: dict[str, str]
) -> str:
    """Return why a case failed; empty if it passed.

    A hostile folder may still be usable, for example one with an extra file: then the command exits
    with code 0, and all other conditions must hold.
    """
    text = ending.errors.strip()
    last = (text.splitlines() or ["no output"])[-1][:300]
    changed = sorted(path for path in before.keys() | after.keys()
                     if before.get(path) != after.get(path))  # fmt: skip
    report = place.run / "report.html"
    if place.mark.exists():
        return f"it ran code: {last}"
    if watch.opened:
        return f"it opened or started {watch.opened[0]}: {last}"
    if changed:
        return f"{', '.join(changed[:3])} changed outside the run: {last}"
    if "Traceback" in ending.output + ending.errors:
        return f"a traceback: {last}"
    if ending.code not in (0, USER_ERROR):
        return f"exit code {ending.code}: {last}"
    if ending.code and (not text.startswith("error: ") or len(text.splitlines()) != 1):
        return f"not one line: {text[:300]!r}"
    if not (text + ending.output).replace("\n", "").replace("\t", "").isprintable():
        return f"control characters: {text[:300]!r}"
    if watch.peak_bytes > MOST_BYTES:
        return f"{watch.peak_bytes / 2**20:,.0f} MiB of memory: {last}"
    if ending.processor_seconds > PROCESSOR_SECONDS or ending.seconds > PATIENCE_SECONDS:
        return f"ended after {ending.seconds:.0f} s: {last}"
    if report.is_file() and SCRIPT in report.read_text(errors="replace"):
        return "a script in the report"
    return ""


def _outside_of(folder: Path) -> dict[str, str]:
    """Describe everything beside the run; the run itself may have files of gigabytes."""
    found = {}
    for path in folder.iterdir():
        if path.name not in (RUN, "__pycache__"):
            found[path.name] = str(path.stat().st_mtime_ns)
            found |= {f"{path.name}/{name}": what for name, what in contents(path).items()}
    return found


_places: list[tuple[Place, list[str]]] = []
"""Place and observations of the watched case. Global, because audit hooks cannot be removed."""


def _see(event: str, arguments: tuple[object, ...]) -> None:
    if not _places:
        return
    place, seen = _places[-1]
    if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        path = os.path.realpath(os.fspath(arguments[0]))
        if path.startswith(f"{place.outside}{os.sep}") or path in ("/dev/zero", "/dev/random"):
            seen.append(path)
    elif event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "runpy.run"):
        seen.append(f"{event} {str(arguments)[:80]}")


@contextlib.contextmanager
def _watching(place: Place, watched: list[Watch]) -> Iterator[None]:
    """Record what this process opens and starts, and its peak memory, in `watched`."""
    if _see not in _hooked:
        sys.addaudithook(_see)
        _hooked.append(_see)
    # Each command compiles programs that no other one uses: gigabytes after 500 of them.
    jax.clear_caches()
    give_back_memory()
    _forget_peak()
    seen: list[str] = []
    _places.append((place._replace(outside=place.outside.resolve()), seen))
    try:
        yield
    finally:
        _places.pop()
        watched.append(Watch(seen, _peak_bytes()))


_hooked: list[object] = []


def _forget_peak() -> None:
    """Reset the peak of memory (on Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
