"""Run a command line that must be rejected, in this or a separate process, and judge its end."""

import contextlib
import hashlib
import importlib
import io
import os
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from experiments.flags import command
from experiments.record.progress import without_announcements
from experiments.torture.case import Case
from experiments.torture.victim import ROOT

SECONDS = 5.0
"""Longest processor time until a rejection."""
PATIENCE_SECONDS = 60.0
"""Longest wall time, which allows for other load; a command that hangs is ended then."""
INTERNALS = re.compile(
    r"\[Errno|\w+Error\b|Exception|object (is|has|of type)|NoneType|not supported between|"
    r"unsupported operand|positional argument|unexpected keyword|cannot be interpreted|<class"
)
"""Python's messages to programmers, allowed for users only as a quotation (`QUOTED`)."""
QUOTED = re.compile(r"gave: |\(.*\)")
BOX = "For full helptext, "
"""Last line of tyro's box around a syntax error."""


class Ending(NamedTuple):
    """End of a command: exit code, standard output and error, wall and processor seconds."""

    code: int
    output: str
    errors: str
    seconds: float
    processor_seconds: float


def in_process(case: Case, folder: Path, patience_seconds: float = PATIENCE_SECONDS) -> Ending:
    """Run a command as `python -m` does, in this process, with `folder` as current directory."""
    module = importlib.import_module(f"experiments.{case.command}")
    flags = getattr(module, f"{case.command.capitalize()}Config")
    default = [module.flags_of_run] if hasattr(module, "flags_of_run") else []
    output, errors, code = io.StringIO(), io.StringIO(), 0
    started, used = time.perf_counter(), time.process_time()
    with _undone(case, folder, patience_seconds), contextlib.redirect_stdout(output), \
         contextlib.redirect_stderr(errors):  # fmt: skip
        try:
            command.main(flags, getattr(module, case.command), *default)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except Exception as error:
            code, text = 1, f"Traceback: {type(error).__name__}: {error}"
            errors.write(text)
    seconds = (time.perf_counter() - started, time.process_time() - used)
    return Ending(code, output.getvalue(), errors.getvalue(), *seconds)


def _too_late(number: int, frame: object) -> None:
    raise RuntimeError("it did not end")


@contextlib.contextmanager
def _undone(case: Case, folder: Path, patience_seconds: float) -> Iterator[None]:
    """Set up this process for a command, and undo all changes: arguments, paths, modules, hooks."""
    arguments, paths, hook, modules = sys.argv, sys.path[:], sys.unraisablehook, set(sys.modules)
    bytecode, alarm = sys.dont_write_bytecode, signal.signal(signal.SIGALRM, _too_late)
    try:
        signal.setitimer(signal.ITIMER_REAL, patience_seconds)
        sys.argv, sys.dont_write_bytecode = [case.command, *case.arguments], True
        with contextlib.chdir(folder), warnings.catch_warnings():
            warnings.simplefilter("always")
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        sys.argv, sys.path[:], sys.unraisablehook = arguments, paths, hook
        sys.dont_write_bytecode = bytecode
        for name in set(sys.modules) - modules:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(folder):
                del sys.modules[name]


def as_command(case: Case, folder: Path) -> Ending:
    """Run a command in a separate process, with `folder` as current directory."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    started, used = time.perf_counter(), _children_seconds()
    try:
        process = subprocess.run(
            [sys.executable, "-m", f"experiments.{case.command}", *case.arguments],
            cwd=folder, env=environment | case.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", check=False, timeout=PATIENCE_SECONDS,
        )  # fmt: skip
        code, output, errors = process.returncode, process.stdout, process.stderr
    except subprocess.TimeoutExpired:
        code, output, errors = -1, "", "killed, since it did not end"
    seconds = time.perf_counter() - started
    return Ending(code, output, errors, seconds, _children_seconds() - used)


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def contents(folder: Path) -> dict[str, str]:
    """Describe everything below a folder: path -> kind, or size, time and digest of a file."""
    found = {}
    for here, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(here, name)
            found[str(path.relative_to(folder))] = _described(path)
    return found


def _described(path: Path) -> str:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    if path.is_dir():
        return "folder"
    if not path.is_file():
        return "neither file nor folder"
    about = path.stat()
    return f"{about.st_size} {about.st_mtime_ns} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def why_lost(case: Case, ending: Ending, before: dict[str, str], after: dict[str, str]) -> str:
    """Return why a case failed; empty if the command was rejected correctly."""
    changed = sorted(path for path in before.keys() | after.keys()
                     if before.get(path) != after.get(path))  # fmt: skip
    text = ending.errors.strip()
    last = (text.splitlines() or ["no output"])[-1]
    if "Traceback" in ending.output + ending.errors:
        return f"a traceback: {last}"
    if ending.code != command.USER_ERROR:
        return f"exit code {ending.code}: {last}"
    if changed:
        return f"{', '.join(changed[:3])} changed on disk: {last}"
    if ending.processor_seconds > SECONDS or ending.seconds > PATIENCE_SECONDS:
        return f"rejected only after {ending.seconds:.1f} s: {last}"
    if BOX in ending.output + ending.errors:  # tyro's own message, which has several lines
        return ""
    return _what_the_line_lacks(case, without_announcements(ending.errors).strip())


def _what_the_line_lacks(case: Case, text: str) -> str:
    if not text.startswith("error: ") or len(text.splitlines()) != 1:
        return f"not one line: {text!r}"
    if not any(name in text for name in case.names):
        return f"does not name {' or '.join(case.names)}: {text}"
    if INTERNALS.search(QUOTED.split(text, maxsplit=1)[0]):
        return f"shows Python internals: {text}"
    if not text.endswith("."):
        return f"is not a sentence: {text}"
    return ""
