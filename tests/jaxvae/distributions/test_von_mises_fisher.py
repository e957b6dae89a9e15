"""Latents on the unit sphere: Bessel functions, densities, draws and their gradients."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxvae.distributions import UniformSphere, VonMisesFisher
from jaxvae.distributions.bessel import log_mean_exp_cosine
from jaxvae.divergences import kl
from tests.files import golden

GOLDEN = golden("latents")
CASES = GOLDEN["von_mises_fisher"]
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
EPS = float(np.finfo(np.float32).eps)
NUM_DRAWS = 10_000
LOG_CONCENTRATIONS = (-2.0, 1.0, 4.0, 9.0)
NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)


@jax.jit
def everything(p, value):
    """A case's values in one compilation: density, KL, and the Bessel functions below them."""
    dim, k = p.loc.size, p.parameters()[1]
    log_mean, slope = jax.value_and_grad(partial(log_mean_exp_cosine, dim))(k)
    return p.log_prob(value), kl(p, UniformSphere(dim)), log_mean, slope, p.mean()


@jax.jit
def draws_and_slopes(loc, log_concentration, keys):
    """Draws x [N, Z] and their derivatives by log k."""
    draw = lambda key, t: VonMisesFisher(loc, t).sample(key)
    along = lambda key, t: jax.jvp(partial(draw, key), (t,), (jnp.ones_like(t),))
    return jax.vmap(along, (0, None))(keys, log_concentration)


@jax.jit
def square_and_gradients(loc, log_concentration, keys, u):
    """(u.x)^2 and its gradients by loc [N, Z] and by log k [N], in reverse mode."""
    draw = lambda loc, t, key: VonMisesFisher(loc, t).sample(key)
    square = lambda loc, t, key: jnp.square(jnp.sum(u * draw(loc, t, key)))
    gradient = jax.vmap(jax.value_and_grad(square, (0, 1)), (None, None, 0))
    return gradient(loc, log_concentration, keys)


def direction(dim, seed=0):
    loc = np.random.default_rng(seed).normal(size=dim)
    return loc / np.linalg.norm(loc)


def keys():
    return jax.random.split(jax.random.key(1), NUM_DRAWS)


def draws(loc, log_concentration):
    with jax.enable_x64(True):
        t = jnp.asarray(log_concentration, float)
        return [np.asarray(a) for a in draws_and_slopes(jnp.asarray(loc), t, keys())]


def integral(function, low, high):
    half = 0.5 * (high - low)
    return half * np.sum(WEIGHTS * function(low + half * (NODES + 1)))


def angle_density(dim, k):
    """exp(k (cos a - 1)) sin(a)^(Z-2), and an angle beyond which it is negligible."""
    end = min(np.pi, 12 / np.sqrt(k) + np.sqrt(dim / k))
    return lambda a: np.exp(-2 * k * np.sin(a / 2) ** 2) * np.sin(a) ** (dim - 2), end


def moments(dim, k):
    """E cos a and E cos^2 a, by 200 nodes in float64."""
    density, end = angle_density(dim, k)
    total = integral(density, 0, end)
    return [integral(lambda a, n=n: density(a) * np.cos(a) ** n, 0, end) / total for n in (1, 2)]


# Golden


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("dim", sorted({case["dim"] for case in CASES}))
def test_values_are_the_golden_ones(dim, precision):
    tolerance = TOLERANCE[precision]
    # A vector of entries +-size has length 1, and exact products where size is a power of two.
    flat = dim in (4, 16, 64)
    loc = np.full(dim, dim**-0.5) if flat else np.eye(dim)[0]
    across = loc * np.where(np.arange(dim) % 2, -1, 1) if flat else np.eye(dim)[1]
    values = {1: loc, 0: across, -1: -loc}
    for case in [case for case in CASES if case["dim"] == dim]:
        with jax.enable_x64(precision == "float64"):
            p = VonMisesFisher(*[jnp.asarray(v, float) for v in (loc, case["log_concentration"])])
            results = everything(p, jnp.asarray(values[case["cosine"]], float))
        assert results[0].dtype.name == precision
        result, divergence, log_mean, slope = map(float, results[:4])
        assert abs(result - case["log_prob"]) <= tolerance * case["terms"], case["name"]
        assert abs(divergence - case["kl"]) <= tolerance * case["kl_terms"], case["name"]
        # An error of exp in k itself comes first: log k eps.
        close = partial(pytest.approx, rel=(1 + abs(case["log_concentration"])) * tolerance)
        assert log_mean == close(case["log_mean"]), case["name"]
        assert slope == close(case["slope"]), case["name"]
        np.testing.assert_allclose(results[4], (1 + case["slope"]) * loc, rtol=0, atol=tolerance)


# Law


