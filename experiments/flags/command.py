"""What every command does: read flags, run, and end with one line instead of a traceback."""

import contextlib
import inspect
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from experiments.flags import own_code
from experiments.flags.packages import install_line
from experiments.flags.terminal import one_line

USER_ERROR = 2
WITH_STATEMENT = 2
"""Frames around an error that leaves a `with`: of the context manager and of the statement."""
SHOW_TRACEBACK = "--traceback"
TRACEBACK_HELP = "show where an error comes from, beside the line that says what to do."

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
def refusing(model: str = "") -> Iterator[None]:
    """Around what depends on flags, files and data: their errors are the user's to mend.

    So is any error that the user's own code raises; its line names file and line there.

    Args:
        model: --model, whose package is the user's own.
    """
    try:
        yield
    except Refused:
        raise
    except ModuleNotFoundError as error:
        raise Refused(install_line(error)) from error
    except Exception as error:
        line = own_code.described(error, model, around=WITH_STATEMENT)
        if line is None and not isinstance(error, (ValueError, TypeError, OSError)):
            raise
        raise Refused(one_line(line or _in_words(error))) from error


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


def main(
    flags: type[Flags],
    command: Callable[[Flags], int | None],
    default: Callable[[Sequence[str]], Flags | None] = lambda arguments: None,
) -> None:
    """Parse the command line into `flags`, run `command` on it, and exit.

    Exit codes: 0 done, 1 the run went wrong, 2 the user can mend it, 130 and 143 for a run
    stopped by Ctrl-C or SIGTERM.

    Args:
        flags: a dataclass of flags.
        command: of the flags.
        default: what the flags are that the command line does not give, from its arguments.
    """
    # What orbax logs comes as an error, too, and so do the tasks and the loop that it leaves behind
    # of a failed save.
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be no text of its encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.unraisablehook = _unless_of_a_closed_loop
    # Of every command, and of no run: config.json has the fields of `flags`.
    arguments = [argument for argument in sys.argv[1:] if argument != SHOW_TRACEBACK]
    about = inspect.getdoc(flags) if isinstance(flags, type) else ""  # not of a union's own type
    try:
        with refusing():
            before = default(arguments)
        parsed = tyro.cli(
            flags,
            prog=f"python -m experiments.{command.__name__}",
            description=f"{about}\n\n{SHOW_TRACEBACK}: {TRACEBACK_HELP}",
            args=arguments,
            default=tyro.MISSING_NONPROP if before is None else before,
            config=(tyro.conf.OmitArgPrefixes,),
        )
        with _describing(getattr(parsed, "model", None) or ""):
            code = command(parsed) or 0
    except Refused as refusal:
        if SHOW_TRACEBACK in sys.argv:
            traceback.print_exc()
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


@contextlib.contextmanager
def _describing(model: str) -> Iterator[None]:
    """Around a whole command: an error of the user's own code is the user's to mend anywhere."""
    try:
        yield
    except (Refused, BrokenPipeError, FloatingPointError):  # the last one is of a run, not of code
        raise
    except Exception as error:
        line = own_code.described(error, model, around=WITH_STATEMENT)
        if line is None:
            raise
        raise Refused(line) from error
