"""A linear VAE is probabilistic PCA, whose optimal parameters are known (Tipping & Bishop 1999)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import jaxvae
from jaxvae.evaluation import count_active_units
from jaxvae.testing import LinearGaussian

LATENT_DIM = 10
CLOSE = 0.05
"""Nats by which a trained model may miss the closed-form maximum."""


@pytest.fixture(scope="module")
def digits():
    """The 8 x 8 digits as vectors in [0, 1], and the eigenvalues of their covariance, falling."""
    xs = load_digits().data / 16
    return xs.astype(np.float32), np.linalg.eigvalsh(np.cov(xs.T, bias=True))[::-1]


def highest_log_likelihood(eigenvalues, latent_dim):
    """-1/2 (D log 2 pi + sum_(i<=Z) log l_i + (D - Z) log sigma^2 + D), sigma^2 the mean rest."""
    dim, rest = len(eigenvalues), eigenvalues[latent_dim:]
    log_det = np.log(eigenvalues[:latent_dim]).sum() + len(rest) * np.log(rest.mean())
    return -0.5 * (dim * np.log(2 * np.pi) + log_det + dim)


def trained(xs, *, num_steps, sigma):
    """A linear VAE and its parameters after that many steps on all of the data."""
    vae = jaxvae.mlp_vae(
        data_shape=(64,),
        latent_dim=LATENT_DIM,
        hidden=(),
        likelihood="gaussian",
        data_mean=xs.mean(0),
        data_scale=0.3,
        sigma=sigma,
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, num_steps))
    objective = partial(jaxvae.elbo, estimator="stl")
    train_step = jaxvae.make_train_step(vae, optimizer, objective=objective)

    @jax.jit
    def run(key, xs):
        keys = lambda i: jax.random.split(jax.random.fold_in(key, i), len(xs))
        step = lambda i, state: train_step(state, keys(i), xs)[0]
        return jax.lax.fori_loop(0, num_steps, step, jaxvae.init_state(vae, optimizer, key))

    return vae, run(jax.random.key(0), jnp.asarray(xs)).params


@pytest.mark.long
def test_a_linear_vae_reaches_the_highest_likelihood_and_never_passes_it(digits):
    xs, eigenvalues = digits
    vae, params = trained(xs, num_steps=4000, sigma="learned")
    layer = params["decoder"]["params"]["Dense_0"]
    log_scale = vae.decode(params, jnp.zeros(LATENT_DIM)).log_scale
    model = LinearGaussian(layer["kernel"].T, layer["bias"], log_scale)
    reached = np.asarray(jax.jit(jax.vmap(model.log_prob))(xs), np.float64).mean()
    highest = highest_log_likelihood(eigenvalues, LATENT_DIM)
    rounding = 1e-4  # of 64 terms of about one nat in float32
    assert highest - CLOSE <= reached <= highest + rounding


@pytest.mark.long
def test_a_fixed_sigma_collapses_the_latents_of_smaller_eigenvalues(digits):
    """Latent i carries l_i - sigma^2 if that is positive, and otherwise nothing."""
    xs, eigenvalues = digits
    kept = 4
    sigma = float(np.sqrt(eigenvalues[kept - 1 : kept + 1].mean()))
    vae, params = trained(xs, num_steps=2000, sigma=sigma)
    means = jax.jit(jax.vmap(lambda x: vae.encode(params, x).mean()))(xs)
    assert count_active_units(means) == kept
