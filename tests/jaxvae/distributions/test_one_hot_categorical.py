"""Discrete latents as one-hot rows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.distributions import OneHotCategorical
from tests.files import golden

GOLDEN = golden("latents")
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
NUM_DRAWS = 20_000

log_prob = jax.jit(lambda p, value: p.log_prob(value))
slopes = jax.jit(jax.value_and_grad(lambda p, value: p.log_prob(value)))


def random_logits(seed, shape=(2, 3)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


# Golden


@pytest.mark.parametrize("precision", TOLERANCE)
def test_log_prob_is_the_golden_value(precision):
    for case in GOLDEN["one_hot_categorical"]:
        with jax.enable_x64(precision == "float64"):
            logits = jnp.asarray(case["logits"], float)
            value = jnp.eye(logits.shape[1])[jnp.asarray(case["states"])]
            result = log_prob(OneHotCategorical(logits), value)
        assert (result.shape, result.dtype.name) == ((), precision)
        error = abs(float(result) - case["log_prob"])
        assert error <= TOLERANCE[precision] * case["terms"], case["name"]


# Law


def test_masses_of_the_support_add_up_to_one():
    p = OneHotCategorical(random_logits(0))
    support = p.enumerate_support()
    assert support.shape == (9, 2, 3)
    np.testing.assert_array_equal(support.sum(2), jnp.ones((9, 2)))
    assert len(np.unique(support.reshape(9, -1), axis=0)) == 9
    np.testing.assert_array_equal(support[1], jnp.eye(3)[jnp.array([0, 1])])
    masses = jnp.exp(jax.vmap(p.log_prob)(support))
    np.testing.assert_allclose(masses.sum(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(jnp.tensordot(masses, support, 1), p.mean(), rtol=1e-5)


def test_draws_have_the_probabilities():
    p = OneHotCategorical(random_logits(1))
    draw = jax.jit(jax.vmap(p.sample))
    x = np.asarray(draw(jax.random.split(jax.random.key(0), NUM_DRAWS)), np.float64)
    np.testing.assert_array_equal(x.sum(2), np.ones((NUM_DRAWS, 2)))
    mean = np.asarray(p.mean(), np.float64)
    assert (np.abs(x.mean(0) - mean) <= 4 * np.sqrt(mean * (1 - mean) / NUM_DRAWS)).all()
    both = np.einsum("na,nb->ab", x[:, 0], x[:, 1]) / NUM_DRAWS  # latents are independent
    chances = np.outer(mean[0], mean[1])
    assert (np.abs(both - chances) <= 4 * np.sqrt(chances * (1 - chances) / NUM_DRAWS)).all()


def test_a_constant_added_to_a_latents_logits_changes_nothing():
    logits, value = random_logits(2), jnp.eye(3)[:2]
    moved = logits + jnp.array([[1.0], [-2.0]])
    results = [log_prob(OneHotCategorical(side), value) for side in (logits, moved)]
    np.testing.assert_allclose(*results, rtol=2e-6)


# Transform


def test_gradient_is_value_less_probability():
    logits, value = random_logits(3), jnp.eye(3)[:2]
    gradient = slopes(OneHotCategorical(logits), value)[1].logits
    expected = value - OneHotCategorical(logits).mean()
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-6)


def test_values_and_gradients_are_finite_at_extremes():
    logits = jnp.array([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4]])
    for states in ([0, 2], [1, 0]):
        value = jnp.eye(3)[jnp.array(states)]
        chex.assert_tree_all_finite(slopes(OneHotCategorical(logits), value))


@pytest.mark.slow
def test_eager_jit_and_vmap_agree():
    batch, value = OneHotCategorical(random_logits(4, (5, 2, 3))), jnp.eye(3)[:2]
    eager = [OneHotCategorical(logits).log_prob(value) for logits in batch.logits]
    vmapped = jax.jit(jax.vmap(lambda p: p.log_prob(value)))(batch)
    np.testing.assert_allclose(vmapped, np.stack(eager), rtol=1e-6)


def test_bfloat16_logits_give_a_float32_mass():
    low = random_logits(5).astype(jnp.bfloat16)
    results = [
        log_prob(OneHotCategorical(side), jnp.eye(3)[:2]) for side in (low, low.astype(jnp.float32))
    ]
    assert results[0].dtype == jnp.float32
    np.testing.assert_allclose(*results, rtol=1e-6)


# Failure


def test_too_many_states_are_rejected():
    assert OneHotCategorical(jnp.zeros((8, 4))).enumerate_support().shape == (2**16, 8, 4)
    match = r"there must be at most 65536 states, but 9 latents of 4 have 4\^9\. Use fewer"
    with pytest.raises(ValueError, match=match):
        OneHotCategorical(jnp.zeros((9, 4))).enumerate_support()


def test_a_value_of_another_shape_is_rejected():
    match = r"value has shape \(2,\), this OneHotCategorical has event shape \(2, 3\)\. Reshape"
    with pytest.raises(ValueError, match=match):
        OneHotCategorical(jnp.zeros((2, 3))).log_prob(jnp.zeros(2))
