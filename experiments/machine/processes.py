"""Several processes as one run: they find each other, agree, decide together, and end together.

On a cluster that jax recognizes (Slurm, Open MPI, Kubernetes, TPU pods) `--distributed` is enough;
elsewhere each process is given its number. When a process is lost, jax aborts the others; this
module then prints one line that says so.
"""

import contextlib
import ctypes
import dataclasses
import hashlib
import json
import os
import re
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.flags.processes import LOG_LEVEL, Processes, silence_aborts

FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130
SHUTDOWN_SECONDS = 3600
"""Longest wait of a finished process for the others; lost processes are noticed earlier."""
LOCAL = frozenset(
    {"run", "output", "processes", "manual_dir", "data_dir", "compilation_cache", "quiet"}
    | {"tensorboard"}
)
"""Flags that may differ between processes: those of files and of the screen."""
SETTINGS = ("jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable")
"""Settings of jax that change the compiled program; environment variables may set them."""
LOST = re.compile(r"Gloo|NCCL|heartbeat|UNAVAILABLE|DEADLINE_EXCEEDED|[Cc]oordination ?[Ss]ervice")
"""Words of jax errors that mean that another process did not answer."""
LOST_LINE = "another process has died or cannot be reached."
AGAIN = " Start all processes again: the run continues from its newest checkpoint."


def join(processes: Processes) -> None:
    """Connect all processes, before jax starts. If one does not join in time, this process exits.

    Raises:
        ValueError: there is neither a cluster nor flags, or no coordinator at its address.
    """
    import jax

    # jax's own SIGTERM handler would replace ours (`stopping.StopRequest`).
    jax.config.update("jax_enable_preemption_service", False)
    joined = threading.Event()
    _explain_aborts(processes, joined)
    threading.Thread(target=_give_up, args=(processes, joined), daemon=True).start()
    explicit = processes.coordinator is not None
    try:
        _require_free_port(processes)
        jax.distributed.initialize(
            processes.coordinator,
            processes.num_processes,
            processes.process_id,
            cluster_detection_method="deactivate" if explicit else None,
            # Longer than `_give_up` waits: at its own time-out jax aborts with a stack trace.
            initialization_timeout=2 * processes.start_timeout_seconds + 60,
            heartbeat_timeout_seconds=processes.lost_timeout_seconds,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError, OSError) as error:
        if explicit:
            raise ValueError(
                f"{processes.name} could not start at --coordinator={processes.coordinator}: "
                f"{error}. Give another port, free on the host of process 0."
            ) from error
        raise ValueError(
            f"--distributed finds no cluster ({error}). Give --coordinator=HOST:PORT, "
            "--num-processes and --process-id, or start under Slurm, Open MPI, Kubernetes or on "
            "a TPU pod."
        ) from error
    finally:
        joined.set()


def _require_free_port(processes: Processes) -> None:
    """Try the port of process 0 first: if it is taken, jax may end in a segmentation fault."""
    if processes.coordinator is not None and processes.process_id == 0:
        with socket.create_server(("", int(processes.coordinator.rpartition(":")[2]))):
            pass


def _give_up(processes: Processes, joined: threading.Event) -> None:
    if not joined.wait(processes.start_timeout_seconds):
        where = f" at {processes.coordinator}" if processes.coordinator else ""
        _leave(
            f"{processes.name} waited {processes.start_timeout_seconds} seconds for the others to "
            f"join{where}. Start all of them with the same --coordinator and --num-processes, at "
            "a port that all can reach, within --start-timeout-seconds.",
            USER_ERROR,
        )


_on_abort: Any = None
"""Handler of `_explain_aborts`, stored here because C holds no reference to it."""


def _explain_aborts(processes: Processes, joined: threading.Event) -> None:
    """Print one line when jax aborts, as it does some seconds after another process died.

    The handler is set in C: `abort` ends the process before a handler of Python's would run.
    """
    global _on_abort

    def explain(_: int) -> None:
        hint = f" ({LOG_LEVEL}=0 shows jax's own message.)"
        if not joined.is_set():
            _leave(
                f"{processes.name} could not join the others. Start all of them with the same "
                f"--num-processes, each with its own --process-id.{hint}",
                USER_ERROR,
            )
        _leave(
            f"{processes.name} was ended by jax, most likely because {LOST_LINE}{AGAIN}{hint}",
            FAILED,
        )

    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(explain)
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)


