"""One training run: set up or continued, then trained chunk by chunk, checkpoint by checkpoint."""

import contextlib
import dataclasses
import sys
import time
from collections import deque
from functools import partial
from typing import Any, Self

import jax
import numpy as np

from experiments.data import identity
from experiments.data.batches import Batches
from experiments.flags.config import TrainConfig
from experiments.flags.continuing import continued, refuse_other_run
from experiments.flags.saved_flags import to_json
from experiments.machine.accelerators import describe
from experiments.machine.compilation_cache import give_back_memory
from experiments.machine.keys import root_key
from experiments.machine.stopping import StopRequest
from experiments.record import files
from experiments.record.display import Display
from experiments.record.journal import Journal
from experiments.run.advice import Steps, not_finite
from experiments.run.build import evaluated_at_once, initial_vae, recipe, spread
from experiments.run.dispatch import Chunk, Chunks, Unread, fits
from experiments.run.folder import agree_on_data, load_data, read_own_config, recorded_data
from experiments.run.learning import Learning
from experiments.run.lock import RunLock
from experiments.run.saving import Saving
from experiments.run.standardization import as_done, in_words, units_of_run, with_choices
from experiments.show.numbers import validation_row
from jaxvae.checkpoints.hosts import is_first, raise_on_all_processes
from jaxvae.evaluation import make_score, map_dataset
from jaxvae.training.devices import (
    check_divisible,
    compile_in_background,
    local_positions,
    make_chunk_step,
    make_map,
    make_mesh,
    replicate,
)
from jaxvae.training.state import TrainState, from_items, to_items

LOST = 1
"""Exit code of a run whose last steps could not be saved."""


