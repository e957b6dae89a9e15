"""Independent categorical entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.distributions import Bernoulli, Categorical
from tests.observations import (
    EPS,
    TOLERANCE,
    assert_computed_in_float32,
    assert_draws_have_the_masses,
    assert_golden,
    assert_made_by_script,
    assert_rejected,
    assert_transforms_agree,
    draws,
    log_probs,
    masses,
)

LOGITS = jnp.array([[0.0, 1.0, -2.0, 3.0], [1e4, -1e4, 0.0, 1e4]])

# Golden


@pytest.mark.slow
def test_golden_file_is_what_its_script_makes():
    assert_made_by_script("categorical")


@pytest.mark.parametrize("precision", TOLERANCE)
def test_log_prob_and_gradient_are_the_golden_values(precision):
    assert_golden("categorical", Categorical, ["logits"], precision)


# Law


def test_masses_add_up_to_one_and_give_the_mean():
    mass = masses(Categorical(LOGITS), 4)
    np.testing.assert_allclose(mass.sum(0), 1.0, rtol=8 * EPS)
    mean = np.arange(4.0) @ mass
    np.testing.assert_allclose(Categorical(LOGITS).mean(), mean, rtol=8 * EPS)


def test_draws_have_the_masses():
    p = Categorical(LOGITS)
    assert_draws_have_the_masses(draws(p), masses(p, 4))


def test_categorical_of_two_values_is_bernoulli():
    logits = jnp.array([-1e4, -2.0, 0.0, 30.0])
    p = Categorical(jnp.stack([jnp.zeros(4), logits], axis=-1))
    for x in (jnp.zeros(4), jnp.ones(4)):
        expected = Bernoulli(logits).log_prob_per_entry(x)
        np.testing.assert_allclose(log_probs(p, x), expected, rtol=4 * EPS, atol=30 * EPS)
    np.testing.assert_allclose(p.mean(), Bernoulli(logits).mean(), rtol=4 * EPS, atol=1e-38)


def test_a_constant_added_to_the_logits_changes_nothing():
    x = jnp.array([3.0, 0.0])
    shifted = log_probs(Categorical(LOGITS + jnp.array([[8.0], [-8.0]])), x)
    np.testing.assert_allclose(shifted, log_probs(Categorical(LOGITS), x), rtol=8 * EPS)


# Transform


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32, jnp.bfloat16])
def test_whole_numbers_of_any_type_are_values(dtype):
    x = jnp.array([3, 0])
    result = log_probs(Categorical(LOGITS), x.astype(dtype))
    expected = log_probs(Categorical(LOGITS), x.astype(jnp.float32))
    np.testing.assert_array_equal(result, expected)


@pytest.mark.slow
def test_transforms_agree():
    assert_transforms_agree(Categorical(LOGITS), jnp.array([3.0, 0.0]), terms=10.0)


def test_bfloat16_is_computed_in_float32():
    assert_computed_in_float32(Categorical(LOGITS), jnp.array([3.0, 0.0]))


def test_draws_pass_no_gradient():
    gradient = jax.grad(lambda logits: Categorical(logits).sample(jax.random.key(0)).sum())
    assert (gradient(LOGITS) == 0.0).all()


# Failure


def test_a_value_of_another_shape_is_rejected():
    assert_rejected(Categorical(jnp.zeros((4, 4, 1, 256))), (4, 4, 1), "Categorical")


@pytest.mark.parametrize("value", [-1, 3])
def test_a_value_out_of_range_has_no_mass(value):
    assert Categorical(jnp.zeros((2, 3))).log_prob(jnp.array([0, value])) == -jnp.inf
