"""Folder of a run during training: lock it, restore the newest checkpoint, open the records."""

import contextlib
from typing import Any, NamedTuple, Self

import jax

from experiments.data import identity
from experiments.flags.saved_flags import to_json
from experiments.machine.accelerators import describe
from experiments.record import files
from experiments.record.display import Display
from experiments.record.recorder import Recorder
from experiments.run.build import Built
from experiments.run.folder import CHECKPOINTS, CONFIG, recorded_data
from experiments.run.lock import RunLock
from experiments.run.standardization import in_words
from jaxvae.checkpoints.categories import CATEGORIES
from jaxvae.checkpoints.hosts import is_first, raise_on_all_processes
from jaxvae.preprocessing import description
from jaxvae.preprocessing.support import Trained
from jaxvae.training.devices import replicate
from jaxvae.training.state import TrainState, from_items, to_items


class Start(NamedTuple):
    """Point at which a run starts or continues.

    Attributes:
        state: training state, on the devices.
        step: 0, or the step of the newest checkpoint.
        recorder: recorder of the steps after it.
        lines: lines to show at the start.
    """

    state: TrainState
    step: int
    recorder: Recorder
    lines: list[str]


class TrainingFolder:
    """Context manager that locks the folder of a run against other training processes.

    With several processes, all call the same methods, and only process 0 accesses the folder.

    Args:
        built: the run.

    Attributes:
        checkpoints: checkpoints of the run.

    Raises:
        ValueError: another process trains in the folder.
    """

    def __init__(self, built: Built) -> None:
        self._built = built
        with raise_on_all_processes():
            self._lock = RunLock(built.config.folder)
        self._open = contextlib.ExitStack()
        try:
            from jaxvae.checkpoints import Checkpoints  # imports orbax while the step compiles

            self.checkpoints = Checkpoints(built.config.folder / CHECKPOINTS)
            self._open.callback(self.checkpoints.close)
        except BaseException as error:
            self._lock.close(error)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        with contextlib.ExitStack() as stack:  # closes the lock even if another callback raises
            stack.callback(self._lock.close, error)
            stack.callback(self._open.close)

    def start(self) -> Start:
        """Restore the newest checkpoint, if any, and open the files written during training.

        Raises:
            ValueError: the newest checkpoint was trained on other data, which the flags do not
                allow.
        """
        built, config = self._built, self._built.config
        other_data = self._check_data()
        newest = self.checkpoints.restore_newest(to_items(built.state_shapes))
        init = jax.jit(built.init_state)
        state = init(built.keys.init) if newest is None else from_items(newest.items)
        step, keep = (0, -1) if newest is None else (newest.step, newest.step)
        display = Display(built.num_steps, step, quiet=config.quiet or not is_first())
        with raise_on_all_processes():
            if is_first():
                files.write_json(config.folder / CONFIG, to_json(config))
            recorder = Recorder(
                config.folder, keep, tensorboard=config.tensorboard, display=display
            )
        self._open.callback(recorder.close)
        lines = [*self._introduction(state), *other_data]
        lines += [] if newest is None else newest.set_aside
        if step or self._lock.cut_short:
            lines.append(f"Continuing from step {step:,}. {self._lock.cut_short}".strip())
        return Start(replicate(state, built.mesh), step, recorder, lines)

    def about(self, step: int, position: dict[str, int]) -> dict[str, Any]:
        """Return the description to store in the checkpoint of a step.

        Args:
            step: number of the step.
            position: position of the step in the data.
        """
        built = self._built
        return {
            "step": step,
            "data": position,
            "data_shape": list(built.dataset.train.shape[1:]),
            identity.ABOUT: identity.to_json(built.data_identity),
            "vae": built.recipe,
            **({} if built.categories is None else {CATEGORIES: built.categories}),
            description.ABOUT: description.describe(
                built.preprocessing, self._as_loaded(), resizes=built.config.resize is not None
            ),
            "summary": self._summary(step),
            "config": to_json(built.config),
        }

    def _summary(self, step: int) -> dict[str, str]:
        """Lines that describe the run to those who load it."""
        built, config = self._built, self._built.config
        latents = f"{config.latent_dim} latents"
        if config.latent_channels is not None:
            latents = f"feature map of {config.latent_channels} channels as latents"
        return {
            "data": f"{config.dataset}, {len(built.dataset.train):,} examples of shape "
            f"{list(built.dataset.train.shape[1:])}, {built.preprocessing.name}",
            "networks": f"{config.model}, {latents}, posterior "
            f"{config.posterior}, prior {config.prior}, likelihood {config.likelihood}",
            "bound": f"{config.objective}, {config.num_samples} samples",
            "steps": f"{step:,} of {config.batch_size} examples",
        }

    def _as_loaded(self) -> Trained:
        """Type and range of the training split as it was loaded."""
        train = self._built.data_identity["train"]
        return Trained(train.dtype, *(train.range or (0.0, 0.0)))

    def _check_data(self) -> list[str]:
        """Return a warning if the newest checkpoint was trained on other data, as flags allow."""
        trained = recorded_data(self.checkpoints, reversed(self.checkpoints.steps()))
        allow_other = self._built.config.allow_other_data
        with raise_on_all_processes():
            other = identity.require_data_of_run(
                trained, self._built.data_identity, allow_other=allow_other
            )
        if not other:
            return []
        return [
            f"warning: from here on the run has other data: {other}. Its validation bounds are not "
            "comparable with earlier ones, and the best checkpoint is chosen among all of them."
        ]

    def _introduction(self, state: TrainState) -> list[str]:
        built, config = self._built, self._built.config
        size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        return [
            built.dataset.about,
            *built.notes,
            f"{config.model}, {size:,} parameters, {config.objective}, "
            f"{in_words(built.preprocessing, built.units)}; "
            f"{describe(list(built.mesh.devices.flat))}; {config.folder}",
        ]
