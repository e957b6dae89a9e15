"""What a variant of ours is made from: a net, its flags, devices, data and first weights."""

from typing import Any, NamedTuple

import jax

from experiments.benchmark import native_convolutions as exchanged
from experiments.benchmark.images import check_images
from experiments.benchmark.nets import NETS, Net
from experiments.data import Dataset
from experiments.data.preprocessing import Preprocessing
from experiments.flags.config import TrainConfig
from experiments.flags.processes import Processes
from experiments.machine import accelerators
from experiments.machine.keys import root_key
from experiments.machine.versions import versions
from experiments.run.build import Built, build_from
from experiments.run.folder import RunData, load_data
from experiments.run.model import initial_vae, recipe
from jaxvae.models.vae import VAE
from jaxvae.training.devices import AXIS


class Setting(NamedTuple):
    """A net as `experiments.train` would train it.

    Attributes:
        net: which.
        config: the flags.
        devices: to run on.
        data: as the training has them.
        vae: the model.
    """

    net: Net
    config: TrainConfig
    devices: list[jax.Device]
    data: RunData
    vae: VAE

    @property
    def dataset(self) -> Dataset:
        """The splits, as they are stored."""
        return self.data.dataset

    @property
    def preprocessing(self) -> Preprocessing:
        """What the model sees of them."""
        return self.data.preprocessing

    def built(self, devices: list[jax.Device], axis_name: str | None = AXIS) -> Built:
        """The run of these flags and data, as the training command builds it."""
        return build_from(self.data, self.config, devices, axis_name=axis_name)

    def initial_params(self, seed: int = 0) -> Any:
        """The parameters that a training run of these flags and this seed starts from."""
        return jax.jit(self.vae.init)(jax.random.split(root_key(seed), 4)[0])


def make_setting(
    net: str,
    *,
    accelerator: Any,
    num_devices: int | None,
    dataset: str,
    manual_dir: str | None,
    processes: dict[str, Any] | None = None,
    native_convolutions: bool = False,
    **flags: Any,
) -> Setting:
    """Start jax and load the data.

    Args:
        net: a key of `NETS`.
        accelerator, num_devices, dataset, manual_dir: flags of the commands.
        processes: as `start_devices` has them.
        native_convolutions: XLA's own in place of the library's.
        flags: more flags of `experiments.train`, instead of the net's.

    Raises:
        ValueError: no such device, or data that the nets are not for.
    """
    devices = start_devices(accelerator, num_devices, processes)
    if native_convolutions:
        exchanged.use()
    config = NETS[net].config(dataset=dataset, manual_dir=manual_dir, **flags)
    data = _data(config)
    made = recipe(config, data.dataset.train.shape[1:])
    vae = initial_vae(made, config, data.preprocessing, data.dataset.train)
    return Setting(NETS[net], config, devices, data, vae)


def _data(config: TrainConfig) -> RunData:
    data = load_data(config)
    check_images(data.dataset.train)
    return data


def start_devices(
    accelerator: Any, num_devices: int | None, processes: dict[str, Any] | None = None
) -> list[jax.Device]:
    """Devices to run on; several processes are joined at the first call.

    Args:
        accelerator, num_devices: flags of the commands.
        processes: fields of `Processes`, where this process is one of several; None: the devices
            are this process' own.
    """
    joining = processes is not None and not jax.distributed.is_initialized()
    others = Processes(**processes) if joining and processes is not None else None
    devices = accelerators.start(accelerator, num_devices, others)
    if processes is not None:
        return devices
    return [device for device in devices if device.process_index == jax.process_index()]


class Machine:
    """What jax finds, and the versions of what the numbers depend on.

    Made before anything is measured: no such device, or data that the nets are not for, end the
    benchmark here, in one line.
    """

    def __init__(
        self,
        accelerator: Any,
        num_devices: int | None,
        dataset: str,
        manual_dir: str | None,
        processes: dict[str, Any] | None = None,
    ) -> None:
        devices = start_devices(accelerator, num_devices, processes)
        _data(TrainConfig(dataset=dataset, manual_dir=manual_dir))
        self.about = {
            "devices": accelerators.describe(devices),
            "platform": devices[0].platform,
            "num_devices": len(devices),
            "num_processes": jax.process_count() if processes else 1,
            "process_index": jax.process_index(),
            "versions": versions(),
        }
