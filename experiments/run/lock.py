"""Lock of a run's folder, for one training process, which the system frees when its holder dies.

The lock file also holds the last words of a training that failed, for the next one to show.
"""

import contextlib
import os
import socket
from pathlib import Path
from typing import IO

from experiments.flags.terminal import one_line
from experiments.machine.processes import leave_last_words_in
from jaxvae.checkpoints.hosts import is_first

MOST_CHARACTERS = 10_000
"""Most characters read from the lock file: a name and some last words."""


class RunLock:
    """Lock held from construction until `close`, or until the process ends in any way.

    Among several processes, only process 0 takes the lock.

    Args:
        folder: folder of the run; created if it is missing.

    Attributes:
        cut_short: a sentence that says how the previous holder ended; empty if it closed its lock
            without an error, or if there was none.

    Raises:
        ValueError: another process holds the lock; the text names it.
    """

    def __init__(self, folder: Path) -> None:
        self.cut_short = ""
        if not is_first():
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ".lock"
        self._file = path.open("a+", encoding="utf-8", errors="replace")
        held = _locked(self._file)
        self._file.seek(0)
        holder, *last_words = map(one_line, self._file.read(MOST_CHARACTERS).splitlines() or [""])
        if held is False:
            self._file.close()
            raise ValueError(
                f"{folder} is in use by {holder or 'another process'}, which is training there. "
                "Wait for it or stop it, or choose another --run."
            )
        if holder:
            end = f"It ended with: {last_words[-1]}" if last_words else \
                "It was killed, or its machine went down."  # fmt: skip
            self.cut_short = (
                f"The previous training in this folder, {holder}, did not finish. {end}"
            )
        if holder and held is None:
            self.cut_short = (
                f"{holder} may be training in this folder too: the file system has no locks."
            )
        self._file.truncate(0)
        self._write(f"process {os.getpid()} on {socket.gethostname()}")
        leave_last_words_in(path)

    def close(self, error: BaseException | None = None) -> None:
        """Release the lock.

        Args:
            error: error that ends the holder before its work is done, to leave in the file; None:
                the work is done.
        """
        if not is_first():
            return
        with contextlib.suppress(OSError):
            if error is None:
                self._file.truncate(0)
                leave_last_words_in(None)
            else:
                self._write(" ".join(str(error).split()) or type(error).__name__)
        with contextlib.suppress(OSError):
            self._file.close()

    def _write(self, line: str) -> None:
        self._file.write(f"{line}\n")
        self._file.flush()


def _locked(file: IO[str]) -> bool | None:
    """Try to take the lock: True if it was free, None if the file system has no locks."""
    if os.name == "nt":
        import msvcrt

        with contextlib.suppress(OSError):
            file.seek(2**20)  # locks a byte far behind the text, so that others can read the text
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            return True
        return False
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
