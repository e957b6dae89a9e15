"""Build what trains a model from flags: bound, schedules, penalty, optimizer, microbatches."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxvae
from experiments.flags.config import TrainConfig
from experiments.machine.keys import root_key
from jaxvae import regularizers
from jaxvae.cpu.blocks import divisor_near
from jaxvae.models.builders import DEFAULT_CHANNELS
from jaxvae.models.vae import VAE
from jaxvae.regularizers import Regularizer
from jaxvae.training.sigma import SIGMA_RATE, with_sigma_rate
from jaxvae.training.step import Objective

NO_KERNELS = {"output_bias", "pseudo_inputs", "loc", "log_scale", "log_dispersion"}
"""Parameters with several axes that get no weight decay."""
ROWS_IN_CACHE = {"mlp": 1000, "conv": 64}
"""Model -> rows whose intermediate values fit in a CPU's cache."""
VALUES_OF_FIRST_LEVEL = 2**18
"""Values of the first level of a residual network that fit, with those computed from them."""
CYCLES = 4
"""Number of cycles of a cyclical beta."""


def rows_at_once(config: TrainConfig, platform: str, data_shape: tuple[int, ...]) -> int | None:
    """Number of rows whose gradient a device computes at once; None: all."""
    if config.rows_at_once is not None or platform != "cpu":
        return config.rows_at_once
    if config.model == "resnet":
        channels = (config.channels or DEFAULT_CHANNELS)[0]
        return max(1, VALUES_OF_FIRST_LEVEL // (math.prod(data_shape[:2]) * channels))
    return ROWS_IN_CACHE.get(config.model, 1000)


def evaluated_at_once(config: TrainConfig) -> int | None:
    """Number of examples that a device evaluates at once; None: all that it is given."""
    if not config.deterministic_reduction:
        return None
    return -(-config.eval_batch_size // config.virtual_shards)


def microbatch_size(
    config: TrainConfig, vae: VAE, num_devices: int, rows: int | None
) -> int | None:
    """Largest divisor of a device's batch with at most `rows` rows; None: the whole batch.

    Also None if the step needs the whole batch, or if the largest divisor is much smaller.
    """
    batch = config.batch_size // num_devices
    whole = config.regularizer != "none" or vae.with_log_scale is not None
    if rows is None or whole or batch * config.num_samples <= rows:
        return None
    most = max(1, rows // config.num_samples)
    if config.rows_at_once is None:
        return divisor_near(batch, most)
    return max(size for size in range(1, most + 1) if batch % size == 0)


def parts_of_batch(
    config: TrainConfig, vae: VAE, num_devices: int, rows: int | None
) -> dict[str, Any]:
    """Arguments of `make_train_step` that say how a step splits its batch."""
    if config.deterministic_reduction:
        return {"virtual_shards": config.virtual_shards}
    return {"microbatch_size": microbatch_size(config, vae, num_devices, rows)}


def make_objective(config: TrainConfig, rows: int | None = None) -> Objective:
    """Return the bound that the flags name; more than `rows` samples are computed in chunks."""
    bound: Any = {
        "elbo": partial(jaxvae.elbo, free_bits=config.free_bits),
        "iwae": jaxvae.iwae,
        "miwae": partial(jaxvae.miwae, num_groups=config.num_groups),
        "piwae": partial(jaxvae.piwae, num_groups=config.num_groups),
        "ciwae": partial(jaxvae.ciwae, elbo_weight=config.elbo_weight),
        "renyi": partial(jaxvae.renyi, alpha=config.alpha),
        "tvo": partial(jaxvae.tvo, num_intervals=config.num_intervals),
    }[config.objective]
    sample_chunk_size = rows if rows is not None and rows < config.num_samples else None
    return partial(
        bound,
        num_samples=config.num_samples,
        estimator=config.estimator,
        sample_chunk_size=sample_chunk_size,
    )


def make_schedules(config: TrainConfig) -> dict[str, optax.Schedule]:
    """Return optax schedules for the arguments of the objective that change: beta and capacity.

    Ref: Fu et al., Cyclical Annealing Schedule, 2019, NAACL; Burgess et al. 2018 (capacity).
    """
    schedules: dict[str, optax.Schedule] = {}
    beta, steps = config.beta, config.beta_warmup_steps
    if steps:
        schedules["beta"] = _rise(config.beta_schedule, beta, steps)
    elif beta != 1:
        schedules["beta"] = optax.constant_schedule(beta)
    if config.capacity is not None:
        schedules["capacity"] = optax.constant_schedule(config.capacity)
        if config.capacity_steps:
            schedules["capacity"] = _rise("linear", config.capacity, config.capacity_steps)
    return schedules


def _rise(shape: str, end: float, steps: int) -> optax.Schedule:
    """Rise from 0 to `end` over `steps`, then stay constant; "cyclical" repeats this four times."""
    if shape == "cosine":
        falling = optax.cosine_decay_schedule(end, steps)
        return lambda step: end - falling(step)
    linear = optax.linear_schedule(0.0, end, steps)
    if shape == "linear":
        return linear
    return optax.join_schedules([linear] * CYCLES, [2 * steps * i for i in range(1, CYCLES)])


def make_regularizer(config: TrainConfig, vae: VAE, num_data: int) -> Regularizer | None:
    """Return the penalty that the flags name, or None."""

    def num_latents() -> int:
        sample = lambda key: vae.prior(vae.init(key)).sample(key)
        return math.prod(jax.eval_shape(sample, root_key(0)).shape)

    weight = config.regularizer_weight
    makers: dict[str, Callable[[], Regularizer]] = {
        "total_correlation": lambda: regularizers.total_correlation(weight, num_data=num_data),
        "dip_i": lambda: regularizers.dip("i", off_diagonal=weight, diagonal=10 * weight),
        "dip_ii": lambda: regularizers.dip("ii", off_diagonal=weight, diagonal=weight),
        "mmd": lambda: regularizers.mmd(weight),
        "density_ratio": lambda: regularizers.density_ratio(weight, latent_dim=num_latents()),
    }
    return None if config.regularizer == "none" else makers[config.regularizer]()


def make_optimizer(config: TrainConfig, num_steps: int) -> optax.GradientTransformation:
    """Return the optimizer that the flags describe.

    Args:
        config: the flags.
        num_steps: step at which a falling schedule ends if --decay-steps is not given.
    """
    updates = lambda steps: -(-steps // config.accumulate_steps)  # schedules count updates
    decay_steps = updates(config.decay_steps or num_steps)
    peak, warmup = config.learning_rate, updates(config.warmup_steps)
    start = updates(config.schedule_start or 0)
    length = max(decay_steps - start - warmup, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, length),
        "linear": optax.linear_schedule(peak, 0.0, length),
    }[config.schedule]
    rate = after
    if warmup:
        rate = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])
    if start:
        rate = _shifted(rate, start)
    matrices = lambda params: jax.tree_util.tree_map_with_path(_is_kernel, params)
    optimizer = {
        "adam": lambda: optax.adam(rate),
        "adamw": lambda: optax.adamw(rate, weight_decay=config.weight_decay, mask=matrices),
        "adamax": lambda: optax.adamax(rate),
        "sgd": lambda: optax.sgd(rate),
    }[config.optimizer]()
    if config.learns_sigma:
        optimizer = with_sigma_rate(optimizer, config.sigma_rate or SIGMA_RATE)
    if config.gradient_clip is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(config.gradient_clip), optimizer)
    if config.accumulate_steps > 1:
        steps = optax.MultiSteps(optimizer, config.accumulate_steps)
        return steps.gradient_transformation()
    return optimizer


def _shifted(schedule: optax.Schedule, start: int) -> optax.Schedule:
    """Shift a schedule to begin at update `start`; before that it has its initial value.

    The optimizer may still count fewer than `start` updates, since it does not count skipped steps.
    """
    return lambda count: schedule(jnp.maximum(count - start, 0))


def _is_kernel(path: tuple[Any, ...], leaf: jax.Array) -> bool:
    return jnp.ndim(leaf) > 1 and getattr(path[-1], "key", None) not in NO_KERNELS
