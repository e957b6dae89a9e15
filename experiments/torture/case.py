"""What a case of bad input is, and what it is made from."""

import shutil
from pathlib import Path
from typing import NamedTuple

COMMANDS = ("train", "evaluate", "sample", "encode", "replay")
RUN = "run"
"""Name of the trained run in the folder of a case, where there is one."""


class Case(NamedTuple):
    """A command line that must be refused, and why.

    Attributes:
        command: a name in `COMMANDS`.
        arguments: of the command line, in a folder where the files that they name lie.
        names: the refusal has one of these words at least: what is wrong.
        environment: variables of the process.
    """

    command: str
    arguments: tuple[str, ...]
    names: tuple[str, ...]
    environment: dict[str, str] = {}  # noqa: RUF012


class Fixture(NamedTuple):
    """What a case is made from.

    Attributes:
        folder: of the case, empty, the current one of its command.
        trained: a trained run.
        flags: that it was trained with, but for its folder.
        step: its last one.
        data: a data set of its own, 8 x 8 pictures.
        absent: accelerators that this machine has not.
        separate: whether the command has a process of its own, and an environment.
    """

    folder: Path
    trained: Path
    flags: tuple[str, ...]
    step: int
    data: str
    absent: tuple[str, ...]
    separate: bool

    def lay_run(self) -> Path:
        """A copy of the trained run in the case's folder."""
        return Path(shutil.copytree(self.trained, self.folder / RUN))
