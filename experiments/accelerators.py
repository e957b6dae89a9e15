"""Choosing devices, before jax is used for the first time, and verifying the choice."""

import contextlib
import os
from collections import Counter
from typing import TYPE_CHECKING

from experiments.config import Accelerator

if TYPE_CHECKING:
    import jax


def start(accelerator: Accelerator, num_devices: int | None) -> list["jax.Device"]:
    """The devices to run on; starts jax's backend.

    Args:
        accelerator: auto, cpu, gpu or tpu.
        num_devices: how many; None: all there are. CPU devices are simulated.

    Raises:
        ValueError: what was asked for is not there; the message says what is.
    """
    if accelerator in ("auto", "cpu") and (num_devices or 1) > 1:
        # Simulated devices that wait for each other need threads to wait in (BUILD.md). One
        # device alone is slower with more threads than cores.
        os.environ.setdefault("PJRT_NPROC", "32")
    import jax

    if accelerator == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if num_devices is not None:
        # Refused once jax has started, in a notebook or a test: then what is there must do.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", num_devices)
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"jax could not start (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}): "
            f"{str(error) or 'no reason given'}. Unset JAX_PLATFORMS, or use --accelerator=cpu."
        ) from error
    if accelerator not in ("auto", devices[0].platform):
        raise ValueError(
            f"--accelerator={accelerator}, but jax finds only {describe(devices)}. Install "
            f"jaxvae with the extra for your hardware (BUILD.md), or use --accelerator="
            f"{devices[0].platform}."
        )
    if num_devices is not None and num_devices > len(devices):
        raise ValueError(f"--num-devices={num_devices}, but there are only {describe(devices)}.")
    return devices[:num_devices]


def describe(devices: list["jax.Device"]) -> str:
    """What the devices are, in words: "cpu x 8"."""
    kinds = Counter(device.device_kind for device in devices)
    return ", ".join(f"{kind} x {count}" for kind, count in kinds.items())
