"""Saving of checkpoints; a full disk delays them, and the run continues."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from experiments.flags.command import as_user_errors
from experiments.record.recorder import Recorder
from jaxvae.checkpoints.hosts import raise_on_all_processes
from jaxvae.checkpoints.manifest import remedy
from jaxvae.training.state import TrainState, to_items

if TYPE_CHECKING:
    from jaxvae.checkpoints import (
        Checkpoints,  # orbax, which loads while a step compiles
    )


class Saving:
    """Saves checkpoints while a run trains, and warns once when saving starts to fail.

    Args:
        checkpoints, recorder: the checkpoints and the recorder of the run.
    """

    def __init__(self, checkpoints: "Checkpoints", recorder: Recorder) -> None:
        self._checkpoints, self._recorder = checkpoints, recorder
        self._warned = False

    def save(self, state: TrainState, about: dict[str, Any], metric: float | None) -> bool:
        """Save a checkpoint with `Checkpoints.save`, after all rows before it are written.

        Args:
            state: training state, on the devices.
            about: description with the "step", as for `Checkpoints.save`.
            metric: validation ELBO, as for `Checkpoints.save`.

        Returns:
            False, without saving, if the parameters are not finite; else True.

        Raises:
            UserError: on every process, if the first checkpoint cannot be read back.
        """
        items = jax.device_get(to_items(state))
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(items["params"])):
            return False
        with as_user_errors(), raise_on_all_processes():
            problem = (
                self._checkpoints.save(about["step"], items, about, metric)
                if self._recorder.flush()
                else self._recorder.problem
            )
        if problem is not None and not self._warned:
            self._recorder.say(
                f"warning: {problem} Training continues and tries again at every evaluation."
            )
        self._warned = problem is not None
        return True

    def finish(self, step: int) -> bool:
        """Wait for the last save; return True if it and all rows are on disk."""
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
                    problems[0], "rerun the same command to resume from there."
                )
            self._recorder.say(line)
        return not problems

    def _write_rows(self) -> None:
        with raise_on_all_processes():
            if not self._recorder.flush():
                raise self._recorder.problem or OSError("a row could not be written.")


def advice(error: Exception, then: str) -> str:
    """Sentence with the remedy for an error in writing files, if one is known, and then `then`."""
    return f"{remedy(error)}; {then}" if remedy(error) else f"{then[0].upper()}{then[1:]}"