@pytest.mark.parametrize(("dim", "k"), [(2, 0.01), (3, 5.0), (16, 300.0)])
def test_density_integrates_to_one(dim, k):
    """Over circles at each angle to loc, of Z - 2 dimensions and radius sin a."""
    with jax.enable_x64(True):
        p = VonMisesFisher(jnp.eye(dim, dtype=float)[0], jnp.log(jnp.asarray(k, float)))
        end = angle_density(dim, k)[1]
        angles = 0.5 * end * (NODES + 1)
        points = np.zeros((len(angles), dim))
        points[:, 0], points[:, 1] = np.cos(angles), np.sin(angles)
        densities = np.exp(jax.jit(jax.vmap(p.log_prob))(jnp.asarray(points)))
    circles = np.exp(-float(UniformSphere(dim - 1).log_prob(jnp.zeros(dim - 1)))) if dim > 2 else 2
    total = 0.5 * end * np.sum(WEIGHTS * densities * circles * np.sin(angles) ** (dim - 2))
    assert total == pytest.approx(1.0, rel=1e-6)


def test_von_mises_fisher_without_concentration_is_uniform():
    p, x = VonMisesFisher(jnp.eye(3)[0], jnp.array(-30.0)), jnp.eye(3)[1]
    result, divergence, _, _, mean = everything(p, x)
    np.testing.assert_allclose(result, UniformSphere(3).log_prob(x), rtol=1e-6)
    np.testing.assert_allclose(mean, UniformSphere(3).mean(), atol=4 * EPS)
    assert abs(divergence) <= 4 * EPS * np.exp(-30.0)


def test_uniform_draws_have_the_moments():
    draw = jax.jit(jax.vmap(UniformSphere(4).sample))
    x = np.asarray(draw(jax.random.split(jax.random.key(0), NUM_DRAWS)), np.float64)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1.0, rtol=8 * EPS)
    assert (np.abs(x.mean(0)) <= 4 * np.sqrt(1 / 4 / NUM_DRAWS)).all()
    products = x[:, :, None] * x[:, None]
    errors = products.std(0) / np.sqrt(NUM_DRAWS)
    assert (np.abs(products.mean(0) - np.eye(4) / 4) <= 4 * errors).all()


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 16])
def test_draws_and_their_gradients_have_the_moments(dim):
    """With c = cos of the angle to loc and a fixed u: E u.x = E[c] u.loc, and E (u.x)^2 =
    E[c^2] (u.loc)^2 + (1 - E[c^2]) / (Z - 1) (1 - (u.loc)^2); by log k, their derivatives."""
    loc, u = direction(dim), direction(dim, seed=1)
    along = u @ loc
    first = lambda k: moments(dim, k)[0] * along
    spread = lambda c2: c2 * along**2 + (1 - c2) / (dim - 1) * (1 - along**2)
    second = lambda k: spread(moments(dim, k)[1])
    derivative = lambda f, k: (f(k * 1.0001) - f(k * 0.9999)) / 2e-4
    for log_concentration in LOG_CONCENTRATIONS:
        x, slope = draws(loc, log_concentration)
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1.0, rtol=1e-14)
        k = np.exp(log_concentration)
        for sampled, expected in (
            (x @ u, first(k)),
            ((x @ u) ** 2, second(k)),
            (slope @ u, derivative(first, k)),
            (2 * (x @ u) * (slope @ u), derivative(second, k)),
        ):
            error = sampled.std() / np.sqrt(NUM_DRAWS)
            assert abs(sampled.mean() - expected) <= 4 * error + 1e-7 * abs(expected)


