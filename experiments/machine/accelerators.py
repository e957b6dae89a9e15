"""Choose devices before jax is first used, and verify the choice."""

import contextlib
import os
from collections import Counter
from typing import TYPE_CHECKING

from experiments.flags.config import Accelerator
from experiments.flags.processes import Processes
from experiments.machine.processes import join

if TYPE_CHECKING:
    import jax

MOST_DEVICES = 256
"""Most devices of one process; starting a simulated one costs milliseconds and megabytes."""


DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
"""XLA flag without which a GPU's convolutions add in any order, and each start may choose other
algorithms."""


def start(
    accelerator: Accelerator,
    num_devices: int | None,
    processes: Processes | None = None,
    *,
    deterministic: bool = False,
) -> list["jax.Device"]:
    """Start jax's backend and return the devices to run on.

    Args:
        accelerator: auto, cpu, gpu or tpu.
        num_devices: number of devices per process; None: all. CPU devices are simulated.
        processes: flags of several processes; None: this process runs alone.
        deterministic: whether a GPU must compute the same bits each time.

    Returns:
        Devices of all processes, those of process 0 first.

    Raises:
        ValueError: the requested devices are missing; the text says which ones exist.
    """
    if num_devices is not None and not 1 <= num_devices <= MOST_DEVICES:
        raise ValueError(f"--num-devices must be from 1 to {MOST_DEVICES}, got {num_devices}.")
    several = processes is not None and processes.distributed
    if accelerator in ("auto", "cpu") and (several or (num_devices or 1) > 1):
        # Simulated devices wait for each other in threads: with too few threads they deadlock (see
        # experiments/README.md). A single device is slower with more threads than cores.
        os.environ.setdefault("PJRT_NPROC", "32")
    flags = os.environ.get("XLA_FLAGS", "")
    if deterministic and accelerator in ("auto", "gpu") and DETERMINISTIC not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC}".strip()
    import jax

    # By default TPUs and recent GPUs multiply float32 matrices in bfloat16 and tf32.
    jax.config.update("jax_default_matmul_precision", "highest")
    # With the older threefry, the i-th key of a split depends on how many keys are split off.
    jax.config.update("jax_threefry_partitionable", True)
    if accelerator == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if num_devices is not None:
        # jax raises if it has already started, as in a notebook or a test: use what it has.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", num_devices)
    if processes is not None and processes.distributed:
        join(processes)
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"jax could not start (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}): "
            f"{str(error) or 'no reason given'}. Unset JAX_PLATFORMS, or use --accelerator=cpu."
        ) from error
    return _chosen(devices, accelerator, num_devices)


def _chosen(
    devices: list["jax.Device"], accelerator: Accelerator, num_devices: int | None
) -> list["jax.Device"]:
    """Take `num_devices` devices of each process, after checking that they exist."""
    from jaxvae.checkpoints.hosts import Stopped, raise_on_all_processes

    counts = Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        each = ", ".join(f"process {index} has {counts[index]}" for index in sorted(counts))
        raise Stopped(
            f"every process must have the same number of devices; {each}. Start all of them with "
            "the same --num-devices."
        ) from None
    with raise_on_all_processes():
        if accelerator not in ("auto", devices[0].platform):
            raise ValueError(
                f"--accelerator={accelerator}, but jax finds only {describe(devices)}. Install "
                f"jaxvae with the extra for your hardware (README.md), or use --accelerator="
                f"{devices[0].platform}."
            )
        here = [device for device in devices if device.process_index == devices[0].process_index]
        if num_devices is not None and num_devices > len(here):
            raise ValueError(f"--num-devices={num_devices}, but there are only {describe(here)}.")
    return [
        device
        for index in sorted(counts)
        for device in [one for one in devices if one.process_index == index][:num_devices]
    ]


def describe(devices: list["jax.Device"]) -> str:
    """Describe devices in words, such as "cpu x 8"."""
    kinds = Counter(device.device_kind for device in devices)
    processes = len({device.process_index for device in devices})
    text = ", ".join(f"{kind} x {count}" for kind, count in kinds.items())
    return f"{text} in {processes} processes" if processes > 1 else text
