"""The maximum mean discrepancy, against scikit-learn's kernels and a closed form."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import Gaussian
from jaxvae.regularizers.mmd import mmd, mmd_squared
from tests.files import golden

GOLDEN = golden("regularizers")
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}

discrepancy = jax.jit(mmd_squared, static_argnames=("kernel", "scales", "statistic"))


def samples(seed=0, size=5, dim=3):
    """Two samples: [size, dim] and [size - 1, dim], at least float32."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(size, dim)), 0.5 + rng.normal(size=(size - 1, dim))
    return jnp.asarray(x, float), jnp.asarray(y, float)


# Golden


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("case", GOLDEN["mmd"], ids=lambda case: case["name"])
def test_discrepancy_is_the_golden_value(case, precision):
    with jax.enable_x64(precision == "float64"):
        x, y = jnp.asarray(case["x"], float), jnp.asarray(case["y"], float)
        names = {name: case[name] for name in ("kernel", "statistic")}
        result = discrepancy(x, y, **names)
    assert (result.shape, result.dtype.name) == ((), precision)
    assert abs(float(result) - case["value"]) <= TOLERANCE[precision] * case["terms"]


# Law


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_the_mean_over_samples_is_the_closed_form(shift):
    """N(0, 1) against N(shift, 1) under exp(-d^2 / 2): within 4 standard errors, of 2,000 times.

    E k = (1 + 4/2)^(-1/2) exp(-m^2 / (2 + 4)) for a difference of mean m and variance 2.
    """
    draws = jax.random.normal(jax.random.key(0), (2, 2_000, 10, 1))
    one = lambda x, y: mmd_squared(x, y, kernel="rbf", scales=(1.0,))
    values = np.asarray(jax.jit(jax.vmap(one))(draws[0], draws[1] + shift), np.float64)
    expected = 2 / 3**0.5 * (1 - np.exp(-(shift**2) / 6))
    assert abs(values.mean() - expected) < 4 * values.std() / 2_000**0.5
    assert values.min() < 0 or shift


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_the_biased_statistic_is_a_squared_distance(kernel):
    """It is never negative, and 0 between a sample and itself, where the unbiased one is < 0."""
    options = {"kernel": kernel, "statistic": "biased"}
    for seed in range(20):
        assert discrepancy(*samples(seed), **options) > 0
    x, _ = samples()
    assert abs(discrepancy(x, x, **options)) < 1e-5
    assert discrepancy(x, x, kernel=kernel) < -0.1


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_samples_may_be_swapped_shifted_together_and_reordered(kernel):
    x, y = samples()
    expected = discrepancy(x, y, kernel=kernel)
    np.testing.assert_allclose(discrepancy(y, x, kernel=kernel), expected, rtol=1e-5, atol=1e-6)
    moved = discrepancy(x[::-1] + 3, y + 3, kernel=kernel)
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-5)


def test_the_regularizer_compares_with_draws_of_the_prior():
    """There are as many draws as rows of the batch, different for each key."""
    x, _ = samples(size=64)
    prior = Gaussian(jnp.full(3, 4.0), jnp.full(3, -1.0))
    regularizer = mmd(2.0, kernel="rbf", scales=(1.0, 3.0))
    assert regularizer.init(jax.random.key(0)) == ()
    assert regularizer.update is None
    values = []
    penalty = jax.jit(regularizer.penalty)
    for key in jax.random.split(jax.random.key(1), 2):
        draws = jax.vmap(prior.sample)(jax.random.split(key, 64))
        values.append(penalty((), key, None, x, prior))
        expected = 2 * discrepancy(x, draws, kernel="rbf", scales=(1.0, 3.0))
        np.testing.assert_allclose(values[-1], expected, rtol=1e-5)
    assert values[0] != values[1]
    from_prior = jax.vmap(prior.sample)(jax.random.split(jax.random.key(2), 64))
    assert penalty((), key, None, from_prior, prior) < 0.1 * values[0]


# Transform


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_gradients_are_finite_differences(kernel):
    """In float64, at central differences of 1e-5."""
    with jax.enable_x64(True):
        x, y = samples()
        step_x, step_y = samples(7)

        def along(t):
            return discrepancy(x + t * step_x, y + t * step_y, kernel=kernel)

        slope = (along(1e-5) - along(-1e-5)) / 2e-5
        np.testing.assert_allclose(jax.grad(along)(0.0), slope, rtol=1e-7)


@pytest.mark.slow
def test_eager_is_jit_and_bfloat16_is_computed_in_float32():
    x, y = samples()
    eager = mmd_squared(x, y, scales=(0.5,))
    np.testing.assert_allclose(eager, discrepancy(x, y, scales=(0.5,)), rtol=1e-5)
    narrow = [leaf.astype(jnp.bfloat16) for leaf in (x, y)]
    wide = [leaf.astype(jnp.float32) for leaf in narrow]
    result = discrepancy(*narrow)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, discrepancy(*wide), rtol=1e-5)


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_values_and_gradients_are_finite_at_extremes(kernel):
    """At equal points, and 1e10 apart."""
    x, y = jnp.zeros((3, 2)), jnp.array([[0.0, 0.0], [1e10, -1e10]])
    function = jax.jit(jax.value_and_grad(partial(mmd_squared, kernel=kernel), argnums=(0, 1)))
    chex.assert_tree_all_finite(function(x, y))


# Failure


def test_a_sample_of_one_draw_is_rejected():
    x, y = samples()
    with pytest.raises(ValueError, match=r"mmd compares .* at least 2, got shape \(1, 3\)"):
        mmd_squared(x[:1], y)
    with pytest.raises(ValueError, match=r"mmd compares .* got shape \(1, 3\)"):
        mmd_squared(x, y[:1])
    with pytest.raises(ValueError, match=r"mmd compares .* got shape \(1, 3\)"):
        mmd(1.0).penalty((), jax.random.key(0), None, x[:1], Gaussian.standard(3))


def test_latents_of_different_sizes_are_rejected():
    x, y = samples()
    with pytest.raises(ValueError, match="same number of latents, got 3 and 2"):
        mmd_squared(x, y[:, :2])


def test_unknown_names_are_rejected():
    x, y = samples()
    with pytest.raises(ValueError, match="kernel must be rbf or imq, got 'gaussian'"):
        mmd_squared(x, y, kernel="gaussian")
    with pytest.raises(ValueError, match="statistic must be unbiased or biased, got 'u'"):
        mmd_squared(x, y, statistic="u")
