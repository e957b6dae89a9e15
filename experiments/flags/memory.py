"""Check that the sizes in the flags fit this machine's memory, before anything is allocated."""

import math
import os
from typing import Any

import jax

from experiments.flags.config import TrainConfig

BYTES = 4
"""Size of a float32."""


def memory_bytes() -> int | None:
    """Size of this machine's memory; None if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def require_room(config: TrainConfig, values: int) -> None:
    """Check that no single array that the flags size is larger than the memory.

    Args:
        config: the flags.
        values: number of values in one example.

    Raises:
        ValueError: an array is too large; one line that names the flag.
    """
    # The latents of a feature map are counted later, by `require_room_for`.
    latents = config.latent_dim if config.latent_channels is None else config.latent_channels
    learned = config.num_components if config.prior in ("mixture", "vamp") else 0
    sizes = {
        "--batch-size": config.batch_size * values,
        "--num-components": learned * latents,
        "--num-samples": config.num_samples * latents,
        "--num-intervals": config.num_samples * config.num_intervals,
    }
    if config.posterior == "full_covariance":
        sizes[_flag_of_latents(config)] = latents**2
    if config.prior == "vamp":
        sizes["--num-components"] = learned * values
    for flag, size in sizes.items():
        name = flag.removeprefix("--").replace("-", "_")
        _require(BYTES * size, f"{flag}={getattr(config, name)}", flag)


def require_room_for(state: Any, config: TrainConfig) -> None:
    """Check that the training state is not larger than the memory.

    Args:
        state: a pytree of `jax.ShapeDtypeStruct`s.
        config: the flags.

    Raises:
        ValueError: it is; one line that names the flags to lower.
    """
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    widths = "--channels or --blocks" if config.model == "resnet" else "--hidden"
    _require(size, "parameters and optimizer state", f"{_flag_of_latents(config)}, {widths}")


def _flag_of_latents(config: TrainConfig) -> str:
    return "--latent-dim" if config.latent_channels is None else "--latent-channels"


def _require(size: int, what: str, flags: str) -> None:
    most = memory_bytes()
    if most is not None and size > most:
        raise ValueError(
            f"{what} must fit in memory; {size / 2**30:,.0f} GiB are more than the "
            f"{most / 2**30:,.0f} GiB of this machine. Lower {flags}."
        )
