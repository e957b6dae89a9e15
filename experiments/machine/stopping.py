"""Ctrl-C and SIGTERM as a request to stop at the next safe point."""

import signal
import threading
from types import FrameType
from typing import Self


class StopRequest:
    """Context manager that notes the first SIGINT or SIGTERM; a second one interrupts at once.

    Outside the main thread it notes no signal: in Python only the main thread can set handlers.

    Attributes:
        signal: the signal that was received, or None.
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
        """Exit code of a process that was ended by this signal, as shells report it."""
        return 128 + (self.signal or 0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
