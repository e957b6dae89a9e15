"""Several processes as one run: how they find each other, agree, decide, and end.

On a cluster that jax knows (Slurm, Open MPI, Kubernetes, TPU pods) `--distributed` is enough; on
other machines each process says who it is. jax ends a process from within when another is lost;
what here comes after that is a line that says so.
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
"""Longest that a process that is done waits for the others; a lost one is noticed before."""
LOCAL = frozenset(
    {"run", "output", "processes", "manual_dir", "data_dir", "compilation_cache", "quiet"}
    | {"tensorboard"}
)
"""Flags in which processes may differ: those of files and screen, which are process 0's."""
SETTINGS = ("jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable")
"""Of jax, from its environment variables: other ones are another program."""
LOST = re.compile(r"Gloo|NCCL|heartbeat|UNAVAILABLE|DEADLINE_EXCEEDED|[Cc]oordination ?[Ss]ervice")
"""In an error of jax: another process did not answer."""
LOST_LINE = "another process has died or cannot be reached."
AGAIN = " Start all again: the run continues from its newest checkpoint."


def join(processes: Processes) -> None:
    """Make one program of all processes; before jax starts. It ends this one if any stays away.

    Raises:
        ValueError: no cluster and no flags, or no coordinator at its address.
    """
    import jax

    # jax's own SIGTERM handler would take the place of ours.
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
            # Later than `_give_up`: at its own time-out jax aborts, with a stack trace.
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
    """Where process 0 cannot have its port, jax may end in a segmentation fault: so try before."""
    if processes.coordinator is not None and processes.process_id == 0:
        with socket.create_server(("", int(processes.coordinator.rpartition(":")[2]))):
            pass


def _give_up(processes: Processes, joined: threading.Event) -> None:
    if not joined.wait(processes.start_timeout_seconds):
        where = f" at {processes.coordinator}" if processes.coordinator else ""
        _leave(
            f"{processes.name} waited {processes.start_timeout_seconds} seconds for all others to "
            f"come{where}. Start all of them with the same --coordinator and --num-processes, at "
            "a port that all can reach, within --start-timeout-seconds.",
            USER_ERROR,
        )


_on_abort: Any = None
"""Kept, since C holds no reference to it."""


def _explain_aborts(processes: Processes, joined: threading.Event) -> None:
    """End with a line where jax aborts, as it does some seconds after another process died.

    A handler of Python's own would not run: C's `abort` ends the process when it returns.
    """
    global _on_abort

    def explain(_: int) -> None:
        hint = f" ({LOG_LEVEL}=0 shows what jax says of it.)"
        if not joined.is_set():
            _leave(
                f"{processes.name} could not join the others. Start all of them with the same "
                f"--num-processes, each with a --process-id of its own.{hint}",
                USER_ERROR,
            )
        _leave(
            f"{processes.name} was ended by jax, most likely since {LOST_LINE}{AGAIN}{hint}", FAILED
        )

    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(explain)
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)


@contextlib.contextmanager
def as_peer(processes: Processes) -> Iterator[None]:
    """Around a command that may have peers: one that fails alone leaves at once.

    Otherwise Python, on its way out, waits for the others, who wait for it. What all of them
    have decided together ends as anywhere else.
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
            _leave(f"{processes.name} was interrupted; the others end for it.", INTERRUPTED)
        if _is_loss(error) or _is_loss(error.__cause__):
            _leave(f"{processes.name} has stopped: {LOST_LINE}{AGAIN}", FAILED)
        from experiments.flags.command import Refused

        if isinstance(error, Refused) or isinstance(
            error.__cause__, (ValueError, TypeError, OSError)
        ):
            _leave(str(error), USER_ERROR)
        traceback.print_exc()
        _leave(f"{processes.name} has failed; the others end for it.", FAILED)


def _is_loss(error: BaseException | None) -> bool:
    """Whether it is jax's, of a process that did not answer."""
    return isinstance(error, (RuntimeError, ValueError)) and bool(LOST.search(str(error)))


def _joined() -> bool:
    """Whether there are others that Python would wait for at its exit."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


_last_words: Path | None = None
_leaving = threading.Lock()
SECONDS_TO_LEAVE = 5.0
"""For what a process says at its end."""


def leave_last_words_in(file: Path | None) -> None:
    """Where the line with which this process ends goes too, where `as_peer` or jax ends it.

    Args:
        file: to append to; None: nowhere.
    """
    global _last_words
    _last_words = file


def _leave(line: str, code: int) -> None:
    """End this process now, without Python's exit, which waits for the others."""
    if not _leaving.acquire(timeout=SECONDS_TO_LEAVE):  # for good: of two threads, one speaks
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
    """Refuse to go on unless all processes have the same facts.

    Raises:
        ValueError: on every process, naming what differs and the first process where it does.
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
    """What process 0 counts, and the signal that any process has had: the same on all of them."""
    from jaxvae.checkpoints.hosts import gather_numbers

    numbers = gather_numbers([count, signal or 0])
    return int(numbers[0, 0]), int(numbers[:, 1].max()) or None


def agree_on_flags(config: Any) -> None:
    """Refuse to go on unless all processes have the same flags, jax settings, packages and code.

    Files may lie elsewhere on each host: flags that only say where (`LOCAL`) may differ.

    Raises:
        ValueError: on every process, naming what differs.
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
    """A digest of this project's own code, as it lies on this host."""
    root, total = Path(__file__).parents[2], hashlib.sha256()
    for path in sorted([*root.glob("jaxvae/**/*.py"), *root.glob("experiments/**/*.py")]):
        total.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return total.hexdigest()[:12]
