"""What every command does: read flags, run, and end with one line instead of a traceback."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

from experiments.packages import install_line

USER_ERROR = 2

try:
    import tyro
    from tyro.conf import Positional, subcommand
except ModuleNotFoundError as error:  # no command can say this later
    print(f"error: {install_line(error)}", file=sys.stderr)
    sys.exit(USER_ERROR)

__all__ = ["Positional", "Refused", "main", "refusing", "subcommand"]

Flags = TypeVar("Flags")


class Refused(Exception):
    """Something the user can mend; its text is all that is shown."""


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Around what depends on flags, files and data: their errors are the user's to mend."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise Refused(install_line(error)) from error
    except (ValueError, TypeError, OSError) as error:
        raise Refused(" ".join(_in_words(error).split())) from error


def _in_words(error: Exception) -> str:
    """The text of an error; of one that the system has with a file, in a user's words."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return (
            f"{error.filename} must be a file or folder that can be used so; the system gave: "
            f"{error.strerror}. Mend that, or give another."
        )
    return str(error)


def _unless_of_a_closed_loop(unraisable: "sys.UnraisableHookArgs") -> None:
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def main(flags: type[Flags], command: Callable[[Flags], int | None]) -> None:
    """Parse the command line into `flags`, run `command` on it, and exit.

    Exit codes: 0 done, 1 the run went wrong, 2 the user can mend it, 130 and 143 for a run
    stopped by Ctrl-C or SIGTERM.
    """
    # What orbax logs comes as an error, too, and so do the tasks and the loop that it leaves behind
    # of a failed save.
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    sys.unraisablehook = _unless_of_a_closed_loop
    parsed = tyro.cli(
        flags,
        prog=f"python -m experiments.{command.__name__}",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    try:
        code = command(parsed) or 0
    except Refused as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        code = USER_ERROR
    except FloatingPointError as error:  # jax looks for NaN where JAX_DEBUG_NANS is set
        print(
            f"error: {str(error).rstrip('.')}. A result is NaN and JAX_DEBUG_NANS is set. Unset it "
            "to skip such steps, or lower --learning-rate; checkpoints are kept.",
            file=sys.stderr,
        )
        code = 1
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)
