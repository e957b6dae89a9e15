"""Workers: processes that hold a prepared variant each and sleep until a request arrives.

A request is one line of JSON on a worker's standard input, {"variant", "call", "arguments"}; the
answer is one line on its standard output. Everything else that the worker prints goes to a file.
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

from experiments.flags.command import UserError
from experiments.record.progress import announced

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # compile times are those of a first start
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes share one GPU
}
SECONDS_TO_END = 2.0
"""Time that workers have to end before they are killed."""
ABSENT = {"torch": "PyTorch is not installed. python -m pip install -e '.[peers]' adds it."}
"""Optional package -> message if it is missing."""


class Variant(NamedTuple):
    """A variant of a comparison, for a worker to prepare.

    Attributes:
        name: label in the tables.
        function: "module:function", which returns an object with `about` and methods.
        arguments: arguments of the function, in JSON types.
        process: name of the process; variants with the same name share it, "" gives the variant
            a separate one.
        peers: additional arguments of each process, for a variant that runs in several.
    """

    name: str
    function: str
    arguments: dict[str, Any]
    process: str = ""
    peers: tuple[dict[str, Any], ...] = ({},)


class WorkerFailed(Exception):
    """Raised if a variant could not be prepared, raised an error or died; the text is one line."""


class Worker:
    """A process that holds variants.

    Args:
        name: name of the worker in messages.
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
            start_new_session=True,  # Ctrl-C reaches only the parent, which then ends the workers
        )

    def send(self, variant: str, call: str, **arguments: Any) -> None:
        """Request a call of a variant's method; `receive` returns its result."""
        request = {"variant": variant, "call": call, "arguments": arguments}
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `receive` reports how the worker died
            print(json.dumps(request), file=self._process.stdin, flush=True)

    def receive(self) -> Any:
        """Wait for the answer to the last request.

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
        """File descriptor of the worker's answers, for `select`."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def let_go(self) -> None:
        """Close the process's input, at which it ends."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def close(self, deadline: float) -> None:
        """Wait for the process to end; kill it if `time.monotonic()` reaches `deadline` first."""
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
    """Context manager that holds the workers of one comparison: a process per variant, or fewer.

    Args:
        one_process: whether one process holds all variants, for devices that serve only one.
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
        deadline = time.monotonic() + SECONDS_TO_END  # shared, so that an interrupt ends quickly
        for worker in workers:
            worker.close(deadline)

    def prepare(self, variant: Variant) -> dict[str, Any]:
        """Import, compile and warm up a variant; return its `about`.

        Raises:
            WorkerFailed: the variant could not be prepared.
        """
        process = "" if self._one_process else variant.process or variant.name
        if process not in self._processes:
            self._processes[process] = [Worker(variant.name) for _ in variant.peers]
        self._held_by[variant.name] = process
        own = [{"arguments": variant.arguments | peer} for peer in variant.peers]
        return self._ask(variant.name, "prepare", {"function": variant.function}, own)

    def ask(self, variant: str, call: str, **arguments: Any) -> Any:
        """Call a method of a prepared variant, and wait for its result.

        All processes of a variant receive the request at once; the answer of the first one counts.

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
            # Read whichever answers first: if one process fails, the others wait for it forever.
            for worker in ready(waiting):
                answers[worker] = worker.receive()
        return answers[group[0]]

    def _group(self, variant: str) -> list[Worker]:
        return self._processes[self._held_by[variant]]


def ready(workers: list[Worker]) -> list[Worker]:
    """Wait until a worker has an answer; return the workers that have one."""
    return workers if len(workers) == 1 else select.select(workers, [], [])[0]


def serve() -> None:
    """Answer requests until the input ends; the main function of a worker."""
    # Answers keep the original standard output; anything else printed goes to standard error.
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
    """Prepare a variant in a process that then ends; return its `about`.

    Raises:
        UserError: the variant could not be prepared; the text is for the user.
    """
    with announced("Waiting for a worker process"), Workers() as workers:
        try:
            return workers.prepare(variant)
        except WorkerFailed as error:
            raise UserError(str(error)) from error
