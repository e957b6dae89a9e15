"""Bare loop: a net written by hand for whole batches, trained under `lax.scan`, with no extras.

The command's overhead is measured against this loop, which has no keys per example, metrics,
averages, guard, files or evaluation. The 8-bit pixels stay on the device.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import logsumexp

from experiments.benchmark import weights
from experiments.benchmark.layers import decoder_logits, encoder_outputs
from experiments.benchmark.nets import Net
from experiments.benchmark.setting import Setting, make_setting
from experiments.benchmark.timed import Snapshots, Timed, Work
from experiments.machine.keys import root_key
from jaxvae.distributions import soft_clamp
from jaxvae.training.batches import Batches

CHUNK_STEPS = 20
"""Steps per scan."""
Draw = Callable[[jax.Array, tuple[int, ...]], jax.Array]


class Draws(NamedTuple):
    """Functions that draw a batch's random numbers: (key, shape with the batch first) -> array."""

    uniform: Draw
    normal: Draw


class State(NamedTuple):
    """State carried from step to step."""

    step: jax.Array
    params: Any
    opt_state: Any


def one_draw_for_the_batch() -> Draws:
    """Draw with one call and one key for the whole batch."""
    return Draws(jax.random.uniform, jax.random.normal)


def one_key_per_example() -> Draws:
    """Draw every row with its own key, so that numbers do not depend on the number of devices."""

    def per_row(draw: Draw, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.vmap(lambda key: draw(key, shape[1:]))(jax.random.split(key, shape[0]))

    return Draws(partial(per_row, jax.random.uniform), partial(per_row, jax.random.normal))


def negative_bound(
    params: Any, net: Net, draws: Draws, key: jax.Array, pixels: jax.Array
) -> jax.Array:
    """Negative mean bound of a batch of 8-bit pixels [B, H, W, 1]: [] nats."""
    key_data, key_latents = jax.random.split(key)
    probabilities = pixels.reshape(len(pixels), -1).astype(jnp.float32) / 255
    x = (draws.uniform(key_data, probabilities.shape) < probabilities).astype(jnp.float32)
    loc, log_scale = jnp.split(encoder_outputs(params, net, x), 2, axis=1)
    log_scale = soft_clamp(log_scale)
    shape = (len(x), net.num_samples, net.latent_dim)
    eps = draws.normal(key_latents, shape)
    z = loc[:, None] + jnp.exp(log_scale)[:, None] * eps
    logits = decoder_logits(params, net, z.reshape(-1, net.latent_dim))
    logits = logits.reshape(*shape[:2], -1)
    log_likelihood = (x[:, None] * logits - jax.nn.softplus(logits)).sum(-1)
    if net.num_samples == 1:
        kl = 0.5 * (jnp.square(loc) + jnp.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1)
        return -(log_likelihood[:, 0] - kl).mean()
    log_ratio = 0.5 * (jnp.square(eps) - jnp.square(z)).sum(-1) + log_scale.sum(1)[:, None]
    log_weights = log_likelihood + log_ratio
    return -(logsumexp(log_weights, axis=1) - jnp.log(net.num_samples)).mean()


def make_scan(
    net: Net, optimizer: optax.GradientTransformation, draws: Draws
) -> Callable[..., tuple[State, jax.Array]]:
    """Make the function (state, key, pixels [N, ...], indices [steps, B]) -> (state, losses)."""

    def scan(
        state: State, key: jax.Array, pixels: jax.Array, indices: jax.Array
    ) -> tuple[State, jax.Array]:
        def step(state: State, rows: jax.Array) -> tuple[State, jax.Array]:
            loss, gradients = jax.value_and_grad(negative_bound)(
                state.params, net, draws, jax.random.fold_in(key, state.step), pixels[rows]
            )
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            return State(state.step + 1, params, opt_state), loss

        return jax.lax.scan(step, state, indices)

    return jax.jit(scan, donate_argnums=0)


class Loop:
    """The loop with its data on one device.

    Args:
        setting: net, data and device.
        draws: functions that draw the random numbers.
    """

    def __init__(self, setting: Setting, draws: Draws) -> None:
        self._setting = setting
        self._optimizer = optax.adam(setting.config.learning_rate)
        self._scan = make_scan(setting.net, self._optimizer, draws)
        device = setting.devices[0]
        self._pixels = jax.device_put(setting.dataset.train, device)
        self._initial = setting.initial_params()
        self._restart(self._initial, 0)

    def advance(self, calls: int) -> None:
        """Train for `calls` chunks of steps, and wait for the last."""
        for _ in range(calls):
            self._steps(CHUNK_STEPS)
        jax.block_until_ready(self._state)

    def train(self, initial: str, snapshots: Snapshots, seed: int) -> None:
        """Train from given weights, and write the weights after the given numbers of steps."""
        self._restart(weights.as_tree(weights.load(initial), self._initial), seed)
        for steps, path in snapshots:
            while self._done < steps:
                self._steps(min(CHUNK_STEPS, steps - self._done))
            weights.save(path, weights.named(self._state.params))

    def _restart(self, params: Any, seed: int) -> None:
        # A copy: the scan donates its state, and the loop restarts from these parameters.
        params = jax.tree.map(jnp.copy, jax.device_put(params, self._setting.devices[0]))
        state = State(jnp.zeros((), jnp.int32), params, self._optimizer.init(params))
        self._state = jax.device_put(state, self._setting.devices[0])
        self._key = jax.device_put(root_key(seed), self._setting.devices[0])
        self._batches = Batches(self._setting.dataset.train, self._setting.net.batch_size, seed, 1)
        self._done = 0

    def _steps(self, count: int) -> None:
        rows = self._batches.indices(self._done, count).reshape(count, -1)
        indices = jax.device_put(rows.astype(np.int32), self._setting.devices[0])
        self._state, _ = self._scan(self._state, self._key, self._pixels, indices)
        self._done += count


def prepare(
    net: str, segment_seconds: float, per_example_keys: bool = False, **where: Any
) -> Timed:
    """Prepare the loop as a variant on one device; `where`: arguments of `make_setting`."""
    setting = make_setting(net, **where)
    loop = Loop(setting, one_key_per_example() if per_example_keys else one_draw_for_the_batch())
    started = time.perf_counter()
    loop.advance(1)
    about = {"compile_seconds": time.perf_counter() - started}
    work = Work(loop.advance, CHUNK_STEPS, setting.net.batch_size, about, loop.train)
    return Timed(work, segment_seconds)
