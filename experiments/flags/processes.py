"""Flags that say which of several processes this one is."""

import os
import re
from dataclasses import dataclass

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
"""Which of its own lines jax's C++ writes: 0 all, 4 not even what it aborts with."""


@dataclass(frozen=True)
class Processes:
    """Which of several processes this one is."""

    distributed: bool = False
    """Run as one of several processes, each started with the same command on its own devices. On
    Slurm, Open MPI, Kubernetes and TPU pods they find each other; elsewhere add the next three."""
    coordinator: str | None = None
    """HOST:PORT of process 0, a free port there that all can reach."""
    num_processes: int | None = None
    """How many processes."""
    process_id: int | None = None
    """Which one this is, from 0. Process 0 alone writes the run's folder."""
    start_timeout_seconds: int = 300
    """How long to wait for the others at the start."""
    lost_timeout_seconds: int = 15
    """How long another process may be silent before all end, at most a second later."""

    def check(self) -> None:
        """Refuse flags that are incomplete or contradict each other.

        Raises:
            ValueError: one line, naming the flag.
        """
        address = {
            "--coordinator": self.coordinator,
            "--num-processes": self.num_processes,
            "--process-id": self.process_id,
        }
        given = " and ".join(name for name, value in address.items() if value is not None)
        absent = " and ".join(name for name, value in address.items() if value is None)
        if given and not self.distributed:
            raise ValueError(f"{given} goes with --distributed. Add it.")
        if given and absent:
            raise ValueError(
                f"--distributed has {given} but no {absent}. Give all three, or none on a cluster "
                "that tells them."
            )
        for name in ("num_processes", "start_timeout_seconds", "lost_timeout_seconds"):
            value = getattr(self, name)
            limit = "at least 1" if value is None or value < 1 else "below 2,147,483,648"
            if value is not None and not 1 <= value < 2**31:
                raise ValueError(f"--{name.replace('_', '-')} must be {limit}, got {value}.")
        if self.coordinator is None or self.num_processes is None or self.process_id is None:
            return
        _, _, port = self.coordinator.rpartition(":")
        if not re.fullmatch(r"\S+:\d{1,5}", self.coordinator) or not 0 < int(port) < 2**16:
            raise ValueError(
                f"--coordinator must be HOST:PORT of process 0, got {self.coordinator}."
            )
        if not 0 <= self.process_id < self.num_processes:
            raise ValueError(
                f"--process-id must be from 0 to --num-processes - 1 = {self.num_processes - 1}, "
                f"got {self.process_id}."
            )

    @property
    def name(self) -> str:
        """What an error calls this process."""
        known = "" if self.process_id is None else f" {self.process_id} of {self.num_processes}"
        return f"process{known}"


ALONE = Processes()


def silence_aborts() -> None:
    """Keep jax's C++ from writing a page in front of our line where it aborts.

    Only of use before jax is imported, and left out where the user has asked for all lines.
    """
    if os.environ.get(LOG_LEVEL) != "0":  # jax itself sets "1" in a program that starts this one
        os.environ[LOG_LEVEL] = "4"
