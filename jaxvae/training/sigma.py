"""Optimal sigma^2 of a Gaussian likelihood, set before each step and averaged after it.

At the optimal sigma the derivative of the likelihood with respect to sigma is zero. So the gradient
with sigma fixed at the batch's optimum is the total gradient, and sigma itself needs none.

Ref: Rybkin, Daniilidis & Levine, Simple and Effective VAE Training with Calibrated Decoders, 2021.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxvae.bounds import over_draws, posterior_samples
from jaxvae.distributions import Gaussian
from jaxvae.models.vae import VAE, Params

SIGMA_RATE = 10.0
"""Usual learning rate of a learned sigma, as a multiple of that of the networks."""
MIN_VARIANCE = 1e-6
"""Smallest optimal sigma^2, in the square of the unit of the data that the model sees."""


def squared_error(vae: VAE, params: Params, keys: jax.Array, xs: Any) -> jax.Array:
    """Mean squared error per dimension of a batch, at the first draw of each bound: [].

        1/D sum_d ((x_d - f_d(z)) / unit_d)^2

    The unit is the scale of p(x|z) at log sigma = 0: 1, or that of `jaxvae.in_units`.

    Args:
        vae: a model with sigma="optimal".
        params: parameters of the model.
        keys: [B] keys of the bounds.
        xs: [B, ...] examples.
    """
    assert vae.with_log_scale is not None
    at_unit = vae.with_log_scale(params, jnp.zeros((), jax.tree.leaves(xs)[0].dtype))

    def of_one(key: jax.Array, example: Any) -> jax.Array:
        given, x = vae.of_example(example)
        z, _ = posterior_samples(key, given.encode(params, x), 1)
        # Mapped over the draws as in the bound, so that XLA merges the two forward passes.
        errors = over_draws(lambda z: _error(given.decode(at_unit, z), x), z)
        return jnp.square(errors[0]).mean()

    return jax.vmap(of_one)(keys, xs).mean()


def _error(p: Any, x: jax.Array) -> jax.Array:
    """Difference of x and the mean of p, in the unit of each entry.

    Args:
        p: p(x|z) at log sigma = 0, so that its scale is the unit.
        x: the example.
    """
    error = x - p.mean()
    # Without `jaxvae.in_units` the scale has no axes and is exp(0) = 1.
    if not isinstance(p, Gaussian) or jnp.ndim(p.log_scale) == 0:
        return error
    return error * jnp.exp(-jnp.broadcast_to(p.log_scale, error.shape))


def with_optimal_sigma(vae: VAE, params: Params, error: jax.Array) -> Params:
    """Set sigma to the root of this squared error; return params as is if sigma is not optimal.

    Args:
        vae: the model.
        params: parameters of the model.
        error: [] as returned by `squared_error`.
    """
    if vae.with_log_scale is None:
        return params
    return vae.with_log_scale(params, 0.5 * jnp.log(jnp.maximum(error, MIN_VARIANCE)))


def running_error(running: jax.Array, error: jax.Array, steps: jax.Array) -> jax.Array:
    """Running mean of the squared error: over all steps at first, then about the last 100.

    Args:
        running: [] mean before this step.
        error: [] error of this step.
        steps: [] number of earlier steps, skipped ones excluded.
    """
    return running + jnp.maximum(1 / (steps + 1), 0.01) * (error - running)


def with_sigma_rate(
    optimizer: optax.GradientTransformation, rate: float
) -> optax.GradientTransformation:
    """Multiply the updates of a likelihood's log sigma; the optimizer's state keeps its structure.

    Adam-like optimizers move each parameter by about the learning rate per step: a log sigma that
    is 4.6 from its optimum would take 4,600 steps of 0.001.

    Args:
        optimizer: any optax transformation.
        rate: factor on the updates.
    """
    if rate == 1:
        return optimizer

    def scaled(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
        names = [getattr(entry, "key", None) for entry in path]
        return rate * update if names == ["likelihood", "log_scale"] else update

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(updates, state, params)
        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformation(optimizer.init, update)
