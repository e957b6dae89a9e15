"""One training run: set up or continued, then trained chunk by chunk, checkpoint by checkpoint."""

import dataclasses
import math
import time
from typing import Any, Self

import jax
import numpy as np

from experiments import run_log
from experiments.accelerators import describe
from experiments.batches import Batches
from experiments.config import TrainConfig, refuse_other_run, to_json
from experiments.model import (
    initial_vae,
    make_objective,
    make_optimizer,
    make_regularizer,
    make_schedules,
    recipe,
)
from experiments.run_folder import load_data, read_config
from experiments.stopping import StopRequest
from jaxvae.checkpoints import Checkpoints
from jaxvae.evaluation import count_active_units, estimate, make_score, over_dataset
from jaxvae.parallel import (
    AXIS,
    check_divisible,
    make_chunk_step,
    make_map,
    make_mesh,
    replicate,
    shard,
)
from jaxvae.training import TrainState, init_state, make_train_step
from jaxvae.vae import Params

CHUNK_STEPS = 100
"""Most steps in one dispatch."""
CHUNK_BYTES = 64 * 2**20
"""Most data in one dispatch."""
CHUNK_SECONDS = 2.0
"""Time that a dispatch aims at, so that progress shows and Ctrl-C is heard."""


class TrainingRun:
    """A run in its folder, from its newest checkpoint where there is one. A context manager.

    Attributes:
        config: the flags.
        dataset, preprocessing, recipe, vae: what it trains, and on what.
        mesh: of the devices.
        num_steps, step: where it ends and where it is.
        checkpoints: of the run.
        key_evaluation, key_pictures: for what follows the training.
        seconds_to_first_step, images_per_second: None until measured in this process.

    Raises:
        ValueError: the folder holds a run of other flags, or the data do not suit the flags.
    """

    _state: TrainState

    def __init__(self, config: TrainConfig, devices: list[jax.Device]) -> None:
        self._started = time.perf_counter()
        saved = read_config(config.folder)
        if saved is not None:
            if config.decay_steps is None:
                config = dataclasses.replace(config, decay_steps=saved.decay_steps)
            refuse_other_run(config, saved)
        check_divisible(config.batch_size, len(devices))
        self.dataset, self.preprocessing = load_data(config)
        self.num_steps = config.steps(len(self.dataset.train))
        if config.schedule != "constant" and config.decay_steps is None:
            config = dataclasses.replace(config, decay_steps=self.num_steps)
        self.config = config
        self.mesh = make_mesh(devices)
        data_shape = self.dataset.train.shape[1:]
        self.recipe = recipe(config, data_shape)
        self.vae = initial_vae(self.recipe, config, self.preprocessing, self.dataset.train)
        self._optimizer = make_optimizer(config, self.num_steps)
        self._regularizer = make_regularizer(config, len(self.dataset.train))
        self._batches = Batches(self.dataset.train, config.batch_size, config.seed, len(devices))
        keys = jax.random.split(jax.random.key(config.seed), 4)
        self._key_init, key_train, self.key_evaluation, self.key_pictures = keys
        self._key_train = replicate(key_train, self.mesh)
        self._key_validation = replicate(self.key_evaluation, self.mesh)
        self._chunk_steps = self._capacity()
        self._make_functions()
        self.seconds_to_first_step: float | None = None
        self.images_per_second: float | None = None
        self._refuse_what_cannot_train()
        self._open_folder()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for log in self._logs:
            log.close()
        self.checkpoints.close()

    def to_the_end(self) -> int:
        """Train until `num_steps`; returns 0, or the exit code of what stopped it before."""
        config = self.config
        display = run_log.Display(self.num_steps, self.step, quiet=config.quiet)
        with StopRequest() as stop, display, jax.transfer_guard("disallow"):
            self._introduce(display)
            chunk = self._next_chunk(self.step)
            while self.step < self.num_steps:
                started = time.perf_counter()
                first, count = self.step, chunk[1]
                self._state, metrics = self._chunk_step(
                    self._state, self._key_train, chunk[0], chunk[2]
                )
                self.step += count
                chunk = self._next_chunk(self.step)
                metrics = jax.device_get(metrics)
                self._log(first, count, metrics, time.perf_counter() - started, display)
                if metrics["skipped_in_row"][count - 1] >= config.max_skipped:
                    self._explain_skips(display)
                    return 1
                if self.step % config.eval_every == 0:
                    self._save(self._validate(display))
                if stop.signal and self.step < self.num_steps:
                    self._save(None)
                    display.message(f"Stopped at step {self.step:,} and saved. "
                                    "The same command continues.")  # fmt: skip
                    return stop.exit_code
        self._save(None)
        return 0

    def best_params(self) -> tuple[int, Params]:
        """The step and the parameters (their average where there is one) of the best checkpoint.

        Best is by the validation ELBO; without a validation split, the latest.
        """
        self.checkpoints.wait()
        step = self.checkpoints.best_step()
        if step is None:
            raise ValueError(f"{self.config.folder} has no checkpoint to report on.")
        target = jax.eval_shape(self.vae.init, self._key_init)
        name = "params" if self.config.average_decay is None else "average"
        return step, self.checkpoints.restore(step, {name: target})[name]

    def _capacity(self) -> int:
        """Steps that a chunk can hold."""
        batch_bytes = self.dataset.train[:1].nbytes * self.config.batch_size
        return max(1, min(CHUNK_STEPS, CHUNK_BYTES // batch_bytes))

    def _make_functions(self) -> None:
        config = self.config
        train_step = make_train_step(
            self.vae, self._optimizer, axis_name=AXIS, **self._step_options()
        )
        self._chunk_step = make_chunk_step(
            train_step, self.mesh, config.batch_size, self._chunk_steps
        )
        self._score = make_map(make_score(self.vae, prepare=self.preprocessing.prepare), self.mesh)

    def _refuse_what_cannot_train(self) -> None:
        """Trace a step on shapes alone: what it refuses is refused before a file is written."""
        step = make_train_step(self.vae, self._optimizer, **self._step_options())

        def run(key: jax.Array, rows: jax.Array) -> Any:
            return step(self._init_state(key), jax.random.split(key, len(rows)), rows)

        rows = (self.config.batch_size, *self.dataset.train.shape[1:])
        jax.eval_shape(run, self._key_init, jax.ShapeDtypeStruct(rows, self.dataset.train.dtype))

    def _step_options(self) -> dict[str, Any]:
        """What `make_train_step` takes, but for the axis of the devices."""
        return {
            "objective": make_objective(self.config),
            "schedules": make_schedules(self.config),
            "regularizer": self._regularizer,
            "prepare": self.preprocessing.prepare,
            "average_decay": self.config.average_decay,
        }

    def _init_state(self, key: jax.Array) -> TrainState:
        return init_state(
            self.vae,
            self._optimizer,
            key,
            averaging=self.config.average_decay is not None,
            regularizer=self._regularizer,
        )

    def _open_folder(self) -> None:
        """Restore the newest checkpoint, if any, and open what is written while training."""
        config, folder = self.config, self.config.folder
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(folder / "checkpoints")
        init = jax.jit(self._init_state)
        latest = self.checkpoints.latest_step()
        if latest is None:
            state = init(self._key_init)
        else:
            target = jax.eval_shape(init, self._key_init)
            state = _from_items(self.checkpoints.restore(latest, _to_items(target)))
        self.step = latest or 0
        self._state = replicate(state, self.mesh)
        run_log.write_json(folder / "config.json", to_json(config))
        keep = -1 if latest is None else latest
        metrics = run_log.MetricsFile(folder / "metrics.jsonl", keep)
        self._logs: list[Any] = [metrics]
        if config.tensorboard:
            self._logs.append(run_log.TensorBoard(folder / "tensorboard", keep))
        rows = run_log.read_metrics(folder / "metrics.jsonl")
        scores = [row["elbo"] for row in rows if row["split"] == "validation"]
        self._best_elbo = max((s for s in scores if s is not None), default=-math.inf)
        self._seconds_per_step: float | None = None

    def _introduce(self, display: run_log.Display) -> None:
        config = self.config
        size = sum(leaf.size for leaf in jax.tree.leaves(self._state.params))
        display.message(self.dataset.about)
        display.message(
            f"{config.model}, {size:,} parameters, {config.objective}, "
            f"{self.preprocessing.name}; {describe(list(self.mesh.devices.flat))}; {config.folder}"
        )
        if self.step:
            display.message(f"Continuing from step {self.step:,}.")

    def _next_chunk(self, step: int) -> tuple[jax.Array, int, jax.Array]:
        """The data of the next dispatch, on the devices, and how many steps it is.

        It ends at an evaluation or at the run's end at the latest. The first dispatch of a
        process compiles, and is one step; the second tells the pace.
        """
        to_evaluation = self.config.eval_every - step % self.config.eval_every
        wanted = 1 if self._seconds_per_step is None else CHUNK_SECONDS / self._seconds_per_step
        limits = (self._chunk_steps, to_evaluation, max(1, self.num_steps - step))
        count = max(1, min(int(wanted), *limits))
        rows = self._batches.chunk(step, count, self._chunk_steps)
        return shard(rows, self.mesh), count, replicate(np.int32(count), self.mesh)

    def _log(
        self,
        first: int,
        count: int,
        metrics: dict[str, np.ndarray],
        seconds: float,
        display: run_log.Display,
    ) -> None:
        """Write the rows that are due among `count` steps after `first`, and show progress."""
        images_per_second = count * self.config.batch_size / seconds
        if self.seconds_to_first_step is None:
            self.seconds_to_first_step = time.perf_counter() - self._started
            self._seconds_per_step = CHUNK_SECONDS / 20
        else:
            self._seconds_per_step = seconds / count
            self.images_per_second = images_per_second
        timing = {"images_per_second": images_per_second, "seconds": self._elapsed()}
        for i in range(count):
            if (first + i + 1) % self.config.log_every == 0:
                row = {name: values[i].item() for name, values in metrics.items()}
                self._write(first + i + 1, "train", row, timing)
        display.update(
            self.step,
            elbo=metrics["elbo"][count - 1],
            log_likelihood=metrics["log_likelihood"][count - 1],
            kl=metrics["kl"][count - 1],
            images_per_second=images_per_second,
        )

    def _validate(self, display: run_log.Display) -> float | None:
        """Evaluate on the validation split; its ELBO, or None where there is no such split."""
        if not len(self.dataset.validation):
            return None
        scores = over_dataset(
            self._score,
            self._state.evaluation_params(),
            self._key_validation,
            self.dataset.validation,
            mesh=self.mesh,
            batch_size=self.config.eval_batch_size,
        )
        elbo = estimate(scores.elbo)
        row = {
            "elbo": elbo.value,
            "standard_error": elbo.standard_error,
            "log_likelihood": estimate(scores.log_likelihood).value,
            "kl": estimate(scores.kl).value,
            "active_units": count_active_units(scores.posterior_mean),
        }
        self._write(self.step, "validation", row, {"seconds": self._elapsed()})
        is_best = elbo.value > self._best_elbo
        self._best_elbo = max(elbo.value, self._best_elbo)
        display.evaluation(
            self.step, elbo=elbo.value, standard_error=elbo.standard_error, is_best=is_best
        )
        return elbo.value

    def _save(self, metric: float | None) -> None:
        about = {
            "step": self.step,
            "data": self._batches.position(self.step),
            "data_shape": list(self.dataset.train.shape[1:]),
            "vae": self.recipe,
            "config": to_json(self.config),
        }
        self.checkpoints.save(self.step, _to_items(self._state), about, metric)

    def _write(
        self, step: int, split: str, values: dict[str, float], timing: dict[str, float]
    ) -> None:
        for log in self._logs:
            log.write(step, split, values, timing)

    def _elapsed(self) -> float:
        return round(time.perf_counter() - self._started, 3)

    def _explain_skips(self, display: run_log.Display) -> None:
        config = self.config
        display.message(
            f"error: {config.max_skipped} steps in a row up to step {self.step:,} had a loss, "
            "gradient or update that is not finite; each was skipped. The last checkpoint is "
            f"step {self.checkpoints.latest_step() or 0:,}. Lower --learning-rate (now "
            f"{config.learning_rate}), set --gradient-clip, and start with a new --run."
        )


def _to_items(state: TrainState) -> dict[str, Any]:
    """A state as the items of a checkpoint: what evaluation needs apart from the rest."""
    items = {"params": state.params, "training": state._replace(params=None, average=None)}
    return items if state.average is None else items | {"average": state.average}


def _from_items(items: dict[str, Any]) -> TrainState:
    return items["training"]._replace(params=items["params"], average=items.get("average"))
