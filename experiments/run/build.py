"""Build the parts of a training run that depend only on its flags and data, before any step."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from experiments.data import Dataset
from experiments.data.conditions import categories_of, with_condition
from experiments.data.identity import DataIdentity
from experiments.data.run_data import RunData, agree_on_data, choose_preprocessing, load_data
from experiments.data.splits import SPLITS
from experiments.flags.config import TrainConfig
from experiments.flags.continuing import check_same_run, continued
from experiments.flags.memory import require_room_for
from experiments.machine.keys import root_key
from experiments.run.choices import as_done, choices_of, choose
from experiments.run.folder import read_own_config
from experiments.run.model import initial_vae, recipe
from experiments.run.optimization import (
    make_objective,
    make_optimizer,
    make_regularizer,
    make_schedules,
    parts_of_batch,
    rows_at_once,
)
from experiments.run.standardization import units_of_run
from jaxvae.checkpoints.hosts import raise_on_all_processes
from jaxvae.checkpoints.manifest import check_savable
from jaxvae.models.vae import VAE
from jaxvae.preprocessing import Preprocessing
from jaxvae.preprocessing.columns import ColumnUnits
from jaxvae.training.devices import AXIS, check_divisible, make_mesh
from jaxvae.training.state import TrainState, init_state, to_items
from jaxvae.training.step import make_train_step


class Keys(NamedTuple):
    """Random keys of a run, all from its seed: for the start, steps, evaluations and pictures."""

    init: jax.Array
    train: jax.Array
    evaluation: jax.Array
    pictures: jax.Array


@dataclasses.dataclass(frozen=True)
class Built:
    """Parts of a training run that depend only on its flags and data.

    Attributes:
        config: the flags, with open ones filled in from the data.
        dataset, preprocessing: the data, and the conversion of its examples to the model's inputs.
        data_identity: identity of the data as they were loaded.
        units: location and unit of the data's columns, for the model; None: as they are.
        recipe: function name and arguments that rebuild the model from a checkpoint.
        categories: names of the labels that the model is conditioned on; None: no condition.
        vae: the model.
        mesh: mesh of the devices.
        keys: random keys of the run.
        num_steps: number of steps at which the run ends.
        options: arguments of `make_train_step`, except the axis of the devices.
        train_step: the training step.
        init_state: key -> the state before the first step.
        state_shapes: `jax.ShapeDtypeStruct`s of the state.
        notes: lines about the flags that the data chose, for the screen.
    """

    config: TrainConfig
    dataset: Dataset
    preprocessing: Preprocessing
    data_identity: DataIdentity
    units: ColumnUnits | None
    recipe: dict[str, Any]
    categories: list[str] | None
    vae: VAE
    mesh: Mesh
    keys: Keys
    num_steps: int
    options: dict[str, Any]
    train_step: Callable[..., Any]
    init_state: Callable[[jax.Array], TrainState]
    state_shapes: TrainState
    notes: list[str] = dataclasses.field(default_factory=list)

    def examples(self, split: str) -> Any:
        """Examples of a split as the model takes them: with their labels if it has a condition."""
        return _examples(self.dataset, split, self.categories)


def build(config: TrainConfig, devices: list[jax.Device]) -> Built:
    """Build the run of a folder, new or continued, without changing the folder.

    Args:
        config: the flags.
        devices: devices to run on.

    Raises:
        ValueError: the folder holds a run with other flags, or the data do not suit the flags.
    """
    saved = read_own_config(config)
    notes: list[str] = []
    with raise_on_all_processes():
        if saved is not None:
            config = continued(choices_of(saved, config), saved)
            check_same_run(config, saved)
        check_divisible(config.batch_size, len(devices))
        dataset, identity = load_data(config)
        if saved is None:
            config, notes = choose(config, dataset)
        data = RunData(*choose_preprocessing(config, dataset), identity)
    # These two calls exchange data between processes themselves, and raise on all of them.
    agree_on_data(data.identity)
    units = units_of_run(config.folder, data.preprocessing, data.dataset)
    with raise_on_all_processes():
        return dataclasses.replace(build_from(data, config, devices, units), notes=notes)


def build_from(
    data: RunData,
    config: TrainConfig,
    devices: list[jax.Device],
    units: ColumnUnits | None = None,
    axis_name: str | None = AXIS,
) -> Built:
    """Build a run on loaded data.

    Args:
        data: data of the run.
        config: the flags.
        devices: devices to run on.
        units: location and unit of the data's columns; None: the model sees them as they are.
        axis_name: name of the device axis; None: the step is for one device, without `pmap`.

    Raises:
        ValueError: the model cannot be built, trained or saved.
    """
    dataset, preprocessing, identity = data
    num_train = len(dataset.train)
    num_steps = config.steps(num_train)
    if config.schedule != "constant" and config.decay_steps is None:
        config = dataclasses.replace(config, decay_steps=num_steps)
    config = as_done(config, preprocessing)
    categories = categories_of(dataset) if config.condition == "label" else None
    for split in SPLITS:  # an unknown label is an error here, and not after the training
        _examples(dataset, split, categories)
    model_recipe = recipe(
        config, dataset.train.shape[1:], units, None if categories is None else len(categories)
    )
    vae, mesh = initial_vae(model_recipe, config, preprocessing, dataset.train), make_mesh(devices)
    most_rows = rows_at_once(config, devices[0].platform, dataset.train.shape[1:])
    options: dict[str, Any] = {
        "objective": make_objective(config, most_rows),
        "schedules": make_schedules(config),
        "regularizer": make_regularizer(config, vae, num_train),
        "prepare": preprocessing.prepare,
        "drop_condition": config.drop_condition,
        "average_decay": config.average_decay,
        **parts_of_batch(config, vae, mesh.size, most_rows),
    }
    optimizer = make_optimizer(config, num_steps)
    averaging, regularizer = config.average_decay is not None, options["regularizer"]

    def initial_state(key: jax.Array) -> TrainState:
        return init_state(vae, optimizer, key, averaging=averaging, regularizer=regularizer)

    return Built(
        config=config,
        dataset=dataset,
        preprocessing=preprocessing,
        data_identity=identity,
        units=units,
        recipe=model_recipe,
        categories=categories,
        vae=vae,
        mesh=mesh,
        keys=Keys(*jax.random.split(root_key(config.seed), 4)),
        num_steps=num_steps,
        options=options,
        train_step=make_train_step(vae, optimizer, axis_name=axis_name, **options),
        init_state=initial_state,
        state_shapes=_checked_shapes(initial_state, config),
    )


def _examples(dataset: Dataset, split: str, categories: list[str] | None) -> Any:
    return with_condition(dataset.rows(split), categories, f"the {split} split of {dataset.name}")


def _checked_shapes(start: Callable[[jax.Array], TrainState], config: TrainConfig) -> TrainState:
    """Return the shapes of the state, after checking that it fits in memory and in a checkpoint."""
    shapes: TrainState = jax.eval_shape(start, root_key(0))
    require_room_for(shapes, config)
    try:
        check_savable(to_items(shapes))
    except ValueError as error:
        raise ValueError(
            f"--model={config.model} must have parameters that a checkpoint can store: {error}"
        ) from error
    return shapes
