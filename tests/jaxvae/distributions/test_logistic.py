"""Discretized logistics and their mixtures."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logsumexp

from jaxvae import Gaussian, elbo
from jaxvae.distributions import (
    ColorLogisticMixture,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
)
from tests.observations import (
    GOLDEN,
    TOLERANCE,
    assert_computed_in_float32,
    assert_draws_have_the_masses,
    assert_golden,
    assert_made_by_script,
    assert_mean_of_draws,
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


def colors(num_values=4, scale=0.5):
    """Two pixels of three channels with two components and coefficients of either sign."""
    rng = np.random.default_rng(4)
    top = num_values - 1
    return ColorLogisticMixture(
        jnp.array([[0.0, 0.7], [-1.0, 1.0]]),
        jnp.asarray(top * rng.uniform(0.35, 0.65, (2, 3, 2)), jnp.float32),
        jnp.asarray(np.log(scale) + 0.2 * rng.normal(size=(2, 3, 2)), jnp.float32),
        jnp.asarray(rng.uniform(-0.9, 0.9, (2, 3, 2)), jnp.float32),
        num_values,
    )


def log_masses_of_colors(p, x):
    """log p of each pixel of x [D, 3] by differences of the CDF, in float64."""
    logits, loc, log_scale, k = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(p))
    centered = np.asarray(x, np.float64)[..., None] - (p.num_values - 1) / 2
    mu = loc.copy()
    mu[:, 1] += k[:, 0] * centered[:, 0]
    mu[:, 2] += k[:, 1] * centered[:, 0] + k[:, 2] * centered[:, 1]
    x = np.asarray(x)[..., None]
    above = np.where(x == p.num_values - 1, 1, expit((x + 0.5 - mu) / np.exp(log_scale)))
    below = np.where(x == 0, 0, expit((x - 0.5 - mu) / np.exp(log_scale)))
    log_weights = logits - logsumexp(logits, axis=-1, keepdims=True)
    return logsumexp(log_weights + np.log(above - below).sum(1), axis=-1)


# Golden


@pytest.mark.slow
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


def test_log_prob_of_colors_is_that_of_the_formula():
    p = colors()
    for x in itertools.product(range(4), repeat=3):
        x = jnp.array([x, x[::-1]])
        # Terms up to 20: 1e-6 of them in float32.
        np.testing.assert_allclose(log_probs(p, x), log_masses_of_colors(p, x), atol=2e-5)


def test_draws_of_colors_have_the_joint_masses():
    p, every = colors(), np.array(list(itertools.product(range(4), repeat=3)))
    mass = np.exp([log_masses_of_colors(p, np.stack([x, x])) for x in every])
    np.testing.assert_allclose(mass.sum(0), 1.0, rtol=1e-12)
    index = draws(p) @ np.array([16, 4, 1])  # number of the triple in `every`
    assert_draws_have_the_masses(index, mass)


def test_colors_of_one_channel_are_a_mixture_for_each_entry():
    p = mixture()
    leaves = (p.loc[:, None], p.log_scale[:, None], jnp.zeros((3, 0, 2)))
    color = ColorLogisticMixture(p.logits, *leaves, p.num_values)
    x = jnp.array([1.0, 7.0, 0.0])
    np.testing.assert_array_equal(log_probs(color, x[:, None]), log_probs(p, x))
    np.testing.assert_array_equal(mean(color)[:, 0], mean(p))


def test_mean_of_colors_is_that_of_draws_where_the_ends_are_far():
    p = colors(256, scale=4.0)
    p = ColorLogisticMixture(p.logits, p.loc, p.log_scale, 0.3 * p.coefficients, 256)
    x = draws(p)
    assert 0 < x.min() < x.max() < 255
    assert_mean_of_draws(x, np.asarray(mean(p)), x.var(0))


@pytest.mark.slow
def test_a_mask_hides_whole_pixels_of_colors():
    p, x = colors(), jnp.array([[0.0, 1.0, 3.0], [2.0, 2.0, 1.0]])
    one = Gaussian.standard(1)
    bound = lambda mask: elbo(
        jax.random.key(0), x, encode=lambda x: one, decode=lambda z: p, prior=one, mask=mask
    )
    result = bound(jnp.array([True, False])).reconstruction
    np.testing.assert_allclose(result, log_masses_of_colors(p, x)[0], atol=2e-5)
    with pytest.raises(ValueError, match=r"entries of ColorLogisticMixture have shape \(2,\)"):
        bound(jnp.ones((2, 3), bool))


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


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*NAMES, "colors"])
def test_transforms_agree(kind):
    if kind == "discretized_logistic":
        p, x = DiscretizedLogistic(LOC[1:], jnp.array(0.5), 8), jnp.array([0.0, 1.0, 5, 7, 7])
    elif kind == "colors":
        p, x = colors(), jnp.array([[0.0, 1.0, 3.0], [2.0, 2.0, 1.0]])
    else:
        p, x = mixture(), jnp.array([1.0, 7.0, 0.0])
    assert_transforms_agree(p, x, terms=150.0, thorough=False)


def test_bfloat16_is_computed_in_float32():
    assert_computed_in_float32(mixture(), jnp.array([1.0, 7.0, 0.0]))
    assert_computed_in_float32(colors(), jnp.array([[0.0, 1.0, 3.0], [2.0, 2.0, 1.0]]))


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
    assert_rejected(colors(), (2, 3), "ColorLogisticMixture")


def test_parameters_of_other_shapes_are_rejected():
    message = r"log_scale must be a scalar or have loc's shape \(6,\), got \(1,\)\. Reshape"
    with pytest.raises(ValueError, match=message):
        DiscretizedLogistic(LOC, jnp.zeros(1)).log_prob(LOC)
    message = r"must have the same shape \[\*D, M\], got \[\(6,\), \(6,\), \(\)\]\. Reshape them"
    with pytest.raises(ValueError, match=message):
        DiscretizedLogisticMixture(LOC, LOC, jnp.zeros(())).sample(jax.random.key(0))
    p = colors()
    message = r"logits must be \[\*D, M\], .* got \(\(2, 2\), \(2, 3, 2\), \(2, 3, 2\), \(2, 2\)\)"
    with pytest.raises(ValueError, match=message):
        ColorLogisticMixture(p.logits, p.loc, p.log_scale, p.coefficients[:, 0]).mean()
    with pytest.raises(ValueError, match=r"logits must be \[\*D, M\]"):
        ColorLogisticMixture(p.logits, p.loc[:, 0], p.log_scale, p.coefficients).mean()


@pytest.mark.parametrize("value", [-1.0, 256.0])
def test_a_value_out_of_range_has_no_mass(value):
    p = DiscretizedLogistic(jnp.zeros(2), jnp.zeros(()))
    assert p.log_prob(jnp.array([0.0, value])) == -jnp.inf
