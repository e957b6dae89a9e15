"""Definition of a case of bad input, and of the material that it is made from."""

import shutil
from pathlib import Path
from typing import NamedTuple

COMMANDS = ("train", "evaluate", "sample", "encode", "replay")
RUN = "run"
"""Name of the trained run in the folder of a case that has one."""


class Case(NamedTuple):
    """A command line that must be rejected, and the words that its error must name.

    Attributes:
        command: a name in `COMMANDS`.
        arguments: arguments of the command line; the files that they name are in the case's folder.
        names: words for what is wrong; the error message has at least one of them.
        environment: environment variables of the process.
    """

    command: str
    arguments: tuple[str, ...]
    names: tuple[str, ...]
    environment: dict[str, str] = {}  # noqa: RUF012


class Fixture(NamedTuple):
    """Material that a case is made from.

    Attributes:
        folder: folder of the case, empty; the current directory of its command.
        trained: folder of a trained run.
        flags: flags of the trained run, except its folder.
        step: last step of the trained run.
        data: --dataset of the trained run, with 8 x 8 pictures.
        absent: accelerators that this machine does not have.
        separate: whether the command runs in a separate process, with its own environment.
    """

    folder: Path
    trained: Path
    flags: tuple[str, ...]
    step: int
    data: str
    absent: tuple[str, ...]
    separate: bool

    def lay_run(self) -> Path:
        """Copy the trained run into the case's folder; return the copy."""
        return Path(shutil.copytree(self.trained, self.folder / RUN))
