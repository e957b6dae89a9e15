"""Checkpoints that a full disk delays, and does not stop a run for."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from experiments.flags.command import refusing
from experiments.record.recorder import Recorder
from jaxvae.checkpoints.hosts import raise_on_all_processes
from jaxvae.checkpoints.manifest import remedy
from jaxvae.training.state import TrainState, to_items

if TYPE_CHECKING:
    from jaxvae.checkpoints import (
        Checkpoints,  # orbax, which loads while a step compiles
    )


class Saving:
    """Saves a run's steps while it goes on, and says once when that fails.

    Args:
        checkpoints, recorder: of the run.
    """

    def __init__(self, checkpoints: "Checkpoints", recorder: Recorder) -> None:
        self._checkpoints, self._recorder = checkpoints, recorder
        self._warned = False

    def save(self, state: TrainState, about: dict[str, Any], metric: float | None) -> bool:
        """As `Checkpoints.save`, after all rows: a checkpoint vouches for those before it.

        Args:
            state: on the devices.
            about: with the "step"; and metric: as `Checkpoints.save` takes them.

        Returns:
            False, and nothing is saved, where an update has made the parameters infinite.

        Raises:
            Refused: on every process, where the first checkpoint cannot be read back.
        """
        items = jax.device_get(to_items(state))
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(items["params"])):
            return False
        with refusing(), raise_on_all_processes():
            problem = (
                self._checkpoints.save(about["step"], items, about, metric)
                if self._recorder.flush()
                else self._recorder.problem
            )
        if problem is not None and not self._warned:
            self._recorder.say(
                f"warning: {problem} Training goes on and tries again at every evaluation."
            )
        self._warned = problem is not None
        return True

    def finish(self, step: int) -> bool:
        """Wait for the last save; whether it and all rows are on disk."""
        problems: list[Exception] = []
        for done in (self._checkpoints.wait, self._write_rows):
            try:
                done()
            except (OSError, ValueError) as error:
                problems.append(error)
        if problems:
            line = f"error: {problems[0]}"
            last = self._checkpoints.latest_step() or 0
            if last != step:
                line += f" The last one is of step {last:,}, not {step:,}. " + advice(
                    problems[0], "the same command goes on from there."
                )
            self._recorder.say(line)
        return not problems

    def _write_rows(self) -> None:
        with raise_on_all_processes():
            if not self._recorder.flush():
                raise self._recorder.problem or OSError("a row could not be written.")


def advice(error: Exception, then: str) -> str:
    """A sentence that says what to do about an error in writing files, and what comes then."""
    return f"{remedy(error)}; {then}" if remedy(error) else f"{then[0].upper()}{then[1:]}"
