"""One training process a run folder: a lock that the system takes back when its holder dies."""

import contextlib
import os
import socket
from pathlib import Path
from typing import IO


class RunLock:
    """Held from construction until `close`, or until the process ends in whatever way.

    Args:
        folder: of the run; it is there.

    Raises:
        ValueError: another process holds it, named in the text.
    """

    def __init__(self, folder: Path) -> None:
        self._file = (folder / ".lock").open("a+", encoding="utf-8")
        if not _locked(self._file):
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise ValueError(
                f"{folder} is in use by {holder}, which is training there. Wait for it or stop it, "
                "or give another --run."
            )
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def close(self) -> None:
        """Let go."""
        self._file.close()


def _locked(file: IO[str]) -> bool:
    """Whether the lock was free; a file system without locks has none to take."""
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
        pass
    return True
