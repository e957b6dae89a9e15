"""Categorical latents relaxed to the inside of the simplex."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.distributions import Gaussian, NoClosedForm, RelaxedCategorical, mean_of
from tests.files import golden

GOLDEN = golden("latents")
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
NUM_DRAWS = 20_000

log_prob = jax.jit(lambda p, value: p.log_prob(value))
slopes = jax.jit(jax.value_and_grad(lambda p, value: p.log_prob(value), argnums=(0, 1)))


def relaxed(seed, temperature, shape=(1, 3)):
    logits = np.random.default_rng(seed).normal(size=shape)
    return RelaxedCategorical(jnp.asarray(logits), jnp.array(temperature))


# Golden


@pytest.mark.parametrize("precision", TOLERANCE)
def test_log_prob_is_the_golden_value(precision):
    for case in GOLDEN["relaxed_categorical"]:
        with jax.enable_x64(precision == "float64"):
            names = ("logits", "temperature", "x")
            logits, temperature, x = [jnp.asarray(case[name], float) for name in names]
            result = log_prob(RelaxedCategorical(logits, temperature), x)
        assert (result.shape, result.dtype.name) == ((), precision)
        error = abs(float(result) - case["log_prob"])
        assert error <= TOLERANCE[precision] * case["terms"], case["name"]


# Law


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_density_integrates_to_one(temperature):
    """Over x = softmax(y, 0), whose volume element is x_1 x_2 x_3, by the trapezoid rule in y:
    the integrand falls at its slowest as exp(-|y| / 2), to 1e-9 at 40."""
    p, step = relaxed(0, temperature), 0.25
    grid = np.arange(-44.0, 44.0, step)
    y = np.stack([*np.meshgrid(grid, grid), np.zeros((len(grid), len(grid)))], -1).reshape(-1, 3)
    with jax.enable_x64(True):
        log_x = np.asarray(jax.nn.log_softmax(jnp.asarray(y)))
        p = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), float), p)
        log_density = jax.jit(jax.vmap(p.log_prob))(jnp.exp(jnp.asarray(log_x))[:, None])
    total = np.exp(np.asarray(log_density) + log_x.sum(1)).sum() * step**2
    assert total == pytest.approx(1.0, abs=1e-6)


def test_draws_lie_on_the_simplex_and_their_largest_is_categorical():
    """P(argmax = c) = softmax(logits)_c at every temperature (Maddison et al. 2017)."""
    for temperature in (0.05, 3.0):
        p = relaxed(1, temperature)
        draw = jax.jit(jax.vmap(p.sample))
        x = np.asarray(draw(jax.random.split(jax.random.key(0), NUM_DRAWS)), np.float64)[:, 0]
        assert (x >= 0).all()
        np.testing.assert_allclose(x.sum(1), 1.0, rtol=1e-6)
        chances = np.asarray(jax.nn.softmax(p.logits)[0], np.float64)
        shares = np.bincount(x.argmax(1), minlength=3) / NUM_DRAWS
        errors = np.sqrt(chances * (1 - chances) / NUM_DRAWS)
        assert (np.abs(shares - chances) <= 4 * errors).all()


def test_draws_have_the_density():
    """E_q p(x) / q(x) = 1 for another p, whose ratio to q has a finite variance here."""
    q, p = relaxed(2, 0.8), relaxed(3, 1.0)
    x = jax.vmap(q.sample)(jax.random.split(jax.random.key(1), NUM_DRAWS))
    ratio = jax.jit(jax.vmap(lambda x: jnp.exp(p.log_prob(x) - q.log_prob(x))))
    ratios = np.asarray(ratio(x), np.float64)
    assert abs(ratios.mean() - 1) <= 4 * ratios.std() / np.sqrt(NUM_DRAWS)
    assert ratios.std() > 0.1


def test_mean_of_without_a_formula_is_the_mean_of_draws():
    p = relaxed(4, 1.0)
    num_samples = 4_000
    mean = jax.jit(lambda key: mean_of(p, key, num_samples))(jax.random.key(2))
    x = np.asarray(jax.vmap(p.sample)(jax.random.split(jax.random.key(3), NUM_DRAWS)), float)
    errors = x.std(0) * np.sqrt(1 / num_samples + 1 / NUM_DRAWS)
    assert (np.abs(mean - x.mean(0)) <= 4 * errors).all()
    q = Gaussian(jnp.ones(2), jnp.zeros(2))
    np.testing.assert_array_equal(mean_of(q, jax.random.key(2)), q.mean())


# Transform


def test_gradients_are_finite_differences():
    """Central differences at h err by h^2 f''' / 6 + eps f / h: 1e-9 of f at h = 1e-5."""
    h = 1e-5
    with jax.enable_x64(True):
        sides = (RelaxedCategorical(jnp.array([[0.3, -1.0, 0.5]]), jnp.array(0.7)),
                 jnp.array([[0.2, 0.3, 0.5]]))  # fmt: skip
        direction = jax.tree.map(lambda leaf: jnp.ones(leaf.shape).cumsum(-1)
                                 if leaf.ndim else jnp.array(0.4), sides)  # fmt: skip
        moved = lambda t: jax.tree.map(lambda a, b: a + t * b, sides, direction)
        value, gradient = slopes(*sides)
        slope = sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), gradient, direction)))
        difference = (log_prob(*moved(h)) - log_prob(*moved(-h))) / (2 * h)
        assert abs(slope - difference) <= 1e-7 * (abs(value) + abs(slope))


def test_values_and_gradients_are_finite_where_a_softmax_rounds_to_corners():
    """The gradient through the draw as well: a third of these draws has an exact 0."""

    def through(p, key):
        return p.log_prob(p.sample(key))

    run = jax.jit(jax.vmap(jax.value_and_grad(through), (None, 0)))
    keys = jax.random.split(jax.random.key(4), 64)
    for logits, temperature in (([[0.0, 1.0, 2.0]], 0.01), ([[1e4, 0.0, -1e4]], 0.5)):
        p = RelaxedCategorical(jnp.array(logits), jnp.array(temperature))
        assert (jax.vmap(p.sample)(keys) == 0.0).any()
        chex.assert_tree_all_finite(run(p, keys))


def test_draws_are_differentiable_by_the_temperature_and_logits():
    """x = softmax((l + g) / t): dx = x (dy - x.dy) with y = (l + g) / t = log x + const."""
    p, key = relaxed(5, 0.7), jax.random.key(5)
    x = p.sample(key)
    of_logits = jax.jit(jax.jacrev(lambda p: p.sample(key)))(p)
    expected = (jnp.diag(x[0]) - x[0][:, None] * x[0][None, :]) / 0.7
    np.testing.assert_allclose(of_logits.logits[0, :, 0], expected, rtol=0, atol=1e-6)
    dy = -jnp.log(x[0]) / 0.7
    slope = x[0] * (dy - jnp.sum(x[0] * dy))
    np.testing.assert_allclose(of_logits.temperature[0], slope, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_eager_jit_vmap_and_bfloat16_agree():
    p, x = relaxed(6, 0.7), jnp.array([[0.2, 0.3, 0.5]])
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), p)
    high = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low)
    assert log_prob(low, x).dtype == jnp.float32
    np.testing.assert_allclose(log_prob(low, x), log_prob(high, x), rtol=1e-6)
    np.testing.assert_allclose(log_prob(p, x), p.log_prob(x), rtol=1e-6)
    np.testing.assert_allclose(
        jax.vmap(p.log_prob)(x[None].repeat(2, 0)), jnp.full(2, p.log_prob(x)), rtol=1e-6
    )


def test_density_in_the_middle_has_the_volume_of_the_simplex():
    p = RelaxedCategorical(jnp.zeros((2, 4)), jnp.array(1e-3))
    x = jnp.full((2, 4), 0.25)
    # In the middle only log 3! + 3 log t is left: the softmax is 1/4, as x is.
    expected = 2 * (math.log(6) + 3 * math.log(1e-3))
    np.testing.assert_allclose(log_prob(p, x), expected, rtol=1e-6)


# Failure


def test_mean_has_no_closed_form():
    match = (
        r"mean: the expectation of RelaxedCategorical must have a closed form, it has none\. Use"
    )
    with pytest.raises(NoClosedForm, match=match):
        relaxed(7, 1.0).mean()
    assert issubclass(NoClosedForm, ValueError)


def test_a_value_of_another_shape_is_rejected():
    match = r"value has shape \(3,\), this RelaxedCategorical has event shape \(1, 3\)\. Reshape"
    with pytest.raises(ValueError, match=match):
        relaxed(8, 1.0).log_prob(jnp.ones(3))
