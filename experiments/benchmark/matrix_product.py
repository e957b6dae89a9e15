"""What the hardware can do: the product of two square matrices of float32."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark.nets import LARGE_PRODUCT
from experiments.benchmark.timed import Timed, Work
from experiments.machine import accelerators


def prepare(segment_seconds: float, accelerator: Any, num_devices: int | None) -> Timed:
    """2048 x 2048 times 2048 x 2048 as a variant: a step is a product, on one device."""
    device = accelerators.start(accelerator, num_devices)[0]
    left, right = jax.device_put(
        (jnp.ones(LARGE_PRODUCT, jnp.float32), jnp.ones(LARGE_PRODUCT, jnp.float32)), device
    )
    product = jax.jit(lambda a, b: jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST))
    jax.block_until_ready(product(left, right))

    def advance(calls: int) -> None:
        for _ in range(calls):
            result = product(left, right)
        jax.block_until_ready(result)

    return Timed(Work(advance, 1, 1, {}), segment_seconds)
