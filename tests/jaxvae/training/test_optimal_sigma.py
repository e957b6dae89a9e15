"""One training step with the batch's optimal sigma, and the sigma of evaluation."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxvae
from jaxvae import Gaussian
from jaxvae.bounds import posterior_samples
from jaxvae.models.builders import mlp_vae
from jaxvae.training.sigma import MIN_VARIANCE
from jaxvae.training.state import init_state
from jaxvae.training.step import make_train_step
from tests.steps import (
    BATCH,
    DIM,
    LIKELIHOODS,
    RATE,
    SGD,
    bad_batch,
    batch,
    counters,
    first_state,
    flat,
    jitted,
    linear,
    parts,
    toy,
)


def squared_error(params, keys, xs):
    """Mean squared error per dimension of the optimal-sigma model, at the bounds' draws."""
    vae = toy("optimal sigma")

    def of_one(key, x):
        z, _ = posterior_samples(jax.random.split(key)[1], vae.encode(params, x), 1)
        return jnp.square(x - vae.decode(params, z[0]).mean()).mean()

    return jax.vmap(of_one)(keys, xs).mean()


jitted_error = jax.jit(squared_error)


def test_an_optimal_sigma_is_that_of_the_batch():
    """At that sigma a log-likelihood is -D/2 log(2 pi e MSE), for any network."""
    state = first_state("optimal sigma")
    _, metrics = jitted("optimal sigma", SGD)(state, *batch())
    error = jitted_error(state.params, *batch())
    expected = -0.5 * DIM * np.log(2 * np.pi * np.e * error)
    np.testing.assert_allclose(metrics["reconstruction"], expected, rtol=1e-5)


def test_evaluation_has_the_running_sigma():
    """It is the mean of all steps at first, and an exponential average of 0.99 from step 100."""
    step, state, errors = jitted("optimal sigma", SGD), first_state("optimal sigma"), []
    for t in range(3):
        errors.append(jitted_error(state.params, *batch(t)))
        state, _ = step(state, *batch(t))
        np.testing.assert_allclose(state.squared_error, np.mean(errors), rtol=1e-5)
        log_scale = state.evaluation_params()["likelihood"]["log_scale"]
        np.testing.assert_allclose(log_scale, 0.5 * np.log(np.mean(errors)), rtol=1e-5)
    state = state._replace(step=jnp.int32(500), squared_error=jnp.float32(2.0))
    expected = 0.99 * 2.0 + 0.01 * jitted_error(state.params, *batch())
    np.testing.assert_allclose(step(state, *batch())[0].squared_error, expected, rtol=1e-5)


def test_a_skipped_first_step_does_not_count_for_sigma():
    step = jitted("optimal sigma", SGD)
    state, _ = step(first_state("optimal sigma"), *bad_batch())
    new, _ = step(state, *batch())
    error = jitted_error(state.params, *batch())
    np.testing.assert_allclose(new.squared_error, error, rtol=1e-5)


def test_other_likelihoods_have_no_running_error():
    assert jitted("bernoulli", SGD)(first_state(), *batch())[0].squared_error == 0


def test_gradient_at_an_optimal_sigma_is_the_total_derivative():
    """By the envelope theorem, the dependence of the optimal sigma on the network adds nothing."""
    vae, state, (keys, xs) = toy("optimal sigma"), first_state("optimal sigma"), batch()
    new, _ = jitted("optimal sigma", SGD)(state, keys, xs)

    def mean_elbo(params):
        log_scale = 0.5 * jnp.log(squared_error(params, keys, xs))

        def of_one(key, x):
            decode = lambda z: Gaussian(vae.decode(params, z).mean(), log_scale)
            functions = parts(vae, params) | {"decode": decode}
            return jaxvae.elbo(jax.random.split(key)[1], x, **functions).elbo

        return jax.vmap(of_one)(keys, xs).mean()

    total = jax.jit(jax.grad(mean_elbo))(state.params)
    for part in ("encoder", "decoder"):
        slope = flat(total[part])
        moved = flat(new.params[part]) - flat(state.params[part])
        tolerance = 1e-5 * np.abs(slope).max()
        np.testing.assert_allclose(moved / RATE, slope, rtol=0, atol=tolerance)


def test_an_optimal_sigma_has_a_floor():
    """A decoder without any error would have sigma = 0."""
    vae = linear()._replace(
        init=lambda key: {"bias": jnp.zeros(DIM), "log_scale": jnp.zeros(())},
        decode=lambda params, z: Gaussian(params["bias"], params["log_scale"]),
        with_log_scale=lambda params, log_scale: params | {"log_scale": log_scale},
    )
    state = init_state(vae, SGD, jax.random.key(0))
    step = jax.jit(make_train_step(vae, SGD))
    new, metrics = step(state, batch()[0], jnp.zeros((BATCH, DIM)))
    assert counters(new) == (1, 0, 0)
    np.testing.assert_allclose(new.params["log_scale"], 0.5 * np.log(MIN_VARIANCE), rtol=1e-6)
    expected = -0.5 * DIM * np.log(2 * np.pi * MIN_VARIANCE)
    np.testing.assert_allclose(metrics["reconstruction"], expected, rtol=1e-5)


def test_an_optimal_sigma_costs_no_second_forward_pass():
    """XLA merges it with that of the bound, by XLA's count of operations, to 2 %."""

    def operations(likelihood):
        vae = mlp_vae(data_shape=(20,), latent_dim=2, hidden=(20,), **LIKELIHOODS[likelihood])

        def inputs(key):
            return init_state(vae, SGD, key), jax.random.split(key, BATCH), jnp.zeros((BATCH, 20))

        shapes = jax.eval_shape(inputs, jax.random.key(0))
        compiled = jax.jit(make_train_step(vae, SGD)).lower(*shapes).compile()
        return compiled.cost_analysis()["flops"]

    assert operations("optimal sigma") < 1.02 * operations("learned sigma")
