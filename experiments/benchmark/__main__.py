"""`python -m experiments.benchmark`: the subcommand that the command line names."""

import signal
import sys
from typing import Annotated, Any

from experiments.benchmark.evaluate import EvaluateConfig, evaluate
from experiments.benchmark.peers import PeersConfig, peers
from experiments.benchmark.reading import ReadingConfig, reading
from experiments.benchmark.scaling import ScalingConfig, scaling
from experiments.benchmark.startup import StartupConfig, startup
from experiments.benchmark.step import StepConfig, step
from experiments.flags import command

COMMANDS: dict[type, Any] = {
    StepConfig: step,
    PeersConfig: peers,
    ScalingConfig: scaling,
    EvaluateConfig: evaluate,
    StartupConfig: startup,
    ReadingConfig: reading,
}
Flags = (
    Annotated[StepConfig, command.subcommand("step")]
    | Annotated[PeersConfig, command.subcommand("peers")]
    | Annotated[ScalingConfig, command.subcommand("scaling")]
    | Annotated[EvaluateConfig, command.subcommand("evaluate")]
    | Annotated[StartupConfig, command.subcommand("startup")]
    | Annotated[ReadingConfig, command.subcommand("reading")]
)


def benchmark(config: Any) -> None:
    """Run the subcommand that the type of `config` selects; SIGTERM ends its workers too."""
    # As an exception, so that every `with Workers()` ends its processes.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    COMMANDS[type(config)](config)


if __name__ == "__main__":
    command.main(Flags, benchmark)  # type: ignore[arg-type]
