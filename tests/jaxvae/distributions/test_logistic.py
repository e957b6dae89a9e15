"""Discretized logistics and their mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.distributions import DiscretizedLogistic, DiscretizedLogisticMixture
from tests.observations import (
    GOLDEN,
    TOLERANCE,
    assert_computed_in_float32,
    assert_draws_have_the_masses,
    assert_golden,
    assert_made_by_script,
    assert_near,
    assert_rejected,
    assert_transforms_agree,
    draws,
    log_probs,
    log_probs_and_gradient,
    masses,
)

LOC = jnp.array([-100.0, 0.0, 3.3, 2.5, 7.0, 100.0])
LOG_SCALE = jnp.array([-20.0, -1.0, 0.5, 20.0, 2.0, 1.0])
NAMES = {
    "discretized_logistic": (DiscretizedLogistic, ["loc", "log_scale"]),
    "discretized_logistic_mixture": (DiscretizedLogisticMixture, ["logits", "loc", "log_scale"]),
}
mean = jax.jit(lambda p: p.mean())


def mixture(num_values=8):
    """A mixture of two components with all combinations of weights and scales."""
    logits = jnp.array([[0.0, 0.5], [1e4, -1e4], [-1.0, 1.0]])
    loc = jnp.array([[1.0, 6.0], [3.3, 100.0], [-100.0, 4.0]])
    log_scale = jnp.array([[-1.0, 0.5], [0.3, 0.0], [-20.0, 20.0]])
    return DiscretizedLogisticMixture(logits, loc, log_scale, num_values)


# Golden


@pytest.mark.parametrize("family", NAMES)
def test_golden_file_is_what_its_script_makes(family):
    assert_made_by_script(family)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("family", NAMES)
def test_log_prob_and_gradient_are_the_golden_values(family, precision):
    assert_golden(family, *NAMES[family], precision)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_mean_is_the_golden_value(precision):
    golden = GOLDEN["discretized_logistic"]["mean"]
    with jax.enable_x64(precision == "float64"):
        parameters = [jnp.asarray(golden[name], float) for name in ("loc", "log_scale")]
        result = mean(DiscretizedLogistic(*parameters))
    assert_near(result, golden["mean"], golden["terms"], precision, "mean")


# Law


@pytest.mark.parametrize("num_values", [1, 2, 256])
def test_masses_add_up_to_one_and_give_the_mean(num_values):
    p = DiscretizedLogistic(LOC, LOG_SCALE, num_values)
    mass = masses(p, num_values)
    # Errors of the masses: 1e-6 of terms up to 20, the logarithm of the widest scale.
    np.testing.assert_allclose(mass.sum(0), 1.0, rtol=20e-6)
    expected = np.arange(num_values) @ mass
    np.testing.assert_allclose(mean(p), expected, rtol=20e-6, atol=1e-30)


def test_masses_of_a_mixture_are_those_of_its_components():
    p = mixture()
    parts = [masses(DiscretizedLogistic(p.loc[:, m], p.log_scale[:, m], 8), 8).T for m in range(2)]
    weights = np.array([[0.37754067, 0.62245933], [1.0, 0.0], [0.11920292, 0.88079708]])
    expected = np.einsum("dm,mdv->vd", weights, np.stack(parts))
    mass = masses(p, 8)
    np.testing.assert_allclose(mass, expected, rtol=30e-6, atol=1e-30)
    np.testing.assert_allclose(mass.sum(0), 1.0, rtol=30e-6)
    np.testing.assert_allclose(mean(p), np.arange(8) @ expected, rtol=30e-6)


@pytest.mark.parametrize("p", [DiscretizedLogistic(LOC, LOG_SCALE, 8), mixture()], ids=NAMES)
def test_draws_have_the_masses(p):
    assert_draws_have_the_masses(draws(p), masses(p, 8))


def test_far_off_values_pull_the_location_towards_them():
    """Far away, a difference of sigmoids is 0 and its logarithm would have no gradient."""
    log_scale = jnp.array([-20.0, -3.0, 0.0, -20.0, -3.0, 0.0])
    p = DiscretizedLogistic(jnp.array([-100.0] * 3 + [355.0] * 3), log_scale)
    value, gradient = log_probs_and_gradient(p, jnp.full(6, 128.0))
    scale = np.exp(np.asarray(log_scale, np.float64))
    assert np.isfinite(value).all()
    sign = np.array([1, 1, 1, -1, -1, -1])
    np.testing.assert_allclose(gradient.loc, sign / scale, rtol=1e-6)
    # log p is -(distance - 1/2) / s, but for a constant: the gradient is the distance over s.
    distance = np.array([228, 228, 228, 227, 227, 227]) - 0.5
    np.testing.assert_allclose(gradient.log_scale, distance / scale, rtol=5e-3)


# Transform


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32, jnp.bfloat16])
def test_whole_numbers_of_any_type_are_values(dtype):
    p, x = mixture(), jnp.array([1, 7, 0])
    np.testing.assert_array_equal(log_probs(p, x.astype(dtype)), log_probs(p, x.astype(float)))


@pytest.mark.parametrize("kind", NAMES)
def test_transforms_agree(kind):
    if kind == "discretized_logistic":
        p, x = DiscretizedLogistic(LOC[1:], jnp.array(0.5), 8), jnp.array([0.0, 1.0, 5, 7, 7])
    else:
        p, x = mixture(), jnp.array([1.0, 7.0, 0.0])
    assert_transforms_agree(p, x, terms=150.0, thorough=False)


def test_bfloat16_is_computed_in_float32():
    assert_computed_in_float32(mixture(), jnp.array([1.0, 7.0, 0.0]))


def test_draws_pass_no_gradient():
    gradient = jax.jit(jax.grad(lambda p: p.sample(jax.random.key(0)).sum()))(mixture())
    assert all((leaf == 0.0).all() for leaf in jax.tree.leaves(gradient))


# Failure


def test_a_value_of_another_shape_is_rejected():
    zeros = jnp.zeros((4, 4, 1))
    assert_rejected(DiscretizedLogistic(zeros, zeros), (4, 4, 1), "DiscretizedLogistic")
    zeros = jnp.zeros((4, 4, 1, 5))
    p = DiscretizedLogisticMixture(zeros, zeros, zeros)
    assert_rejected(p, (4, 4, 1), "DiscretizedLogisticMixture")


def test_parameters_of_other_shapes_are_rejected():
    message = r"log_scale must be a scalar or have loc's shape \(6,\), got \(1,\)\. Reshape"
    with pytest.raises(ValueError, match=message):
        DiscretizedLogistic(LOC, jnp.zeros(1)).log_prob(LOC)
    message = r"must have the same shape \[\*D, M\], got \[\(6,\), \(6,\), \(\)\]\. Reshape them"
    with pytest.raises(ValueError, match=message):
        DiscretizedLogisticMixture(LOC, LOC, jnp.zeros(())).sample(jax.random.key(0))


@pytest.mark.parametrize("value", [-1.0, 256.0])
def test_a_value_out_of_range_has_no_mass(value):
    p = DiscretizedLogistic(jnp.zeros(2), jnp.zeros(()))
    assert p.log_prob(jnp.array([0.0, value])) == -jnp.inf
