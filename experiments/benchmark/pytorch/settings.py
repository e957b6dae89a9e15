"""Settings of PyTorch, and the short race that selects the ones to measure."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

RACE_SECONDS = 0.5
RACE_LAPS = 2
WARM_UP_CALLS = 3


class Choice(NamedTuple):
    """One setting of PyTorch.

    Attributes:
        threads: threads of PyTorch's operators on the CPU; 0 on other devices.
        softplus: likelihood as x l - softplus(l), not binary_cross_entropy_with_logits.
        channels_last: whether images and convolutions have the channels-last memory layout.
        rows: latents decoded at once, in evaluation; 0 in training.
        compiled: whether torch.compile is used.
        graphs: whether compiled code is launched as CUDA graphs.
    """

    threads: int
    softplus: bool = False
    channels_last: bool = False
    rows: int = 0
    compiled: bool = False
    graphs: bool = False

    def __str__(self) -> str:
        words = [f"{self.threads} thread{'s' * (self.threads > 1)}"] if self.threads else []
        words += ["softplus"] * self.softplus + ["channels last"] * self.channels_last
        words += [f"chunks of {self.rows:,}"] if self.rows else []
        words += ["compiled"] * self.compiled + ["CUDA graphs"] * self.graphs
        return ", ".join(words) or "as it is"

    def apply(self) -> None:
        """Set PyTorch's number of threads in this process."""
        if self.threads:
            torch.set_num_threads(self.threads)

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile a function for this setting's threads or CUDA graphs, if `compiled` is set."""
        if not self.compiled:
            return function
        options: Any = (
            {"cpp.threads": self.threads} if self.threads else {"triton.cudagraphs": self.graphs}
        )
        return torch.compile(function, options=options)


class Race(NamedTuple):
    """Result of a race.

    Attributes:
        finalists: the fastest setting, and the fastest with another number of threads, each with
            the object made for it and its lap, which applies the setting first. The best number of
            threads may change from minute to minute while other programs run.
        about: description of the race, in JSON types.
    """

    finalists: dict[Choice, tuple[Any, "Lap"]]
    about: dict[str, Any]


Lap = Callable[[int], None]
"""Function that makes a number of calls, and waits for the last."""


def available_device(accelerator: str) -> torch.device:
    """Return the GPU if there is one and `accelerator` allows it, else the CPU."""
    use_gpu = accelerator in ("auto", "gpu") and torch.cuda.is_available()
    return torch.device("cuda" if use_gpu else "cpu")


def wait_for(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def thread_counts(device: torch.device) -> list[int]:
    """Numbers of threads to try: 1, 2, 4, ... and all cores on a CPU, only 0 elsewhere."""
    if device.type != "cpu":
        return [0]
    cores = torch.get_num_threads()
    return sorted({2**i for i in range(cores.bit_length()) if 2**i <= cores} | {cores})


def fastest(
    choices: list[Choice], make: Callable[[Choice], tuple[Any, Lap]], *, compiles: bool = False
) -> Race:
    """Find the two fastest of some settings.

    Compiling takes long: torch.compile is tried only on the setting that wins without it, at every
    number of threads. A setting that raises (for lack of a compiler, say) leaves the race, and its
    error is recorded.

    Args:
        choices: settings to try.
        make: function of a setting that returns an object and its lap.
        compiles: whether to try torch.compile.

    Raises:
        RuntimeError: every setting raised.
    """
    made: dict[Choice, tuple[Any, Lap]] = {}
    times: dict[Choice, float] = {}
    failed: dict[str, str] = {}
    for entrants in _heats(choices, times, compiles):
        for choice in entrants:
            try:
                choice.apply()
                made[choice] = make(choice)
                made[choice][1](WARM_UP_CALLS)
            except Exception as error:
                made.pop(choice, None)
                failed[str(choice)] = (
                    f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                )
        for _ in range(RACE_LAPS):
            for choice in [choice for choice in entrants if choice in made]:
                choice.apply()
                seconds = _seconds_per_call(made[choice][1])
                times[choice] = min(seconds, times.get(choice, seconds))
    if not times:
        raise RuntimeError(f"no setting of PyTorch works: {failed}")
    order = sorted(times, key=lambda choice: times[choice])
    others = [choice for choice in order if choice.threads != order[0].threads]
    finalists = {choice: _applied(choice, *made[choice]) for choice in [order[0], *others[:1]]}
    about = {
        "setting": str(order[0]),
        "race_seconds_per_step": {str(choice): times[choice] for choice in order},
        "failed_settings": failed,
        "versions": {"torch": torch.__version__},
    }
    return Race(finalists, about)


def _applied(choice: Choice, made: Any, lap: Lap) -> tuple[Any, Lap]:
    """Return `made`, and its lap with the setting applied before every call."""

    def run(calls: int) -> None:
        choice.apply()
        lap(calls)

    return made, run


def _heats(
    choices: list[Choice], times: dict[Choice, float], compiles: bool
) -> Iterator[list[Choice]]:
    yield choices
    if compiles and times:
        best = min(times, key=lambda choice: times[choice])
        threads = sorted({choice.threads for choice in choices})
        yield [
            best._replace(threads=count, compiled=True, graphs=graphs)
            for count in threads
            for graphs in ((False,) if count else (False, True))
        ]


def _seconds_per_call(lap: Lap) -> float:
    calls, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < RACE_SECONDS:
        lap(1)
        calls += 1
    return taken / calls
