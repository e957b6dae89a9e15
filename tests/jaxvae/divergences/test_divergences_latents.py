"""Closed-form KLs among Gaussians of low rank, one-hot latents and latents on a sphere."""

from itertools import product

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.distributions import (
    FullCovarianceGaussian,
    Gaussian,
    LowRankGaussian,
    OneHotCategorical,
    RelaxedCategorical,
    UniformSphere,
    VonMisesFisher,
)
from jaxvae.divergences import (
    CLOSED_FORMS,
    PER_LATENT,
    has_closed_form,
    kl,
    kl_per_latent,
    splits_by_latent,
)
from tests.files import golden
from tests.golden import make_latents

GOLDEN = golden("latents")
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
EPS = {name: float(np.finfo(name).eps) for name in TOLERANCE}
KINDS = {"loc log_scale": Gaussian, "factor loc log_scale": LowRankGaussian}
KINDS |= {"loc scale_tril": FullCovarianceGaussian}
GAUSSIANS = tuple(KINDS.values())
PAIRS = [pair for pair in product(GAUSSIANS, repeat=2) if LowRankGaussian in pair]
"""The other pairs of Gaussians are in test_divergences.py."""

kl_closed = jax.jit(lambda q, p: kl(q, p))
slopes = jax.jit(jax.value_and_grad(kl, argnums=(0, 1)))


def gaussian(parameters):
    parameters = {name: jnp.asarray(value, float) for name, value in parameters.items()}
    return KINDS[" ".join(sorted(parameters))](**parameters)


def random_gaussian(rng, make, dim=3):
    """One whose scales are all about 1."""
    loc, below = rng.normal(size=dim), 0.5 * np.tril(rng.normal(size=(dim, dim)), -1)
    log_scale, factor = 0.5 * rng.normal(size=dim), rng.normal(size=(dim, 2))
    tril = below + np.diag(np.exp(log_scale))
    last = {Gaussian: [log_scale], LowRankGaussian: [factor, log_scale]}
    return make(*map(jnp.asarray, [loc, *last.get(make, [tril])]))


def as_full(p):
    if isinstance(p, FullCovarianceGaussian):
        return p
    tril = p.scale_tril() if isinstance(p, LowRankGaussian) else jnp.diag(jnp.exp(p.log_scale))
    return FullCovarianceGaussian(p.loc, tril)


def names(pair):
    return " from ".join(make.__name__ for make in pair)


every_pair = pytest.mark.parametrize("pair", PAIRS, ids=names)


# Golden


@pytest.mark.slow
def test_golden_file_is_what_its_script_makes():
    made = make_latents.make_golden()
    assert made.keys() == GOLDEN.keys()
    for group in made:
        for new, old in zip(made[group], GOLDEN[group], strict=True):
            assert new.pop("name") == old["name"]
            rest = {k: v for k, v in old.items() if k != "name"}
            # numpy and scipy may move by some eps of float64 from release to release.
            chex.assert_trees_all_close(new, rest, rtol=1e-13, atol=1e-300)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_kl_of_gaussians_is_the_golden_value(precision):
    for case in GOLDEN["kl"]:
        with jax.enable_x64(precision == "float64"):
            result = kl_closed(gaussian(case["q"]), gaussian(case["p"]))
        assert (result.shape, result.dtype.name) == ((), precision)
        error = abs(float(result) - case["kl"])
        assert error <= TOLERANCE[precision] * case["terms"], case["name"]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_kl_of_one_hot_latents_is_the_golden_value(precision):
    for case in GOLDEN["one_hot_categorical"]:
        with jax.enable_x64(precision == "float64"):
            sides = [OneHotCategorical(jnp.asarray(case[k], float)) for k in ("logits", "other")]
            each, total = kl_per_latent(*sides), kl_closed(*sides)
        tolerance = TOLERANCE[precision] * case["terms"]
        np.testing.assert_allclose(each, case["kl_per_latent"], rtol=0, atol=tolerance)
        assert abs(float(total) - np.sum(case["kl_per_latent"])) <= tolerance, case["name"]


# Law


@every_pair
def test_low_rank_equals_full(pair):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        q, p = [random_gaussian(rng, make) for make in pair]
        expected = kl_closed(as_full(q), as_full(p))
        assert expected > 0.5
        np.testing.assert_allclose(kl_closed(q, p), expected, rtol=1e-13)


@every_pair
def test_kl_is_zero_at_equality_and_its_gradient_too(pair):
    """q and p have the same covariance, in the forms of both families."""
    rng = np.random.default_rng(1)
    kind = Gaussian if Gaussian in pair else LowRankGaussian
    kind = kind if LowRankGaussian in pair else pair[1]
    shared = random_gaussian(rng, kind)
    empty = lambda p: LowRankGaussian(p.loc, jnp.zeros((3, 2)), p.log_scale)
    turn = {Gaussian: lambda p: p, FullCovarianceGaussian: as_full}
    turn[LowRankGaussian] = empty if kind is Gaussian else lambda p: p
    value, gradients = slopes(*[turn[make](shared) for make in pair])
    # Squares of numbers that are zero to some eps, or a difference of log determinants.
    direct = pair == (LowRankGaussian, Gaussian)
    assert abs(value) <= (16 * EPS["float32"] if direct else 1000 * EPS["float32"] ** 2)
    zeros = jax.tree.map(jnp.zeros_like, gradients)
    chex.assert_trees_all_close(gradients, zeros, rtol=0, atol=64 * EPS["float32"])


