"""Processes that hold one prepared variant each and wait, using no processor, for a line to go.

A request is one line of JSON on a worker's standard input, {"variant", "call", "arguments"}, and
the answer one line on its standard output; all else that the worker prints goes to a file.
"""

import contextlib
import importlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from experiments.flags.command import Refused

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # compile times are those of a first start
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes share one GPU
}
SECONDS_TO_END = 2.0
ABSENT = {"torch": "PyTorch is not installed. python -m pip install -e '.[peers]' adds it."}
"""Optional packages, and what to say without them."""


class Variant(NamedTuple):
    """What a worker prepares.

    Attributes:
        name: in the tables.
        function: "module:function", which returns an object with `about` and methods.
        arguments: of the function, in JSON's types.
        process: variants that name the same one share it; "" is one of its own.
        peers: of a variant that is several processes, the arguments that each has of its own.
    """

    name: str
    function: str
    arguments: dict[str, Any]
    process: str = ""
    peers: tuple[dict[str, Any], ...] = ({},)


class WorkerFailed(Exception):
    """A variant that could not be prepared or died; the text is one line."""


class Worker:
    """A process that holds variants.

    Args:
        name: in messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from experiments.benchmark import workers; workers.serve()"],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            text=True,
            start_new_session=True,  # Ctrl-C is the parent's to act upon
        )

    def send(self, variant: str, call: str, **arguments: Any) -> None:
        """Ask for a method of a variant to be called; `receive` gives what it returns."""
        request = {"variant": variant, "call": call, "arguments": arguments}
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `receive` says how it died
            print(json.dumps(request), file=self._process.stdin, flush=True)

    def receive(self) -> Any:
        """Wait for the answer to what was sent.

        Raises:
            WorkerFailed: the method raised, or the worker died.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise WorkerFailed(f"{self.name} died (exit code {code}): {self._last_line()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(f"{self.name}: {answer['error']}")
        return answer["result"]

    def fileno(self) -> int:
        """Where its answers come from."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def let_go(self) -> None:
        """Tell the process to end, by the end of its input."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def close(self, deadline: float) -> None:
        """Wait for the process to end until `time.monotonic` says `deadline`, or kill it."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._printed.close()

    def _last_line(self) -> str:
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it printed nothing"


class Workers:
    """The workers of one comparison: a process for each variant, or a few. A context manager.

    Args:
        one_process: hold all variants in one process, where a device serves one process only.
    """

    def __init__(self, *, one_process: bool = False) -> None:
        self._one_process = one_process
        self._processes: dict[str, list[Worker]] = {}
        self._held_by: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        workers = [worker for group in self._processes.values() for worker in group]
        for worker in workers:
            worker.let_go()
        deadline = time.monotonic() + SECONDS_TO_END  # of all: whoever stops us may not wait longer
        for worker in workers:
            worker.close(deadline)

    def prepare(self, variant: Variant) -> dict[str, Any]:
        """Import, compile and warm up a variant; returns what it says of itself.

        Raises:
            WorkerFailed: it could not.
        """
        process = "" if self._one_process else variant.process or variant.name
        if process not in self._processes:
            self._processes[process] = [Worker(variant.name) for _ in variant.peers]
        self._held_by[variant.name] = process
        own = [{"arguments": variant.arguments | peer} for peer in variant.peers]
        return self._ask(variant.name, "prepare", {"function": variant.function}, own)

    def ask(self, variant: str, call: str, **arguments: Any) -> Any:
        """Call a method of a variant that is prepared, and wait for what it returns.

        All processes of a variant are asked at once; the first one's answer counts.

        Raises:
            WorkerFailed: the method raised, or the worker died.
        """
        return self._ask(variant, call, arguments, [{}] * len(self._group(variant)))

    def _ask(
        self, variant: str, call: str, arguments: dict[str, Any], own: list[dict[str, Any]]
    ) -> Any:
        group = self._group(variant)
        for worker, more in zip(group, own, strict=True):
            worker.send(variant, call, **arguments, **more)
        answers: dict[Worker, Any] = {}
        while waiting := [worker for worker in group if worker not in answers]:
            # Whichever speaks first: one that fails leaves the others waiting for it.
            for worker in ready(waiting):
                answers[worker] = worker.receive()
        return answers[group[0]]

    def _group(self, variant: str) -> list[Worker]:
        return self._processes[self._held_by[variant]]


def ready(workers: list[Worker]) -> list[Worker]:
    """Those that have an answer, once there is one."""
    return workers if len(workers) == 1 else select.select(workers, [], [])[0]


def serve() -> None:
    """A worker's life: answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    held: dict[str, Any] = {}
    for line in sys.stdin:
        try:
            answer = {"result": _answer(held, **json.loads(line))}
        except (Exception, SystemExit) as error:
            answer = {"error": _in_one_line(error)}
        print(json.dumps(answer), file=answers, flush=True)


def _answer(held: dict[str, Any], variant: str, call: str, arguments: dict[str, Any]) -> Any:
    if call != "prepare":
        return getattr(held[variant], call)(**arguments)
    module, _, function = arguments["function"].partition(":")
    held[variant] = getattr(importlib.import_module(module), function)(**arguments["arguments"])
    return held[variant].about


def _in_one_line(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name in ABSENT:
        return ABSENT[error.name]
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}"


def ask_once(variant: Variant) -> dict[str, Any]:
    """What a variant says of itself, from a process that ends then.

    Raises:
        Refused: it could not be prepared; the text is the user's to read.
    """
    with Workers() as workers:
        try:
            return workers.prepare(variant)
        except WorkerFailed as error:
            raise Refused(str(error)) from error
