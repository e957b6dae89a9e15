"""Finite mixtures, such as the mixture-of-Gaussians prior."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.distributions import Bernoulli, Gaussian, Mixture, NoClosedForm, RelaxedCategorical
from tests.files import golden

GOLDEN = golden("latents")
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
NUM_DRAWS = 20_000

log_prob = jax.jit(lambda p, value: p.log_prob(value))
slopes = jax.jit(jax.value_and_grad(lambda p, value: p.log_prob(value), argnums=(0, 1)))
draws = jax.jit(lambda p, keys: jax.vmap(p.sample)(keys))


def random_mixture(seed, size=3, dim=2):
    draw = np.random.default_rng(seed).normal
    loc, log_scale = jnp.asarray(3 * draw(size=(size, dim))), jnp.asarray(draw(size=(size, dim)))
    return Mixture(jnp.asarray(draw(size=size)), Gaussian(loc, 0.5 * log_scale))


# Golden


@pytest.mark.parametrize("precision", TOLERANCE)
def test_values_are_the_golden_ones(precision):
    for case in GOLDEN["mixture"]:
        with jax.enable_x64(precision == "float64"):
            names = ("logits", "loc", "log_scale", "x")
            logits, loc, log_scale, x = [jnp.asarray(case[name], float) for name in names]
            p = Mixture(logits, Gaussian(loc, log_scale))
            result, mean = log_prob(p, x), p.mean()
        assert (result.shape, result.dtype.name) == ((), precision)
        error = abs(float(result) - case["log_prob"])
        assert error <= TOLERANCE[precision] * case["terms"], case["name"]
        atol = TOLERANCE[precision] * np.abs(case["loc"]).max()
        np.testing.assert_allclose(mean, case["mean"], rtol=0, atol=atol)


# Law


def test_density_integrates_to_one():
    """By the trapezoid rule, at steps of half the smallest scale and 6 of the largest out."""
    p = random_mixture(0, dim=1)
    scales = np.exp(np.asarray(p.components.log_scale))
    reach = np.abs(p.components.loc).max() + 6 * scales.max()
    grid = np.arange(-reach, reach, 0.5 * scales.min())
    densities = np.exp(jax.vmap(p.log_prob)(jnp.asarray(grid)[:, None]))
    total = densities.sum(dtype=np.float64) * 0.5 * scales.min()
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)


def test_draws_have_the_moments():
    p = random_mixture(1)
    z = np.asarray(draws(p, jax.random.split(jax.random.key(0), NUM_DRAWS)), np.float64)
    assert (np.abs(z.mean(0) - p.mean()) <= 4 * z.std(0) / np.sqrt(NUM_DRAWS)).all()
    weights = np.asarray(jax.nn.softmax(p.logits), np.float64)
    second = np.square(p.components.loc) + np.exp(2 * np.asarray(p.components.log_scale))
    errors = np.square(z).std(0) / np.sqrt(NUM_DRAWS)
    assert (np.abs(np.square(z).mean(0) - weights @ second) <= 4 * errors).all()


def test_a_mixture_of_one_or_of_equal_components_is_that_component():
    single, x = Gaussian(jnp.array([1.0, -1.0]), jnp.array([0.5, 0.0])), jnp.ones(2)
    for size in (1, 4):
        components = jax.tree.map(lambda leaf, n=size: jnp.stack([leaf] * n), single)
        p = Mixture(jnp.arange(1.0, size + 1), components)
        np.testing.assert_allclose(log_prob(p, x), single.log_prob(x), rtol=1e-6)
        np.testing.assert_allclose(p.mean(), single.mean(), rtol=1e-6)


def test_components_may_be_of_any_family_and_event():
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(3, 2, 4)))
    p = Mixture(jnp.array([0.0, 1.0, -1.0]), jax.vmap(Bernoulli)(logits))
    x = draws(p, jax.random.split(jax.random.key(1), 1))[0]
    assert x.shape == p.mean().shape == (2, 4)
    masses = jnp.stack([jnp.exp(Bernoulli(row).log_prob(x)) for row in logits])
    expected = jnp.log(jnp.sum(jax.nn.softmax(p.logits) * masses))
    np.testing.assert_allclose(log_prob(p, x), expected, rtol=1e-5)


def test_draws_follow_their_component_and_not_the_logits():
    p, key = random_mixture(3), jax.random.key(2)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(p.sample(key))))(p)
    np.testing.assert_array_equal(gradient.logits, jnp.zeros(3))
    np.testing.assert_allclose(np.sort(gradient.components.loc, 0), [[0, 0], [0, 0], [1, 1]])


# Transform


def test_gradients_are_finite_differences():
    """Central differences at h err by h^2 f''' / 6 + eps f / h: 1e-9 of f at h = 1e-5."""
    h = 1e-5
    with jax.enable_x64(True):
        sides, direction = (random_mixture(4), jnp.ones(2)), (random_mixture(5), jnp.ones(2))
        moved = lambda t: jax.tree.map(lambda a, b: a + t * b, sides, direction)
        value, gradient = slopes(*sides)
        slope = sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), gradient, direction)))
        difference = (log_prob(*moved(h)) - log_prob(*moved(-h))) / (2 * h)
        assert abs(slope - difference) <= 1e-7 * (abs(value) + abs(slope))


def test_values_and_gradients_are_finite_at_extremes():
    loc = jnp.array([[100.0], [-100.0], [0.0]])
    for log_scale in (-20.0, 20.0):
        p = Mixture(jnp.array([1e4, 0.0, -1e4]), Gaussian(loc, jnp.full((3, 1), log_scale)))
        chex.assert_tree_all_finite(slopes(p, jnp.array([-100.0])))


@pytest.mark.slow
def test_eager_jit_and_vmap_agree():
    rows = [random_mixture(seed) for seed in range(3)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    eager = np.stack([row.log_prob(jnp.ones(2)) for row in rows])
    np.testing.assert_allclose([log_prob(row, jnp.ones(2)) for row in rows], eager, rtol=2e-6)
    vmapped = jax.jit(jax.vmap(lambda p: p.log_prob(jnp.ones(2))))(batch)
    np.testing.assert_allclose(vmapped, eager, rtol=2e-6)


def test_bfloat16_parameters_give_a_float32_density():
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_mixture(6))
    high = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low)
    assert log_prob(low, jnp.ones(2)).dtype == jnp.float32
    np.testing.assert_allclose(log_prob(low, jnp.ones(2)), log_prob(high, jnp.ones(2)), rtol=2e-6)


# Failure


@pytest.mark.parametrize("shape", [(2,), (3, 1), ()])
def test_components_of_another_number_are_rejected(shape):
    p = Mixture(jnp.zeros(shape), Gaussian(jnp.zeros((3, 2)), jnp.zeros((3, 2))))
    with pytest.raises(ValueError, match=r"Mixture: logits must be \[M\] and every array of"):
        p.log_prob(jnp.zeros(2))


def test_a_value_of_another_shape_is_rejected_by_the_components():
    with pytest.raises(ValueError, match=r"value has shape \(3,\), this Gaussian has event shape"):
        random_mixture(7).log_prob(jnp.zeros(3))


def test_a_mixture_has_no_mean_if_its_components_have_none():
    p = Mixture(jnp.zeros(2), RelaxedCategorical(jnp.zeros((2, 1, 3)), jnp.ones(2)))
    with pytest.raises(NoClosedForm, match="the expectation of RelaxedCategorical"):
        p.mean()
