"""Flags for running as one of several processes."""

import os
import re
from dataclasses import dataclass

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
"""Environment variable for the log lines of jax's C++: 0 shows all, 4 hides even abort messages."""


@dataclass(frozen=True)
class Processes:
    """Flags for running as one of several processes."""

    distributed: bool = False
    """Run as one of several processes: start the same command once per
    process, each with its own devices. On Slurm, Open MPI, Kubernetes and
    TPU pods the processes find each other; elsewhere also give
    --coordinator, --num-processes and --process-id."""
    coordinator: str | None = None
    """HOST:PORT of process 0: a free port on its host that all processes can
    reach."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0. Only process 0 writes the run's
    folder."""
    start_timeout_seconds: int = 300
    """Longest wait for the other processes at the start."""
    lost_timeout_seconds: int = 15
    """Longest silence of another process; then all processes exit within a
    second."""

    def check(self) -> None:
        """Check that the flags are complete and consistent.

        Raises:
            ValueError: they are not; one line that names the flag.
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
                f"--distributed has {given} but no {absent}. Give all three, or none of them on a "
                "cluster that jax recognizes."
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
    def may_follow(self) -> bool:
        """True if another process may be the first, which alone shows progress."""
        return self.distributed and self.process_id != 0

    @property
    def name(self) -> str:
        """Name of this process in error messages."""
        known = "" if self.process_id is None else f" {self.process_id} of {self.num_processes}"
        return f"process{known}"


ALONE = Processes()


def silence_aborts() -> None:
    """Keep jax's C++ from writing a page in front of our line when it aborts.

    Call it before jax is imported. It has no effect if the user has asked for all lines.
    """
    # An inherited "1" may come from jax itself, in the program that started this one.
    if os.environ.get(LOG_LEVEL) != "0":
        os.environ[LOG_LEVEL] = "4"
