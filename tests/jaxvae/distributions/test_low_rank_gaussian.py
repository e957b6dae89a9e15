"""Gaussians of a diagonal and a low rank: densities, draws and Cholesky factors."""

from itertools import product

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.distributions import FullCovarianceGaussian, Gaussian, LowRankGaussian
from tests.files import golden

GOLDEN = golden("latents")
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
EPS = float(np.finfo(np.float32).eps)
NUM_DRAWS = 20_000

log_prob = jax.jit(lambda p, value: p.log_prob(value))
log_probs = jax.jit(lambda p, values: jax.vmap(p.log_prob)(values))
slopes = jax.jit(jax.value_and_grad(lambda p, value: p.log_prob(value), argnums=(0, 1)))


def random_low_rank(seed, dim=3, rank=2, batch=()):
    rng = np.random.default_rng(seed)
    shapes = ((*batch, dim), (*batch, dim, rank), (*batch, dim))
    loc, factor, log_scale = [jnp.asarray(rng.normal(size=shape)) for shape in shapes]
    return LowRankGaussian(loc, factor, 0.5 * log_scale)


def covariance(p):
    """F F^T + D^2 in float64."""
    factor, log_scale = np.asarray(p.factor, np.float64), np.asarray(p.log_scale, np.float64)
    return factor @ factor.T + np.diag(np.exp(2 * np.broadcast_to(log_scale, len(p.loc))))


# Golden


@pytest.mark.parametrize("precision", TOLERANCE)
def test_log_prob_is_the_golden_value(precision):
    for case in GOLDEN["low_rank_gaussian"]:
        with jax.enable_x64(precision == "float64"):
            names = ("loc", "factor", "log_scale", "x")
            loc, factor, log_scale, x = [jnp.asarray(case[name], float) for name in names]
            result = log_prob(LowRankGaussian(loc, factor, log_scale), x)
        assert (result.shape, result.dtype.name) == ((), precision)
        error = abs(float(result) - case["log_prob"])
        assert error <= TOLERANCE[precision] * case["terms"], case["name"]


# Law


def test_low_rank_is_the_full_gaussian_of_its_cholesky_factor():
    with jax.enable_x64(True):
        p, x = random_low_rank(0), jnp.array([0.5, -1.0, 2.0])
        full = FullCovarianceGaussian(p.loc, p.scale_tril())
        np.testing.assert_allclose(log_prob(p, x), log_prob(full, x), rtol=1e-13)
        np.testing.assert_allclose(full.scale_tril @ full.scale_tril.T, covariance(p), rtol=1e-13)
        assert (jnp.diagonal(full.scale_tril) > 0).all()
        np.testing.assert_array_equal(jnp.triu(full.scale_tril, 1), jnp.zeros((3, 3)))
        half_log_det = 0.5 * np.linalg.slogdet(covariance(p))[1]
        log_volume = jnp.sum(p.log_scale) + p.half_log_capacitance()
        np.testing.assert_allclose(log_volume, half_log_det, rtol=1e-13)


def test_low_rank_without_a_factor_is_the_diagonal_gaussian():
    p, x = random_low_rank(1), jnp.array([0.5, -1.0, 2.0])
    plain = Gaussian(p.loc, p.log_scale)
    nothing = LowRankGaussian(p.loc, jnp.zeros((3, 2)), p.log_scale)
    np.testing.assert_allclose(log_prob(nothing, x), log_prob(plain, x), rtol=8 * EPS)
    np.testing.assert_allclose(nothing.scale_tril(), jnp.diag(jnp.exp(p.log_scale)), rtol=8 * EPS)


def test_density_integrates_to_one():
    """By the trapezoid rule, whose error at steps of 0.5 is exp(-2 pi^2 / 0.5^2) = 1e-34."""
    p = random_low_rank(2, dim=2)
    grid, tril = np.arange(-6.0, 6.5, 0.5), np.linalg.cholesky(covariance(p))
    eps = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    densities = np.exp(log_probs(p, jnp.asarray(np.asarray(p.loc) + eps @ tril.T)))
    total = densities.sum(dtype=np.float64) * 0.5**2 * np.linalg.det(tril)
    np.testing.assert_allclose(total, 1.0, rtol=10e-6)