def test_kl_is_never_negative():
    """At distances from 1e-6 to 1."""
    rng = np.random.default_rng(2)
    q, p = [random_gaussian(rng, LowRankGaussian) for _ in range(2)]
    near = lambda t: jax.tree.map(lambda a, b: b + t * (a - b), q, p)
    values = jax.jit(jax.vmap(lambda t: kl(near(t), p)))(jnp.logspace(-6, 0, 64))
    assert (values >= 0.0).all()
    assert values[-1] > 0.1


def test_nearly_equal_covariances_keep_their_digits():
    """At a distance e the KL, about e^2, errs in float32 by 6 eps e: M - I errs by eps."""
    for make in (LowRankGaussian, FullCovarianceGaussian):
        rng = np.random.default_rng(3)
        p, away = random_gaussian(rng, make), random_gaussian(rng, make)
        q = jax.tree.map(lambda a, b: a + 1e-3 * (b - a), p, away)
        with jax.enable_x64(True):
            exact = float(kl_closed(*jax.tree.map(lambda leaf: leaf.astype(float), (q, p))))
        assert abs(kl_closed(q, p) - exact) <= 16 * EPS["float32"] * 1e-3 < 0.05 * exact


def test_kl_is_the_mean_log_ratio_of_draws():
    """By the definition of the KL, which relates the formulas to log_prob with the right sign."""
    rng = np.random.default_rng(4)
    pairs = [[random_gaussian(rng, make) for make in pair] for pair in PAIRS]

    def log_ratio(key, q, p):
        z = q.sample(key)
        return q.log_prob(z) - p.log_prob(z)

    run = lambda key: jnp.stack([log_ratio(key, q, p) for q, p in pairs])
    keys = jax.random.split(jax.random.key(0), 10_000)
    ratios = np.asarray(jax.jit(lambda keys: jax.lax.map(run, keys))(keys), np.float64)
    means, errors = ratios.mean(0), ratios.std(0) / np.sqrt(len(ratios))
    there, back = np.transpose([[kl_closed(q, p), kl_closed(p, q)] for q, p in pairs])
    assert (np.abs(means - there) <= 4 * errors).all()
    assert (np.abs(means - back) > 8 * errors).all()


def test_kl_of_one_hot_latents_is_the_sum_over_states():
    rng = np.random.default_rng(5)
    q, p = [OneHotCategorical(jnp.asarray(rng.normal(size=(3, 2)))) for _ in range(2)]
    states = q.enumerate_support()
    log_q, log_p = [jax.vmap(side.log_prob)(states) for side in (q, p)]
    expected = jnp.sum(jnp.exp(log_q) * (log_q - log_p))
    np.testing.assert_allclose(kl_closed(q, p), expected, rtol=1e-5)
    assert kl_per_latent(q, p).shape == (3,)
    assert (kl_per_latent(q, p) > 0.0).all()
    np.testing.assert_array_equal(kl_per_latent(q, q), jnp.zeros(3))


@pytest.mark.parametrize("dim", [2, 16, 64])
def test_kl_on_the_sphere_grows_from_zero(dim):
    """As k^2 / (2 Z) for small k, by an error of some eps k."""
    log_concentrations = jnp.linspace(-20.0, 20.0, 81)
    loc = jnp.eye(dim)[0]
    values = jax.jit(jax.vmap(lambda t: kl(VonMisesFisher(loc, t), UniformSphere(dim))))(
        log_concentrations
    )
    k = np.exp(np.asarray(log_concentrations, np.float64))
    assert (np.asarray(values) >= -4 * EPS["float32"] * np.minimum(k, 1)).all()
    assert (np.diff(values)[k[1:] > 0.1] > 0).all()
    small = k < 0.01
    expected = k[small] ** 2 / (2 * dim)
    np.testing.assert_allclose(values[small], expected, rtol=1e-4, atol=4 * EPS["float32"] * 0.01)


def test_pairs_that_split_are_pairs_with_a_formula():
    assert PER_LATENT.keys() < CLOSED_FORMS.keys()
    rng = np.random.default_rng(6)
    one_hot = OneHotCategorical(jnp.asarray(rng.normal(size=(3, 4))))
    for side in (random_gaussian(rng, Gaussian), one_hot):
        other = jax.tree.map(lambda leaf: leaf + 0.5 * jnp.ones(leaf.shape).cumsum(0), side)
        assert splits_by_latent(side, other)
        np.testing.assert_allclose(
            kl_per_latent(side, other).sum(), kl_closed(side, other), rtol=1e-6
        )
    assert not splits_by_latent(one_hot, random_gaussian(rng, Gaussian))
    assert not splits_by_latent(*[random_gaussian(rng, LowRankGaussian)] * 2)


