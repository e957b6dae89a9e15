"""Checkpoints that a full disk delays, and does not stop a run for."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from experiments.journal import Journal
from jaxvae.processes import Stopped, together

if TYPE_CHECKING:
    from jaxvae.checkpoints import Checkpoints  # orbax, which loads while a step compiles


class Saving:
    """Saves a run's steps while it goes on, and says once when that fails.

    Args:
        checkpoints, journal: of the run.
        say: shows a line.
    """

    def __init__(
        self, checkpoints: "Checkpoints", journal: Journal, say: Callable[[str], None]
    ) -> None:
        self._checkpoints, self._journal, self._say = checkpoints, journal, say
        self._warned = False

    def save(
        self, step: int, items: dict[str, Any], about: dict[str, Any], metric: float | None
    ) -> None:
        """As `Checkpoints.save`, after all rows: a checkpoint vouches for those before it."""
        problem: OSError | None = None
        if self._journal.flush():
            problem = self._checkpoints.save(step, items, about, metric)
        else:
            problem = self._journal.problem
        if problem is not None and not self._warned:
            self._say(f"warning: {problem} Training goes on and tries again at every evaluation.")
        self._warned = problem is not None

    def finish(self, step: int) -> bool:
        """Wait for the last save; whether it and all rows are on disk."""
        try:
            with together():
                if not self._journal.flush():
                    raise self._journal.problem or OSError("a row could not be written.")
            self._checkpoints.wait()
        except (OSError, Stopped) as error:
            self._say(
                f"error: {error} The last one is of step {self._checkpoints.latest_step() or 0:,}, "
                f"not {step:,}. Make room; the same command goes on from there."
            )
            return False
        return True