def test_gradients_in_reverse_are_those_forward_and_have_the_expectation_by_loc():
    """grad_loc E (u.x)^2 along the sphere is (E[c^2] - (1 - E[c^2]) / (Z - 1)) 2 u.loc u."""
    dim, log_concentration = 16, LOG_CONCENTRATIONS[1]
    loc, u = direction(dim), direction(dim, seed=1)
    with jax.enable_x64(True):
        t = jnp.asarray(log_concentration, float)
        result = square_and_gradients(jnp.asarray(loc), t, keys(), jnp.asarray(u))
        square, (by_loc, by_log_k) = jax.tree.map(np.asarray, result)
    x, slope = draws(loc, log_concentration)
    np.testing.assert_allclose(square, (x @ u) ** 2, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(by_log_k, 2 * (x @ u) * (slope @ u), rtol=1e-10, atol=1e-14)
    tangent = np.linalg.svd(loc[None])[2][1:]
    c2 = moments(dim, np.exp(log_concentration))[1]
    expected = (c2 - (1 - c2) / (dim - 1)) * 2 * (u @ loc) * tangent @ u
    sampled = by_loc @ tangent.T
    errors = sampled.std(0) / np.sqrt(NUM_DRAWS)
    assert (np.abs(sampled.mean(0) - expected) <= 4 * errors).all()


# Transform


@pytest.mark.parametrize("dim", [2, 16])
def test_draws_follow_the_quantile_function(dim):
    """da/dlog k at a fixed F(a; k), against finite differences of F^-1 in float64."""
    loc, h = direction(dim), 1e-4
    for log_concentration in LOG_CONCENTRATIONS:
        x, slope = [a[:4] for a in draws(loc, log_concentration)]
        for cosine, moved in zip(x @ loc, slope @ loc, strict=True):
            angle, k = np.arccos(cosine), np.exp(log_concentration)
            target = share(dim, k, angle)
            there, back = [quantile(dim, k * np.exp(s * h), target) for s in (1, -1)]
            expected = -np.sin(angle) * (there - back) / (2 * h)
            assert moved == pytest.approx(expected, rel=1e-4)


def share(dim, k, angle):
    """F(a; k), the probability of a smaller angle."""
    density, end = angle_density(dim, k)
    return integral(density, 0, angle) / integral(density, 0, end)


def quantile(dim, k, target):
    end = angle_density(dim, k)[1]
    return scipy.optimize.brentq(lambda a: share(dim, k, a) - target, 0, end, xtol=1e-14)


def test_a_draw_is_the_same_under_jit_and_vmap():
    with jax.enable_x64(True):
        loc = jnp.asarray(direction(2))
        p = VonMisesFisher(loc, jnp.asarray(LOG_CONCENTRATIONS[2], float))
        one = jax.jit(lambda key: p.sample(key))(keys()[5])
    np.testing.assert_allclose(one, draws(direction(2), LOG_CONCENTRATIONS[2])[0][5], rtol=1e-12)


@pytest.mark.parametrize("dim", [2, pytest.param(64, marks=pytest.mark.long)])
def test_values_and_gradients_are_finite_at_extremes(dim):
    """Concentrations from exp(-20) to exp(20), around the poles that a reflection could divide
    by zero at, and densities at the opposite pole."""
    poles = jnp.stack([jnp.eye(dim)[0], -jnp.eye(dim)[0], jnp.eye(dim)[1]])

    def everywhere(log_concentration, loc, key):
        p = VonMisesFisher(loc, log_concentration)
        x = p.sample(key)
        total = p.log_prob(x) + p.log_prob(-loc) + jnp.sum(p.mean() * jnp.arange(1.0, dim + 1))
        return total + kl(p, UniformSphere(dim)), x

    run = jax.jit(jax.vmap(jax.value_and_grad(everywhere, argnums=(0, 1), has_aux=True)))
    t = jnp.repeat(jnp.array([-20.0, -1.0, 5.0, 20.0]), 3 * 32)
    keys = jax.random.split(jax.random.key(5), len(t))
    result = run(t, jnp.tile(poles, (len(t) // 3, 1)), keys)
    chex.assert_tree_all_finite(result)
    np.testing.assert_allclose(jnp.linalg.norm(result[0][1], axis=1), 1.0, rtol=16 * EPS)


def test_gradient_of_kl_is_the_ratios_slope():
    """d KL / dk = k A'(k), A' = 1 - A^2 - (Z - 1) A / k."""
    dim, k = 3, 3.0
    with jax.enable_x64(True):
        p = VonMisesFisher(jnp.eye(dim, dtype=float)[0], jnp.log(jnp.asarray(k, float)))
        gradient = jax.jit(jax.grad(lambda p: kl(p, UniformSphere(dim))))(p)
        ratio = float(everything(p, p.loc)[4][0])
        slope = k * (1 - ratio**2 - (dim - 1) * ratio / k)
        np.testing.assert_allclose(gradient.log_concentration, k * slope, rtol=1e-12)
    np.testing.assert_array_equal(gradient.loc, np.zeros(dim))


def test_bfloat16_parameters_give_float32_densities_and_draws():
    p = VonMisesFisher(jnp.eye(3, dtype=jnp.bfloat16)[0], jnp.array(1.0, jnp.bfloat16))
    assert jax.eval_shape(p.sample, jax.random.key(6)).dtype == jnp.float32
    high = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), p)
    low_result, result = everything(p, jnp.eye(3)[1]), everything(high, jnp.eye(3)[1])
    chex.assert_trees_all_equal_dtypes(low_result, result)
    chex.assert_trees_all_close(low_result, result, rtol=1e-6)


# Failure


def test_parameters_of_other_shapes_are_rejected():
    match = r"VonMisesFisher: loc must be one unit vector \[Z\] and log_concentration a scalar"
    for loc, log_concentration in (
        (jnp.zeros((2, 3)), jnp.zeros(())),
        (jnp.zeros(3), jnp.zeros(1)),
    ):
        with pytest.raises(ValueError, match=match):
            VonMisesFisher(loc, log_concentration).sample(jax.random.key(0))


def test_spheres_of_one_dimension_are_rejected():
    with pytest.raises(ValueError, match=r"UniformSphere: dim must be from 2 to 128, got 1"):
        UniformSphere(1)
    with pytest.raises(ValueError, match=r"VonMisesFisher: loc's length must be from 2 to"):
        VonMisesFisher(jnp.ones(1), jnp.zeros(())).mean()


@pytest.mark.parametrize("p", [VonMisesFisher(jnp.eye(3)[0], jnp.array(0.0)), UniformSphere(3)])
def test_values_of_another_shape_are_rejected(p):
    match = rf"value has shape \(4,\), this {type(p).__name__} has event shape \(3,\)\. Reshape"
    with pytest.raises(ValueError, match=match):
        p.log_prob(jnp.zeros(4))
