"""Setting of a jaxvae variant: a net, its flags, devices, data and initial weights."""

from typing import Any, NamedTuple

import jax

from experiments.benchmark import native_convolutions as exchanged
from experiments.benchmark.images import check_images
from experiments.benchmark.nets import NETS, Net
from experiments.data import Dataset
from experiments.data.run_data import RunData, choose_preprocessing, load_data
from experiments.flags.config import TrainConfig
from experiments.flags.processes import Processes
from experiments.machine import accelerators
from experiments.machine.keys import root_key
from experiments.machine.versions import versions
from experiments.run.build import Built, build_from
from experiments.run.choices import choose
from experiments.run.model import initial_vae, recipe
from jaxvae.models.vae import VAE
from jaxvae.preprocessing import Preprocessing
from jaxvae.training.devices import AXIS


class Setting(NamedTuple):
    """A net with everything that `experiments.train` would train it with.

    Attributes:
        net: the net.
        config: flags of the training command.
        devices: devices to run on.
        data: data as the training command loads them.
        vae: the model.
    """

    net: Net
    config: TrainConfig
    devices: list[jax.Device]
    data: RunData
    vae: VAE

    @property
    def dataset(self) -> Dataset:
        """Splits of the data, as stored."""
        return self.data.dataset

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing that turns stored examples into the model's inputs."""
        return self.data.preprocessing

    def built(self, devices: list[jax.Device], axis_name: str | None = AXIS) -> Built:
        """Build the run of these flags and data, as the training command does."""
        return build_from(self.data, self.config, devices, axis_name=axis_name)

    def initial_params(self, seed: int = 0) -> Any:
        """Initial parameters of a training run with these flags and this seed."""
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
        processes: as in `start_devices`.
        native_convolutions: whether to use XLA's own convolutions, not the library's.
        flags: more flags of `experiments.train`, which override the net's.

    Raises:
        ValueError: there is no such device, or the nets do not accept the data.
    """
    devices = start_devices(accelerator, num_devices, processes)
    if native_convolutions:
        exchanged.use()
    config = NETS[net].config(dataset=dataset, manual_dir=manual_dir, **flags)
    config, data = _data(net, config)
    made = recipe(config, data.dataset.train.shape[1:])
    vae = initial_vae(made, config, data.preprocessing, data.dataset.train)
    return Setting(NETS[net], config, devices, data, vae)


def _data(net: str, config: TrainConfig) -> tuple[TrainConfig, RunData]:
    dataset, identity = load_data(config)
    check_images(dataset.train, net)
    config, _ = choose(config, dataset)
    return config, RunData(*choose_preprocessing(config, dataset), identity)


def start_devices(
    accelerator: Any, num_devices: int | None, processes: dict[str, Any] | None = None
) -> list[jax.Device]:
    """Start jax and return the devices to run on; the first call joins several processes.

    Args:
        accelerator, num_devices: flags of the commands.
        processes: fields of `Processes` if this process is one of several; None: return only the
            devices of this process.
    """
    joining = processes is not None and not jax.distributed.is_initialized()
    others = Processes(**processes) if joining and processes is not None else None
    devices = accelerators.start(accelerator, num_devices, others)
    if processes is not None:
        return devices
    return [device for device in devices if device.process_index == jax.process_index()]


class Machine:
    """Devices that jax finds, and the versions of the packages that the numbers depend on.

    Prepared before anything is measured, so that a missing device or invalid data end the benchmark
    early, with one line.
    """

    def __init__(
        self,
        accelerator: Any,
        num_devices: int | None,
        net: str,
        dataset: str,
        manual_dir: str | None,
        processes: dict[str, Any] | None = None,
    ) -> None:
        devices = start_devices(accelerator, num_devices, processes)
        _data(net, TrainConfig(dataset=dataset, manual_dir=manual_dir))
        self.about = {
            "devices": accelerators.describe(devices),
            "platform": devices[0].platform,
            "num_devices": len(devices),
            "num_processes": jax.process_count() if processes else 1,
            "process_index": jax.process_index(),
            "versions": versions(),
        }