class TrainingRun:
    """A run in its folder, from its newest checkpoint where there is one. A context manager.

    Several processes all train it and call the same methods; process 0 alone has the folder.

    Attributes:
        config: the flags.
        dataset, preprocessing, recipe, vae: what it trains, and on what.
        data_identity: of the data as they were loaded.
        mesh: of the devices.
        num_steps, step: where it ends and where it is.
        checkpoints: of the run.
        key_evaluation, key_pictures: for what follows the training.
        seconds_to_first_step: since `started`; None until the first step is done.

    Raises:
        ValueError: the folder holds a run of other flags, or the data do not suit the flags.
    """

    _state: TrainState

    def __init__(
        self, config: TrainConfig, devices: list[jax.Device], started: float | None = None
    ) -> None:
        """Set up the run; compilation goes on in the background.

        Args:
            config: the flags.
            devices: to run on.
            started: what `time.perf_counter` said when the command began; None: now.
        """
        self._started = time.perf_counter() if started is None else started
        saved = read_own_config(config)
        with raise_on_all_processes():
            config = with_choices(config, saved)
            if saved is not None:
                config = continued(config, saved)
                refuse_other_run(config, saved)
            check_divisible(config.batch_size, len(devices))
            self.dataset, self.preprocessing, self.data_identity = load_data(config)
        agree_on_data(self.data_identity)
        self._units = units_of_run(config.folder, self.preprocessing, self.dataset)
        with raise_on_all_processes():
            self._set_up(config, devices)
        with raise_on_all_processes():
            self._lock = RunLock(config.folder)
        try:
            self._open_folder()
        except BaseException as error:
            self._lock.close(error)
            raise

    def _set_up(self, config: TrainConfig, devices: list[jax.Device]) -> None:
        """All that takes no file of the run, and refuses what cannot train."""
        self.num_steps = config.steps(len(self.dataset.train))
        if config.schedule != "constant" and config.decay_steps is None:
            config = dataclasses.replace(config, decay_steps=self.num_steps)
        self.config = config = as_done(config, self.preprocessing)
        self.mesh = make_mesh(devices)
        self.recipe = recipe(config, self.dataset.train.shape[1:], self._units)
        self.vae = initial_vae(self.recipe, config, self.preprocessing, self.dataset.train)
        self._learning = Learning(
            config, self.vae, self.preprocessing, self.mesh, len(self.dataset.train)
        )
        self._batches = Batches(
            self.dataset.train,
            config.batch_size,
            config.seed,
            self.mesh.size,
            local_positions(self.mesh),
        )
        resident = fits(self.dataset.train, self.mesh)
        self._chunks = Chunks(self._batches, self.mesh, config.eval_every, resident=resident)
        keys = jax.random.split(root_key(config.seed), 4)
        self._key_init, key_train, self.key_evaluation, self.key_pictures = keys
        self._key_of_training = key_train
        self._key_train = replicate(key_train, self.mesh)
        self._key_validation = replicate(self.key_evaluation, self.mesh)
        self._make_functions()
        self.seconds_to_first_step: float | None = None
        self._steady_since: tuple[float, int] | None = None
        self._unread: deque[Unread] = deque()
        self._skipped_in_row = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        with contextlib.ExitStack() as stack:  # each of them, whatever the others do
            stack.callback(self._lock.close, error)
            stack.callback(self.checkpoints.close)
            stack.callback(self._journal.close)

    def to_the_end(self) -> int:
        """Train until `num_steps`; returns 0, or the exit code of what stopped it before."""
        config = self.config
        quiet = config.quiet or not is_first()
        display = Display(self.num_steps, self.step, quiet=quiet)
        # With several processes pmap itself takes keys through the host. Without jit, and where
        # jax looks for the source of a NaN, every operation takes its constants there.
        modes: Any = jax.config
        eager = modes.jax_disable_jit or modes.jax_debug_nans
        through_host = self.mesh.is_multi_process or eager
        guard = "allow" if through_host else "disallow"
        with StopRequest() as stop, display, jax.transfer_guard(guard):
            self._introduce(display)
            saving = Saving(self.checkpoints, self._journal, partial(self._say, display))
            chunk_step = self._compiled.result()
            give_back_memory()
            chunk = self._chunks.after(self.step, self.num_steps, None)
            self._read_at = time.perf_counter()
            while self.step < self.num_steps:
                self._dispatch(chunk_step, chunk)
                chunk = self._chunks.after(self.step, self.num_steps, stop.signal)
                evaluates = self.step % config.eval_every == 0
                to_be_read = evaluates or chunk.signal or self.step == self.num_steps
                self._read(display, in_flight=0 if to_be_read else self._most_in_flight)
                if self._skipped_in_row >= config.max_skipped:
                    return self._give_up(display)
                if evaluates:
                    if not self._save(saving, self._validate(display)):
                        return self._give_up(display)
                    self._read_at = time.perf_counter()
                if chunk.signal and self.step < self.num_steps:
                    if not self._save(saving, None):
                        return self._give_up(display)
                    if not saving.finish(self.step):
                        return LOST
                    display.message(f"Stopped at step {self.step:,} and saved. "
                                        "The same command continues.")  # fmt: skip
                    return 128 + chunk.signal
            if not self._save(saving, None):
                return self._give_up(display)
            return 0 if saving.finish(self.step) else LOST

    @property
    def images_per_second(self) -> float | None:
        """Of all steps after the first dispatch, evaluations and checkpoints included."""
        if self._steady_since is None or self._steady_since[1] == self.step:
            return None
        since, step = self._steady_since
        return (self.step - step) * self.config.batch_size / (self._read_at - since)

    def _make_functions(self) -> None:
        """Trace the step, which refuses what cannot train, and compile it in the background."""
        capacity, batch_size = self._chunks.capacity, self.config.batch_size
        chunk_step = make_chunk_step(self._learning.train_step, self.mesh, batch_size, capacity)
        rows, per_device = self.dataset.train, batch_size // self.mesh.size
        shape = (len(local_positions(self.mesh)), capacity, per_device, *rows.shape[1:])
        give_back_memory()  # nothing takes more than compiling the step
        self._compiled = compile_in_background(
            chunk_step,
            self.mesh,
            self._learning.state_shapes,
            self._key_train,
            jax.ShapeDtypeStruct(shape, rows.dtype),
            jax.ShapeDtypeStruct((), np.int32),
        )
        score = make_score(self.vae, prepare=self.preprocessing.prepare)
        self._score = make_map(score, self.mesh, evaluated_at_once(self.config))
        # Simulated devices may wait for each other for ever with two dispatches in flight; a GPU
        # returns from a loop whose length is an argument only when it is done.
        platform = self.mesh.devices.flat[0].platform
        one_at_a_time = platform == "gpu" or (platform == "cpu" and self.mesh.size > 1)
        self._most_in_flight = 0 if one_at_a_time else 1

    def _open_folder(self) -> None:
        """Restore the newest checkpoint, if any, and open what is written while training."""
        from jaxvae.checkpoints import Checkpoints  # orbax, while the step compiles

        folder = self.config.folder
        self.checkpoints = Checkpoints(folder / "checkpoints")
        other_data = self._check_data()
        init = jax.jit(self._learning.init_state)
        newest = self.checkpoints.restore_newest(to_items(self._learning.state_shapes))
        state = init(self._key_init) if newest is None else from_items(newest.items)
        self.step = 0 if newest is None else newest.step
        self._skipped = int(state.skipped)
        self._warnings = other_data + ([] if newest is None else newest.set_aside)
        self._state = replicate(state, self.mesh)
        with raise_on_all_processes():
            if is_first():
                files.write_json(folder / "config.json", to_json(self.config))
            keep = -1 if newest is None else newest.step
            self._journal = Journal(folder, keep, tensorboard=self.config.tensorboard)

    def _check_data(self) -> list[str]:
        """A line where the newest checkpoint is of other data, which the flags allow."""
        trained = recorded_data(self.checkpoints, reversed(self.checkpoints.steps()))
        allow_other = self.config.allow_other_data
        with raise_on_all_processes():
            other = identity.require_data_of_run(
                trained, self.data_identity, allow_other=allow_other
            )
        if not other:
            return []
        return [
            f"warning: from here on the run has other data: {other}. Its validation bounds do not "
            "compare with earlier ones, by which the best checkpoint is chosen, too."
        ]

    def _introduce(self, display: Display) -> None:
        config = self.config
        size = sum(leaf.size for leaf in jax.tree.leaves(self._state.params))
        display.message(self.dataset.about)
        display.message(
            f"{config.model}, {size:,} parameters, {config.objective}, "
            f"{in_words(self.preprocessing, self._units)}; "
            f"{describe(list(self.mesh.devices.flat))}; {config.folder}"
        )
        for line in self._warnings:
            display.message(line)
        if self.step or self._lock.cut_short:
            display.message(f"Continuing from step {self.step:,}. {self._lock.cut_short}".strip())

    def _dispatch(self, chunk_step: Any, chunk: Chunk) -> None:
        first = self.step
        self._state, metrics = chunk_step(
            self._state, self._key_train, chunk.rows, chunk.num_steps_on_devices
        )
        self.step += chunk.num_steps
        self._unread.append(Unread(first, chunk.num_steps, metrics))

    def _read(self, display: Display, in_flight: int) -> None:
        """Wait for all dispatches but the last `in_flight`, and log their metrics.

        Those that are waited for together share the time: when each was done is not known.
        """
        due = [self._unread.popleft() for _ in range(len(self._unread) - in_flight)]
        if not due:
            return
        read = [unread._replace(metrics=jax.device_get(unread.metrics)) for unread in due]
        now, before = time.perf_counter(), self._read_at
        self._read_at = now
        seconds_per_step = (now - before) / sum(unread.num_steps for unread in due)
        self._chunks.report_pace(seconds_per_step)
        if self.seconds_to_first_step is None:
            self.seconds_to_first_step = now - self._started
            self._steady_since = (now, due[-1].first + due[-1].num_steps)
            display.message(f"First step after {self.seconds_to_first_step:.1f} seconds.")
        for unread in read:
            self._log(unread, self.config.batch_size / seconds_per_step, display)

    def _log(self, read: Unread, images_per_second: float, display: Display) -> None:
        """Write the rows that are due among a dispatch's steps, and show progress."""
        first, count, metrics = read
        self._skipped_in_row = int(metrics["skipped_in_row"][count - 1])
        timing = {"images_per_second": images_per_second, "seconds": self._elapsed()}
        for i in range(count):
            if metrics["skipped"][i] > self._skipped:
                self._record_skipped(first + i + 1)
            self._skipped = int(metrics["skipped"][i])
            if (first + i + 1) % self.config.log_every == 0:
                row = {name: values[i].item() for name, values in metrics.items()}
                self._journal.write(first + i + 1, "train", row, timing)
        display.update(
            first + count,
            elbo=metrics["elbo"][count - 1],
            reconstruction=metrics["reconstruction"][count - 1],
            kl=metrics["kl"][count - 1],
            images_per_second=images_per_second,
        )

    def _record_skipped(self, step: int) -> None:
        """Write down all that a step was computed from, but for the parameters."""
        with jax.transfer_guard("allow"):
            key = jax.random.key_data(jax.random.fold_in(self._key_of_training, step - 1))
            numbers = np.asarray(key).tolist()
        self._journal.skipped(step, self._batches.indices(step - 1, 1).tolist(), numbers)

    def _validate(self, display: Display) -> float | None:
        """Evaluate on the validation split; its ELBO, or None where there is no such split."""
        if not len(self.dataset.validation):
            return None
        scores = map_dataset(
            self._score,
            self._state.evaluation_params(),
            self._key_validation,
            self.dataset.validation,
            mesh=self.mesh,
            batch_size=self.config.eval_batch_size,
            microbatch_size=evaluated_at_once(self.config),
        )
        row = validation_row(scores)
        elbo = row["elbo"]
        self._journal.write(self.step, "validation", row, {"seconds": self._elapsed()})
        is_best = elbo > self._journal.best_elbo
        self._journal.best_elbo = max(elbo, self._journal.best_elbo)
        display.evaluation(
            self.step, elbo=elbo, standard_error=row["standard_error"], is_best=is_best
        )
        return elbo

    def _save(self, saving: Saving, metric: float | None) -> bool:
        """Save the state; False, and nothing is saved, where an update has made it infinite."""
        about = {
            "step": self.step,
            "data": self._batches.position(self.step),
            "data_shape": list(self.dataset.train.shape[1:]),
            identity.ABOUT: identity.to_json(self.data_identity),
            "vae": self.recipe,
            "config": to_json(self.config),
        }
        return saving.save(self._state, about, metric)

    def _say(self, display: Display, line: str) -> None:
        """What is said even where the run is to be quiet."""
        if self.config.quiet and is_first():
            print(line, file=sys.stderr)
        display.message(line)

    def _elapsed(self) -> float:
        return round(time.perf_counter() - self._started, 3)

    def _give_up(self, display: Display) -> int:
        """Say why the run cannot go on; returns the exit code."""
        with contextlib.suppress(OSError, ValueError):
            self.checkpoints.wait()
        read = self.step - sum(unread.num_steps for unread in self._unread)
        steps = Steps(read, self._skipped, self._skipped_in_row)
        data_scale = spread(self.preprocessing, self.dataset.train)
        saved = self.checkpoints.latest_step() or 0
        self._say(display, not_finite(self.config, steps, saved, data_scale))
        return 1
