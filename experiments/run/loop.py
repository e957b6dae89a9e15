"""The training loop: dispatch steps, read and record their metrics, evaluate, save."""

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from experiments.flags.config import TrainConfig
from experiments.machine.stopping import StopRequest
from experiments.record.progress import announced, counted
from experiments.run.advice import Steps, not_finite
from experiments.run.build import Built, build
from experiments.run.dispatch import Chunk, Dispatcher, Unread
from experiments.run.saving import Saving
from experiments.run.training_folder import TrainingFolder
from experiments.run.validation import make_validation
from jaxvae.checkpoints.hosts import is_first
from jaxvae.preprocessing.statistics import spread

FAILED = 1
"""Exit code of a run whose numbers are not finite."""
LOST = 1
"""Exit code of a run whose last steps could not be saved."""


@contextlib.contextmanager
def training(
    config: TrainConfig, devices: list[jax.Device], started: float | None = None
) -> Iterator["Loop"]:
    """Build a run and open its folder, resuming from its newest checkpoint if there is one.

    With several processes, all call this and then the same methods of the loop.

    Args:
        config: the flags.
        devices: devices to run on.
        started: `time.perf_counter()` at the start of the command; None: now.

    Raises:
        ValueError: the folder holds a run with other flags, or the data do not suit the flags.
    """
    started = time.perf_counter() if started is None else started
    quiet = config.quiet or not is_first()
    with announced(f"Reading {config.dataset}", quiet=quiet):
        built = build(config, devices)
    with announced("Preparing the training step", quiet=quiet):
        dispatcher = Dispatcher(built)  # compiles in the background while the folder is opened
    with contextlib.ExitStack() as opened:
        with announced("Compiling, and opening the run's folder", quiet=quiet):
            folder = opened.enter_context(TrainingFolder(built))
            loop = Loop(built, dispatcher, folder, started)
        yield loop


