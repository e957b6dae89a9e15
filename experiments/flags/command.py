"""Frame of every command: parse the flags, run, and print one line instead of a traceback."""

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
"""Frames around an error that leaves a `with`: one of the context manager, one of the `with`."""
SHOW_TRACEBACK = "--traceback"
TRACEBACK_HELP = "show where an error comes from, above the line that says what to do."

try:
    import tyro
    from tyro.conf import Positional, subcommand
except ModuleNotFoundError as error:  # before `main` could report it: it needs tyro itself
    print(f"error: {install_line(error)}", file=sys.stderr)
    sys.exit(USER_ERROR)

__all__ = ["Positional", "UserError", "as_user_errors", "main", "subcommand"]

Flags = TypeVar("Flags")


class UserError(Exception):
    """An error that the user can fix; only its text is shown."""


@contextlib.contextmanager
def as_user_errors(model: str = "") -> Iterator[None]:
    """Turn errors in flags, files and data, which the user can fix, into `UserError`.

    Any error that the user's own code raises becomes `UserError` too, with its file and line.

    Args:
        model: value of --model, whose package is the user's own code.
    """
    try:
        yield
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(install_line(error)) from error
    except Exception as error:
        line = own_code.described(error, model, around=WITH_STATEMENT)
        if line is None and not isinstance(error, (ValueError, TypeError, OSError)):
            raise
        raise UserError(one_line(line or _in_words(error))) from error


def _in_words(error: Exception) -> str:
    """Text of an error; errors of the system about a file are put into plain words."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}. Fix it, or choose another path."
    return str(error)


def _unless_of_a_closed_loop(unraisable: "sys.UnraisableHookArgs") -> None:
    """Hide errors of asyncio tasks that orbax leaves behind when a save fails."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def main(
    flags: type[Flags],
    command: Callable[[Flags], int | None],
    default: Callable[[Sequence[str]], Flags | None] = lambda arguments: None,
) -> None:
    """Parse the command line into `flags`, run `command` on it, and exit.

    Exit codes: 0 success, 1 the run failed, 2 an error that the user can fix, 130 and 143 stopped
    by Ctrl-C or SIGTERM, 141 the reader of standard output is gone.

    Args:
        flags: a dataclass of flags.
        command: function of the flags; returns the exit code, or None for 0.
        default: function of the arguments that returns the flags to use where the command line
            gives none; None: those of the dataclass.
    """
    # orbax raises what it logs here as an error too; a failed save also leaves asyncio tasks and an
    # event loop behind, which would log again.
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may not fit the output's encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.unraisablehook = _unless_of_a_closed_loop
    # Removed by hand and no field of `flags`, as config.json would then save it with the run.
    arguments = [argument for argument in sys.argv[1:] if argument != SHOW_TRACEBACK]
    about = inspect.getdoc(flags) if isinstance(flags, type) else ""  # a union has none of its own
    try:
        with as_user_errors():
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
    except UserError as error:
        if SHOW_TRACEBACK in sys.argv:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        code = USER_ERROR
    except FloatingPointError as error:  # raised by jax at a NaN if JAX_DEBUG_NANS is set
        print(
            f"error: {str(error).rstrip('.')}. A result is NaN and JAX_DEBUG_NANS is set. Unset it "
            "to skip such steps, or lower --learning-rate; all checkpoints are still there.",
            file=sys.stderr,
        )
        code = 1
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # Python flushes standard output once more at exit, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


@contextlib.contextmanager
def _describing(model: str) -> Iterator[None]:
    """Turn an error that the user's own code raises anywhere in a command into `UserError`."""
    try:
        yield
    except (UserError, BrokenPipeError, FloatingPointError):  # a NaN is no error in the user's code
        raise
    except Exception as error:
        line = own_code.described(error, model, around=WITH_STATEMENT)
        if line is None:
            raise
        raise UserError(line) from error
