"""The optimal sigma^2 of a Gaussian likelihood: set before a step, averaged after it.

At the maximum over sigma of the likelihood its derivative by sigma is zero. So the gradient at the
batch's optimal value, held fixed, is the total one, and sigma itself needs none.

Ref: Rybkin, Daniilidis & Levine, Simple and Effective VAE Training with Calibrated Decoders, 2021.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxvae.bounds import posterior_samples
from jaxvae.distributions import Gaussian
from jaxvae.models.vae import VAE, Params

MIN_VARIANCE = 1e-6
"""Floor of an optimal sigma^2, in the unit of the data that the model sees squared."""


def squared_error(vae: VAE, params: Params, keys: jax.Array, xs: jax.Array) -> jax.Array:
    """Mean squared error per dimension of a batch, at the first draw that the bound makes: [].

        1/D sum_d ((x_d - f_d(z)) / unit_d)^2

    The unit is the scale of p(x|z) at log sigma = 0: 1, or that of `jaxvae.in_units`.

    Args:
        vae: a model whose sigma is the optimal one.
        params: of it.
        keys: [B] of the bounds.
        xs: [B, ...].
    """
    assert vae.with_log_scale is not None
    at_unit = vae.with_log_scale(params, jnp.zeros((), xs.dtype))

    def of_one(key: jax.Array, x: jax.Array) -> jax.Array:
        z, _ = posterior_samples(key, vae.encode(params, x), 1)
        # Over the axis of draws as in the bound, so that XLA merges the two forward passes.
        errors = jax.vmap(lambda z: _error(vae.decode(at_unit, z), x))(z)
        return jnp.square(errors[0]).mean()

    return jax.vmap(of_one)(keys, xs).mean()


def _error(p: Any, x: jax.Array) -> jax.Array:
    """x less the mean of p, over the scale of each entry where p, a Gaussian, has one."""
    error = x - p.mean()
    if not isinstance(p, Gaussian) or jnp.ndim(p.log_scale) == 0:  # 1: the data's own unit
        return error
    return error * jnp.exp(-jnp.broadcast_to(p.log_scale, error.shape))


def with_optimal_sigma(vae: VAE, params: Params, error: jax.Array) -> Params:
    """Return parameters with the sigma of this squared error; themselves if sigma is not optimal.

    Args:
        vae: the model.
        params: of it.
        error: [] as `squared_error` returns it.
    """
    if vae.with_log_scale is None:
        return params
    return vae.with_log_scale(params, 0.5 * jnp.log(jnp.maximum(error, MIN_VARIANCE)))


def running_error(running: jax.Array, error: jax.Array, steps: jax.Array) -> jax.Array:
    """Return the running mean of the squared error: over all steps at first, then the last 100.

    Args:
        running: [] before this step.
        error: [] of this step.
        steps: [] that changed the state before this one.
    """
    return running + jnp.maximum(1 / (steps + 1), 0.01) * (error - running)