def test_draws_have_the_mean_and_the_covariance():
    p = random_low_rank(3)
    draw = jax.jit(lambda keys: jax.lax.map(p.sample, keys))
    z = np.asarray(draw(jax.random.split(jax.random.key(0), NUM_DRAWS)), np.float64)
    expected = covariance(p)
    variances = np.diag(expected)
    errors = np.sqrt(variances / NUM_DRAWS)
    assert (np.abs(z.mean(0) - p.mean()) <= 4 * errors).all()
    # Var(z_i z_j) = S_ii S_jj + S_ij^2 for a Gaussian.
    errors = np.sqrt((np.outer(variances, variances) + expected**2) / NUM_DRAWS)
    assert (np.abs(np.cov(z.T) - expected) <= 4 * errors).all()


# Transform


@pytest.mark.slow
def test_eager_jit_and_vmap_agree():
    batch, x = random_low_rank(4, batch=(5,)), jnp.ones((5, 3))
    rows = [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in range(5)]
    eager = np.stack([row.log_prob(x[0]) for row in rows])
    np.testing.assert_allclose([log_prob(row, x[0]) for row in rows], eager, rtol=4e-6)
    vmapped = jax.jit(jax.vmap(lambda p, x: p.log_prob(x)))(batch, x)
    np.testing.assert_allclose(vmapped, eager, rtol=4e-6)


def test_gradients_are_finite_differences():
    """Central differences at h err by h^2 f''' / 6 + eps f / h: 1e-9 of f at h = 1e-5."""
    with jax.enable_x64(True):
        sides, direction, h = (
            (random_low_rank(5), jnp.array([0.5, -1.0, 2.0])),
            (random_low_rank(6), jnp.ones(3)),
            1e-5,
        )
        moved = lambda t: jax.tree.map(lambda a, b: a + t * b, sides, direction)
        value, gradient = slopes(*sides)
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), gradient, direction)
        slope = sum(jax.tree.leaves(products))
        difference = (log_prob(*moved(h)) - log_prob(*moved(-h))) / (2 * h)
        assert abs(slope - difference) <= 1e-7 * (abs(value) + abs(slope))


def test_values_and_gradients_are_finite_in_the_corners():
    """Scales exp(40) apart in one covariance, and means 100 and 200 away."""
    factor = jnp.array([[1.0, 2.0], [-1.0, 0.5], [0.3, 0.1]])
    for corner in product([-20.0, 20.0], repeat=3):
        p = LowRankGaussian(jnp.array([100.0, -100.0, 0.0]), factor, jnp.array(corner))
        chex.assert_tree_all_finite(slopes(p, jnp.array([-100.0, 0.0, 100.0])))


def test_bfloat16_parameters_give_a_float32_density():
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_low_rank(7))
    high = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low)
    result = log_prob(low, jnp.ones(3))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, log_prob(high, jnp.ones(3)), rtol=1e-6)


# Failure


@pytest.mark.parametrize(
    ("loc", "factor", "log_scale"),
    [((3,), (2, 2), (3,)), ((3,), (3,), (3,)), ((3, 1), (3, 1), ()), ((3,), (3, 1), (1,))],
)
def test_shapes_that_do_not_match_are_rejected(loc, factor, log_scale):
    p = LowRankGaussian(*[jnp.zeros(shape) for shape in (loc, factor, log_scale)])
    with pytest.raises(ValueError, match=r"LowRankGaussian: loc must be \[Z\], factor \[Z, R\]"):
        p.sample(jax.random.key(0))


def test_a_value_of_another_shape_is_rejected():
    match = r"value has shape \(4,\), this LowRankGaussian has event shape \(3,\)\. Reshape"
    with pytest.raises(ValueError, match=match):
        random_low_rank(8).log_prob(jnp.zeros(4))
