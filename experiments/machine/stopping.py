"""Ctrl-C and SIGTERM as a request to stop at the next safe point."""

import signal
import threading
from types import FrameType
from typing import Self


class StopRequest:
    """Inside this context, a first SIGINT or SIGTERM is noted; a second one acts at once.

    In a thread other than the main one no signal is noted: Python lets the main thread alone set
    handlers, and runs them there.

    Attributes:
        signal: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> Self:
        main = threading.current_thread() is threading.main_thread()
        noted = (signal.SIGINT, signal.SIGTERM) if main else ()
        self._before = {number: signal.signal(number, self._note) for number in noted}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """The shell's code for a process that ended by this signal."""
        return 128 + (self.signal or 0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