# Transform


@every_pair
def test_gradients_are_finite_differences(pair):
    """Central differences at h err by h^2 f''' / 6 + eps f / h: 1e-9 of f at h = 1e-5."""
    rng, h = np.random.default_rng(7), 1e-5
    with jax.enable_x64(True):
        sides, direction = [[random_gaussian(rng, make) for make in pair] for _ in range(2)]
        moved = lambda t: jax.tree.map(lambda a, b: np.add(a, t * np.asarray(b)), sides, direction)
        value, gradient = slopes(*sides)
        products = jax.tree.map(np.vdot, list(gradient), direction)
        slope = sum(jax.tree.leaves(products))
        difference = (float(kl_closed(*moved(h))) - float(kl_closed(*moved(-h)))) / (2 * h)
        assert abs(slope - difference) <= 1e-7 * (abs(value) + abs(slope))


@pytest.mark.slow
def test_eager_jit_and_vmap_agree():
    rng = np.random.default_rng(8)
    for pair in [(LowRankGaussian, LowRankGaussian), (LowRankGaussian, Gaussian)]:
        rows = [[random_gaussian(rng, make) for make in pair] for _ in range(3)]
        eager = np.stack([kl(*row) for row in rows])
        batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
        np.testing.assert_allclose(jax.jit(jax.vmap(kl))(*batch), eager, rtol=4e-6)
        np.testing.assert_allclose([kl_closed(*row) for row in rows], eager, rtol=4e-6)


def corner(make, loc, log_scale):
    factor = jnp.array([[1.0], [0.5]])
    if make is LowRankGaussian:
        return LowRankGaussian(loc, factor, log_scale)
    if make is Gaussian:
        return Gaussian(loc, log_scale)
    return FullCovarianceGaussian(loc, jnp.diag(jnp.exp(log_scale)))


@pytest.mark.parametrize("pair", [*PAIRS, (FullCovarianceGaussian, Gaussian)], ids=names)
def test_values_and_gradients_are_finite_in_the_corners(pair):
    """Means 200 apart, scales from exp(-20) to exp(20), but to exp(10) where p is not diagonal:
    the gradient by an entry of its Cholesky factor is exp(100) else, more than float32 holds."""
    limit = 20.0 if pair[1] is Gaussian else 10.0
    corners = limit * jnp.array(list(product([-1.0, 1.0], repeat=4)))
    loc = jnp.array([100.0, -100.0])

    def total(log_scales):
        return kl(corner(pair[0], loc, log_scales[:2]), corner(pair[1], -loc, log_scales[2:]))

    chex.assert_tree_all_finite(jax.jit(jax.vmap(jax.value_and_grad(total)))(corners))


def test_gradient_of_extreme_one_hot_logits_is_finite():
    sides = [OneHotCategorical(jnp.array([[1e4, 0.0, -1e4]]) * s) for s in (1.0, -1.0)]
    chex.assert_tree_all_finite(slopes(*sides))


# Failure


def test_pairs_that_do_not_split_are_rejected():
    q, p = VonMisesFisher(jnp.eye(3)[0], jnp.array(0.0)), UniformSphere(3)
    with pytest.raises(
        ValueError,
        match=r"kl_per_latent: q and p must have independent latents, but VonMisesFisher against "
        r"UniformSphere has no formula per latent\. Use kl, or add the formula to divergences\.PER",
    ):
        kl_per_latent(q, p)


@pytest.mark.parametrize(
    ("q", "p"),
    [
        (VonMisesFisher(jnp.eye(3)[0], jnp.array(0.0)), UniformSphere(2)),
        (OneHotCategorical(jnp.zeros((3, 4))), OneHotCategorical(jnp.zeros((3, 5)))),
        (Gaussian.standard(2), LowRankGaussian(jnp.zeros(3), jnp.ones((3, 1)), jnp.array(0.0))),
    ],
    ids=["sphere", "one-hot", "gaussian"],
)
def test_events_of_different_shapes_are_rejected(q, p):
    with pytest.raises(ValueError, match=r"kl: q and p must have the same event shape, q has \("):
        kl(q, p)


def test_a_kl_formula_does_not_need_a_mean(monkeypatch):
    """Event shapes are compared by those of draws, not of a mean, which may have no formula."""
    q = RelaxedCategorical(jnp.zeros((2, 3)), jnp.array(1.0))
    assert not has_closed_form(q, q)
    monkeypatch.setitem(CLOSED_FORMS, (RelaxedCategorical,) * 2, lambda q, p: jnp.array(42.0))
    assert jax.jit(lambda q: kl(q, q))(q) == 42.0