class Loop:
    """A training run: its fixed parts, and the values that change from step to step.

    Attributes:
        built: parts that depend only on the flags and data.
        folder: folder of the run.
        batches: the order of the data.
        recorder: of metrics and messages.
        state: training state, on the devices.
        step: number of steps done, including those whose metrics are unread.
        seconds_to_first_step: time since the command began; None until the first step is done.
    """

    def __init__(
        self, built: Built, dispatcher: Dispatcher, folder: TrainingFolder, started: float
    ) -> None:
        self.built, self.folder = built, folder
        self.batches = dispatcher.batches
        self._dispatcher, self._started = dispatcher, started
        self._validate, self._first_validation = make_validation(built), True
        self.state, self.step, self.recorder, self._lines = folder.start()
        self._seconds_before = self.recorder.seconds
        self._saving = Saving(folder.checkpoints, self.recorder)
        self._skipped, self._skipped_in_row = int(self.state.skipped), 0
        self._unread: deque[Unread] = deque()
        self.seconds_to_first_step: float | None = None
        self._steady_since: tuple[float, int] | None = None
        self._read_at = started

    def train(self, end: int | None = None) -> int:
        """Train up to a step; return 0, or another exit code if the run stopped before it.

        Args:
            end: the step; None: the last step according to the flags.
        """
        config = self.built.config
        end = self.built.num_steps if end is None else end
        guard = _transfer_guard(self.built)
        with StopRequest() as stop, self.recorder.display, jax.transfer_guard(guard):
            while self._lines:
                self.recorder.display.message(self._lines.pop(0))
            with self._announced("Compiling the training step"):
                self._dispatcher.wait()
            chunk = self._dispatcher.after(self.step, end, None)
            self._read_at = time.perf_counter()
            while self.step < end:
                self._dispatch(chunk)
                # The host gathers the next rows before it waits for metrics: the devices may still
                # compute. After the last step only the signal of this chunk is used.
                chunk = self._dispatcher.after(self.step, end, stop.signal)
                evaluates = self.step % config.eval_every == 0
                to_be_read = evaluates or chunk.signal or self.step == end
                self._read(in_flight=0 if to_be_read else self._dispatcher.most_in_flight)
                if self._skipped_in_row >= config.max_skipped:
                    return self._give_up(self._skipped_in_row)
                if evaluates:
                    if not self._save(self._evaluate()):
                        return self._give_up()
                    self._read_at = time.perf_counter()
                if chunk.signal and self.step < end:
                    return self._end(chunk.signal)
            return self._end()

    @property
    def images_per_second(self) -> float | None:
        """Mean rate after the first dispatch, including evaluations and checkpoints."""
        if self._steady_since is None or self._steady_since[1] == self.step:
            return None
        since, step = self._steady_since
        return (self.step - step) * self.built.config.batch_size / (self._read_at - since)

    def _dispatch(self, chunk: Chunk) -> None:
        first = self.step
        self.state, metrics = self._dispatcher.run(self.state, chunk)
        self.step += chunk.num_steps
        self._unread.append(Unread(first, chunk.num_steps, metrics))

    def _read(self, in_flight: int) -> None:
        """Wait for all dispatches except the last `in_flight`, and record their metrics.

        Dispatches read together get the same time per step, since each one's end is unknown.
        """
        due = [self._unread.popleft() for _ in range(len(self._unread) - in_flight)]
        if not due:
            return
        read = [unread._replace(metrics=jax.device_get(unread.metrics)) for unread in due]
        now, before = time.perf_counter(), self._read_at
        self._read_at = now
        seconds_per_step = (now - before) / sum(unread.num_steps for unread in due)
        self._dispatcher.report_pace(seconds_per_step)
        if self.seconds_to_first_step is None:
            self.seconds_to_first_step = now - self._started
            self._steady_since = (now, due[-1].first + due[-1].num_steps)
            seconds = f"{self.seconds_to_first_step:.1f}"
            self.recorder.display.message(f"First step after {seconds} seconds.")
        for unread in read:
            self._record(unread, self.built.config.batch_size / seconds_per_step)

    def _record(self, read: Unread, images_per_second: float) -> None:
        """Write the rows of a dispatch's steps that `log_every` selects, and show progress."""
        first, count, metrics = read
        self._skipped_in_row = int(metrics["skipped_in_row"][count - 1])
        timing = {"images_per_second": images_per_second, "seconds": self._elapsed()}
        for i in range(count):
            if metrics["skipped"][i] > self._skipped:
                self._record_skipped(first + i + 1)
            self._skipped = int(metrics["skipped"][i])
            if (first + i + 1) % self.built.config.log_every == 0:
                row = {name: values[i].item() for name, values in metrics.items()}
                self.recorder.write(first + i + 1, "train", row, timing)
        last = {name: values[count - 1] for name, values in metrics.items()}
        self.recorder.progress(first + count, last, images_per_second)

    def _record_skipped(self, step: int) -> None:
        """Record the inputs of a skipped step, except the parameters."""
        with jax.transfer_guard("allow"):
            key = jax.random.key_data(jax.random.fold_in(self.built.keys.train, step - 1))
            numbers = np.asarray(key).tolist()
        self.recorder.skipped(step, self.batches.indices(step - 1, 1).tolist(), numbers)

    def _evaluate(self) -> float | None:
        """Evaluate on the validation split; return its ELBO, or None if there is no such split."""
        if self._validate is None:
            return None
        display, first = self.recorder.display, "compiling" if self._first_validation else ""
        self._first_validation = False
        what, count = "Evaluating validation examples", len(self.built.dataset.validation)
        options: dict[str, Any] = {"quiet": display.quiet, "say": display.status}
        with counted(what, count, first=first, **options) as progress:
            row = self._validate(self.state, progress)
        self.recorder.write(self.step, "validation", row, {"seconds": self._elapsed()})
        return row["elbo"]

    def _save(self, metric: float | None) -> bool:
        """Save the state and return True; do neither if its parameters are not finite."""
        position = self.batches.position(self.step)
        with self._announced("Saving a checkpoint"):
            return self._saving.save(self.state, self.folder.about(self.step, position), metric)

    def _finish_saving(self) -> bool:
        """Wait for the last checkpoint; return True if it is on disk."""
        with self._announced("Writing the last checkpoint"):
            return self._saving.finish(self.step)

    def _announced(self, what: str) -> contextlib.AbstractContextManager[None]:
        display = self.recorder.display
        return announced(what, quiet=display.quiet, say=display.status)

    def _end(self, signal: int | None = None) -> int:
        """Save at the end of training, or because of a signal; return the exit code."""
        if not self._save(None):
            return self._give_up()
        if not self._finish_saving():
            return LOST
        if signal is None:
            return 0
        self.recorder.display.message(
            f"Stopped at step {self.step:,} and saved. Rerun the same command to continue."
        )
        return 128 + signal

    def _give_up(self, skipped_in_row: int = 0) -> int:
        """Report why the run cannot continue; return the exit code."""
        with contextlib.suppress(OSError, ValueError):
            self.folder.checkpoints.wait()
        read = self.step - sum(unread.num_steps for unread in self._unread)
        steps = Steps(read, self._skipped, skipped_in_row)
        data_scale = spread(self.built.preprocessing, self.built.dataset.train)
        saved = self.folder.checkpoints.latest_step() or 0
        self.recorder.say(not_finite(self.built.config, steps, saved, data_scale))
        return FAILED

    def _elapsed(self) -> float:
        """Time that the run has taken so far, in this start and those before it."""
        return round(self._seconds_before + time.perf_counter() - self._started, 3)


def _transfer_guard(built: Built) -> str:
    """Level of jax's guard against implicit transfers between host and devices, which cost time.

    They must be allowed with several processes, where pmap itself passes keys through the host,
    and without jit or under JAX_DEBUG_NANS, where every operation takes constants from the host.
    """
    modes: Any = jax.config
    through_host = built.mesh.is_multi_process or modes.jax_disable_jit or modes.jax_debug_nans
    return "allow" if through_host else "disallow"
