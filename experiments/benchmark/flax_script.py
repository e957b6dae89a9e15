"""A VAE as a plain Flax script writes it: batched modules, optax, one jitted call per step."""

import math
import time
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmark import weights
from experiments.benchmark.nets import CONV_WIDTH, DATA_SIDE, Net
from experiments.benchmark.setting import Setting, make_setting
from experiments.benchmark.timed import Snapshots, Timed, Work
from experiments.machine.keys import root_key
from jaxvae.distributions import soft_clamp


class Encoder(nn.Module):
    """x [B, H, W, 1] -> loc and log_scale [B, Z]."""

    net: Net

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encode a batch."""
        net = self.net
        activation = nn.tanh if net.activation == "tanh" else nn.relu
        widths = net.hidden
        if net.model == "conv":
            for channels in net.hidden:
                x = activation(nn.Conv(channels, (4, 4), strides=(2, 2), padding=1)(x))
            widths = (CONV_WIDTH,)
        x = x.reshape(len(x), -1)
        for width in widths:
            x = activation(nn.Dense(width)(x))
        loc, log_scale = jnp.split(nn.Dense(2 * net.latent_dim)(x), 2, axis=1)
        return loc, soft_clamp(log_scale)


class Decoder(nn.Module):
    """z [N, Z] -> logits [N, H, W, 1]."""

    net: Net

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """Decode a batch of latents."""
        net = self.net
        activation = nn.tanh if net.activation == "tanh" else nn.relu
        if net.model == "mlp":
            for width in reversed(net.hidden):
                z = activation(nn.Dense(width)(z))
            return nn.Dense(DATA_SIDE**2)(z).reshape(-1, DATA_SIDE, DATA_SIDE, 1)
        side = DATA_SIDE // 2 ** len(net.hidden)
        z = activation(nn.Dense(CONV_WIDTH)(z))
        h = activation(nn.Dense(side * side * net.hidden[-1])(z))
        h = h.reshape(-1, side, side, net.hidden[-1])
        for channels in reversed(net.hidden[:-1]):
            h = activation(nn.ConvTranspose(channels, (4, 4), strides=(2, 2))(h))
        h = nn.ConvTranspose(1, (4, 4), strides=(2, 2), use_bias=False)(h)
        return h + self.param("output_bias", nn.initializers.zeros, (DATA_SIDE, DATA_SIDE, 1))[None]


def loss_of(params: Any, net: Net, key: jax.Array, images: jax.Array) -> jax.Array:
    """Minus the mean bound of a batch of grey levels in [0, 1] [B, H, W, 1]."""
    key_data, key_latents = jax.random.split(key)
    x = jax.random.bernoulli(key_data, images).astype(jnp.float32)
    apply_encoder: Any = Encoder(net).apply
    loc, log_scale = apply_encoder(params["encoder"], x)
    eps = jax.random.normal(key_latents, (net.num_samples, *loc.shape))
    z = loc[None] + jnp.exp(log_scale)[None] * eps
    apply_decoder: Any = Decoder(net).apply
    logits = apply_decoder(params["decoder"], z.reshape(-1, net.latent_dim))
    logits = logits.reshape(net.num_samples, *x.shape)
    targets = jnp.broadcast_to(x, logits.shape)
    log_likelihood = -optax.sigmoid_binary_cross_entropy(logits, targets).sum((2, 3, 4))
    if net.num_samples == 1:
        kl = -0.5 * (1 + 2 * log_scale - jnp.square(loc) - jnp.exp(2 * log_scale)).sum(1)
        return -(log_likelihood[0] - kl).mean()
    log_ratio = 0.5 * (jnp.square(eps) - jnp.square(z)).sum(2) + log_scale.sum(1)[None]
    bounds = jax.nn.logsumexp(log_likelihood + log_ratio, axis=0) - math.log(net.num_samples)
    return -bounds.mean()


class Script:
    """Training loop of the script: a permutation of the rows, one call of the step per batch."""

    _key: jax.Array
    _params: Any
    _opt_state: Any

    def __init__(self, setting: Setting) -> None:
        net, self._setting = setting.net, setting
        self._optimizer = optax.adam(setting.config.learning_rate)
        self._images = setting.dataset.train

        @partial(jax.jit, donate_argnums=(0, 1))
        def train_step(
            params: Any, opt_state: Any, key: jax.Array, pixels: jax.Array
        ) -> tuple[Any, Any, jax.Array]:
            images = pixels.astype(jnp.float32) / 255
            loss, gradients = jax.value_and_grad(loss_of)(params, net, key, images)
            updates, opt_state = self._optimizer.update(gradients, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, loss

        self._train_step = train_step
        self._initial = setting.initial_params()
        self._restart(self._initial, 0)

    def advance(self, steps: int) -> None:
        """Train for a number of steps, and wait for the last."""
        for _ in range(steps):
            self._key, key = jax.random.split(self._key)
            self._params, self._opt_state, _ = self._train_step(
                self._params, self._opt_state, key, self._next_batch()
            )
        jax.block_until_ready(self._params)

    def train(self, initial: str, snapshots: Snapshots, seed: int) -> None:
        """Train from given weights, and write the weights after the given numbers of steps."""
        self._restart(weights.as_tree(weights.load(initial), self._initial), seed)
        done = 0
        for steps, path in snapshots:
            self.advance(steps - done)
            done = steps
            weights.save(path, weights.named(self._params))

    def _restart(self, params: Any, seed: int) -> None:
        self._key = root_key(seed)
        self._rng, self._order = np.random.default_rng(seed), np.zeros(0, np.int64)
        # A copy: the step donates its arguments, and the script restarts from these parameters.
        params = jax.tree.map(jnp.copy, jax.device_put(params, self._setting.devices[0]))
        self._params = params
        self._opt_state = self._optimizer.init(self._params)

    def _next_batch(self) -> np.ndarray:
        if len(self._order) < self._setting.net.batch_size:
            self._order = self._rng.permutation(len(self._images))
        rows, self._order = np.split(self._order, [self._setting.net.batch_size])
        return self._images[rows]


def prepare(net: str, segment_seconds: float, **where: Any) -> Timed:
    """Prepare the script as a variant on one device; `where`: arguments of `make_setting`."""
    setting = make_setting(net, **where)
    script = Script(setting)
    started = time.perf_counter()
    script.advance(1)
    about = {"compile_seconds": time.perf_counter() - started}
    work = Work(script.advance, 1, setting.net.batch_size, about, script.train)
    return Timed(work, segment_seconds)
