"""What the flags make of a model: its train step and the state that it starts from."""

from typing import Any

import jax
from jax.sharding import Mesh

from experiments.data.preprocessing import Preprocessing
from experiments.flags.config import TrainConfig
from experiments.flags.memory import require_room_for
from experiments.machine.keys import root_key
from experiments.run.build import (
    make_objective,
    make_optimizer,
    make_regularizer,
    make_schedules,
    parts_of_batch,
    rows_at_once,
)
from jaxvae.checkpoints.manifest import check_savable
from jaxvae.models.vae import VAE
from jaxvae.training.devices import AXIS
from jaxvae.training.state import TrainState, init_state, to_items
from jaxvae.training.step import make_train_step


class Learning:
    """How a model is trained on a mesh of devices.

    Args:
        config: the flags.
        vae: the model.
        preprocessing: of the data.
        mesh: of devices.
        num_train: examples in the training split.
        axis_name: of the devices; None: the step is for one of them, without `pmap`.

    Attributes:
        options: of `make_train_step`, but for the axis of the devices.
        train_step: the step.
        state_shapes: of the state, `jax.ShapeDtypeStruct`s.
    """

    def __init__(
        self,
        config: TrainConfig,
        vae: VAE,
        preprocessing: Preprocessing,
        mesh: Mesh,
        num_train: int,
        axis_name: str | None = AXIS,
    ) -> None:
        rows = rows_at_once(config, mesh.devices.flat[0].platform)
        self._vae = vae
        self._optimizer = make_optimizer(config, config.steps(num_train))
        self.options: dict[str, Any] = {
            "objective": make_objective(config, rows),
            "schedules": make_schedules(config),
            "regularizer": make_regularizer(config, num_train),
            "prepare": preprocessing.prepare,
            "average_decay": config.average_decay,
            **parts_of_batch(config, vae, mesh.size, rows),
        }
        self.state_shapes: TrainState = jax.eval_shape(self.init_state, root_key(0))
        require_room_for(self.state_shapes)
        try:
            check_savable(to_items(self.state_shapes))
        except ValueError as error:
            raise ValueError(
                f"--model={config.model} must have parameters that a checkpoint can hold: {error}"
            ) from error
        self.train_step = make_train_step(vae, self._optimizer, axis_name=axis_name, **self.options)

    def init_state(self, key: jax.Array) -> TrainState:
        """The state before the first step."""
        return init_state(
            self._vae,
            self._optimizer,
            key,
            averaging=self.options["average_decay"] is not None,
            regularizer=self.options["regularizer"],
        )
