"""Peak of the hardware: the product of two square float32 matrices."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark.nets import LARGE_PRODUCT
from experiments.benchmark.timed import Timed, Work
from experiments.machine import accelerators


def prepare(segment_seconds: float, accelerator: Any, num_devices: int | None) -> Timed:
    """Prepare the product of two 2048 x 2048 matrices on one device as a variant; one a step."""
    device = accelerators.start(accelerator, num_devices)[0]
    left, right = jax.device_put(
        (jnp.ones(LARGE_PRODUCT, jnp.float32), jnp.ones(LARGE_PRODUCT, jnp.float32)), device
    )
    # HIGHEST: plain float32, also where the default precision rounds inputs (TPU, TF32).
    product = jax.jit(lambda a, b: jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST))
    jax.block_until_ready(product(left, right))

    def advance(calls: int) -> None:
        for _ in range(calls):
            result = product(left, right)
        jax.block_until_ready(result)

    return Timed(Work(advance, 1, 1, {}), segment_seconds)