@contextlib.contextmanager
def as_peer(processes: Processes) -> Iterator[None]:
    """Run a command that may have peers, and exit at once if this process fails alone.

    Otherwise Python would wait at its exit for the other processes, which wait for this one. An
    error that all processes raise together (`Stopped`) is passed on as usual.
    """
    if processes.distributed:
        silence_aborts()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if not processes.distributed or not _joined():
            raise
        from jaxvae.checkpoints.hosts import Stopped

        if isinstance(error.__cause__, Stopped):
            raise
        if isinstance(error, KeyboardInterrupt):
            _leave(f"{processes.name} was interrupted; the others end too.", INTERRUPTED)
        if _is_loss(error) or _is_loss(error.__cause__):
            _leave(f"{processes.name} has stopped: {LOST_LINE}{AGAIN}", FAILED)
        from experiments.flags.command import UserError

        if isinstance(error, UserError) or isinstance(
            error.__cause__, (ValueError, TypeError, OSError)
        ):
            _leave(str(error), USER_ERROR)
        traceback.print_exc()
        _leave(f"{processes.name} has failed; the others end too.", FAILED)


def _is_loss(error: BaseException | None) -> bool:
    """Return True for an error that jax raises when another process does not answer."""
    return isinstance(error, (RuntimeError, ValueError)) and bool(LOST.search(str(error)))


def _joined() -> bool:
    """Return True if this process is connected to others, which Python waits for at its exit."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


_last_words: Path | None = None
_leaving = threading.Lock()
SECONDS_TO_LEAVE = 5.0
"""Longest wait for another thread that is already printing the last line of this process."""


def leave_last_words_in(file: Path | None) -> None:
    """Set a file that also gets the last line of this process, if `as_peer` or jax ends it.

    Args:
        file: file to append the line to; None: no file.
    """
    global _last_words
    _last_words = file


def _leave(line: str, code: int) -> None:
    """Exit at once with a line, without Python's exit, which waits for the other processes."""
    if not _leaving.acquire(timeout=SECONDS_TO_LEAVE):  # never released: only one thread prints
        os._exit(code)
    try:
        if _last_words is not None:
            words = f"{line.partition(AGAIN)[0]}\n".encode(errors="backslashreplace")
            with contextlib.suppress(OSError), _last_words.open("ab") as file:
                file.write(words)
        with contextlib.suppress(OSError):
            os.write(2, f"error: {line}\n".encode(errors="backslashreplace"))
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
    finally:
        os._exit(code)


def agree(what: str, facts: dict[str, Any]) -> None:
    """Check that all processes have the same facts.

    Args:
        what: plural noun for the facts, in the message.
        facts: name -> value on this process.

    Raises:
        ValueError: on every process; it names each difference and the first process that has it.
    """
    import jax

    if jax.process_count() == 1:
        return
    from jaxvae.checkpoints.hosts import Stopped, gather

    first, *others = [json.loads(text) for text in gather(json.dumps(facts, default=str))]
    differences: dict[str, str] = {}
    for index, other in enumerate(others, 1):
        for name in sorted(first.keys() | other.keys()):
            here, there = first.get(name, "absent"), other.get(name, "absent")
            if here != there:
                line = f"{name} is {here} on process 0 and {there} on process {index}"
                differences.setdefault(name, line)
    if differences:
        raise Stopped(
            f"the processes differ: {'; '.join(differences.values())}. Start all of them with the "
            f"same {what}."
        )


def broadcast_decision(count: int, signal: int | None) -> tuple[int, int | None]:
    """Return process 0's count, and the signal that any process received, on every process."""
    from jaxvae.checkpoints.hosts import gather_numbers

    numbers = gather_numbers([count, signal or 0])
    return int(numbers[0, 0]), int(numbers[:, 1].max()) or None


def agree_on_flags(config: Any) -> None:
    """Check that all processes have the same flags, jax settings, packages and code.

    Flags in `LOCAL` may differ: the paths of files may be different on each host.

    Raises:
        ValueError: on every process; it names what differs.
    """
    import jax

    if jax.process_count() == 1:
        return
    from experiments.machine.versions import versions

    flags = {
        f"--{field.name.replace('_', '-')}": getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in LOCAL
    }
    count = {"--num-processes": config.processes.num_processes}
    settings = {name: getattr(jax.config, name) for name in SETTINGS}
    code = {"the digest of the code": _source_digest()}
    facts = flags | count | settings | versions() | code
    agree("flags, jax settings, packages and code", facts)


def _source_digest() -> str:
    """Digest of this project's code on this host."""
    root, total = Path(__file__).parents[2], hashlib.sha256()
    for path in sorted([*root.glob("jaxvae/**/*.py"), *root.glob("experiments/**/*.py")]):
        total.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return total.hexdigest()[:12]
