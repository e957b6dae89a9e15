"""One training process a run folder: a lock that the system takes back when its holder dies.

What it leaves in the file tells the next one how it ended.
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
"""Of the file that are read: a name and some last words."""


class RunLock:
    """Held from construction until `close`, or until the process ends in whatever way.

    Of several processes process 0 alone takes it.

    Args:
        folder: of the run; made if it is not there.

    Attributes:
        cut_short: a sentence that says how the holder before ended; empty where it closed its
            lock without an error, and where there was none.

    Raises:
        ValueError: another process holds it, named in the text.
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
                "Wait for it or stop it, or give another --run."
            )
        if holder:
            end = f"It said: {last_words[-1]}" if last_words else \
                "It was killed, or its machine went down."  # fmt: skip
            self.cut_short = f"The last training here, {holder}, did not come to its end. {end}"
        if holder and held is None:
            self.cut_short = f"{holder} may be training here too: this file system has no locks."
        self._file.truncate(0)
        self._write(f"process {os.getpid()} on {socket.gethostname()}")
        leave_last_words_in(path)

    def close(self, error: BaseException | None = None) -> None:
        """Let go.

        Args:
            error: what ends the holder before its work is done.
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
    """Whether the lock was free and is taken now; None: the file system has no locks."""
    if os.name == "nt":
        import msvcrt

        with contextlib.suppress(OSError):
            file.seek(2**20)  # a byte far behind the text, which others may read
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
