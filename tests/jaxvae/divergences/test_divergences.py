"""KL(q || p) of Gaussians in closed form, and of other families from draws."""

from dataclasses import dataclass
from functools import partial
from itertools import permutations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import FullCovarianceGaussian, Gaussian, kl
from jaxvae.divergences import CLOSED_FORMS, has_closed_form, kl_per_latent
from tests.files import golden

GOLDEN = golden("golden")
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
EPS = {name: float(np.finfo(name).eps) for name in TOLERANCE}
PAIRS = ("diagonal from diagonal", "diagonal from full", "full from diagonal", "full from full")

kl_closed = jax.jit(lambda q, p: kl(q, p))
kls_closed = jax.jit(jax.vmap(lambda q, p: kl(q, p)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Laplace:
    """A family without a formula in the library; scale 1."""

    loc: jax.Array

    def sample(self, key):
        return self.loc + jax.random.laplace(key, self.loc.shape)

    def log_prob(self, value):
        return jnp.sum(-jnp.abs(value - self.loc) - jnp.log(2.0))

    def mean(self):
        return self.loc


def gaussian(parameters):
    parameters = {name: jnp.asarray(value, float) for name, value in parameters.items()}
    make = FullCovarianceGaussian if "scale_tril" in parameters else Gaussian
    return make(**parameters)


def random_gaussian(rng, kind, dim=3, batch=()):
    loc = jnp.asarray(rng.normal(size=(*batch, dim)))
    if kind == "diagonal":
        return Gaussian(loc, jnp.asarray(0.5 * rng.normal(size=(*batch, dim))))
    below = 0.5 * np.tril(rng.normal(size=(*batch, dim, dim)), -1)
    diagonal = np.exp(0.5 * rng.normal(size=(*batch, 1, dim)))
    return FullCovarianceGaussian(loc, jnp.asarray(below + np.eye(dim) * diagonal))


def random_pair(rng, kinds, **sizes):
    return [random_gaussian(rng, kind, **sizes) for kind in kinds.split(" from ")]


def as_full(p):
    scale = jnp.broadcast_to(jnp.exp(p.log_scale), p.loc.shape)
    return FullCovarianceGaussian(p.loc, jnp.diag(scale))


# Golden


@pytest.mark.parametrize("precision", TOLERANCE)
def test_kl_is_the_golden_value(precision):
    """Every pair of kinds, and log scales of -20 and 20 with means 200 apart."""
    for case in GOLDEN["kl"]:
        with jax.enable_x64(precision == "float64"):
            result = kl_closed(gaussian(case["q"]), gaussian(case["p"]))
        assert (result.shape, result.dtype.name) == ((), precision)
        error = abs(float(result) - case["kl"])
        assert error <= TOLERANCE[precision] * case["terms"], case["name"]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_kl_of_nearly_equal_gaussians_keeps_its_digits(precision):
    """At a distance e the KL is a sum of squares of numbers up to e, each of which is off by eps
    times the terms it was subtracted from: an error of some eps * e * terms. Without expm1 it
    would be eps * terms, 10,000 times as much and more than the KL itself."""
    for case in GOLDEN["kl_nearly_equal"]:
        with jax.enable_x64(precision == "float64"):
            q, p = gaussian(case["q"]), gaussian(case["p"])
            result = kl_closed(q, p)
        assert 1e-5 < case["distance"] < 2e-3
        bound = 2 * EPS[precision] * case["distance"] * case["terms"]
        assert abs(float(result) - case["kl"]) <= bound < 0.1 * case["kl"], case["name"]


def test_the_usual_formula_loses_those_digits():
    case = GOLDEN["kl_nearly_equal"][0]
    q, p = gaussian(case["q"]), gaussian(case["p"])
    log_ratio, shift = q.log_scale - p.log_scale, (q.loc - p.loc) * jnp.exp(-p.log_scale)
    usual = 0.5 * jnp.sum(jnp.exp(2 * log_ratio) + jnp.square(shift) - 1 - 2 * log_ratio)
    bound = 2 * EPS["float32"] * case["distance"] * case["terms"]
    assert abs(float(usual) - case["kl"]) > 10 * bound


# Law


@pytest.mark.parametrize("kinds", PAIRS)
def test_kl_is_never_negative(kinds):
    """Beyond the rounding of r = log s_q - log s_p, at distances from 1e-8 to 1."""
    q, p = random_pair(np.random.default_rng(0), kinds, batch=(512,))
    assert (kls_closed(q, p) > 0.0).all()
    rng, nearness = np.random.default_rng(1), jnp.logspace(-8, 0, 512)
    if kinds in ("diagonal from diagonal", "full from full"):
        away = random_gaussian(rng, kinds.split()[0], batch=(512,))
        near = jax.tree.map(
            lambda a, b: a + nearness.reshape(-1, *[1] * (a.ndim - 1)) * (b - a), p, away
        )
        assert (kls_closed(near, p) >= -8 * EPS["float32"] * nearness).all()


def test_kl_is_zero_at_equality_and_its_gradient_too():
    rng = np.random.default_rng(2)
    diagonal, full = random_gaussian(rng, "diagonal"), random_gaussian(rng, "full")
    pairs = [(q, p) for q in (diagonal, as_full(diagonal)) for p in (diagonal, as_full(diagonal))]
    with_gradients = jax.value_and_grad(kl, argnums=(0, 1))
    run = jax.jit(lambda pairs: [with_gradients(q, p) for q, p in pairs])
    for value, gradients in run([*pairs, (full, full)]):
        # Squares of numbers that are zero to some eps; the gradient has those numbers themselves.
        assert 0.0 <= value <= 100 * EPS["float32"] ** 2
        zeros = jax.tree.map(jnp.zeros_like, gradients)
        chex.assert_trees_all_close(gradients, zeros, rtol=0, atol=16 * EPS["float32"])


def test_diagonal_equals_full_with_a_diagonal_factor():
    q, p = random_pair(np.random.default_rng(3), "diagonal from diagonal")
    expected = kl_closed(q, p)
    assert expected > 1.0
    for left, right in ((as_full(q), p), (q, as_full(p)), (as_full(q), as_full(p))):
        np.testing.assert_allclose(kl_closed(left, right), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_kl_from_the_standard_gaussian_is_the_tutorials(kind):
    """1/2 (tr Sigma + mu^T mu - k - log det Sigma), Doersch 2016, section 2.1."""
    q = random_gaussian(np.random.default_rng(4), kind)
    tril = np.asarray((as_full(q) if kind == "diagonal" else q).scale_tril, np.float64)
    mu, sigma = np.asarray(q.loc, np.float64), tril @ tril.T
    terms = [np.trace(sigma), mu @ mu, -3.0, -np.linalg.slogdet(sigma)[1]]
    np.testing.assert_allclose(
        kl_closed(q, Gaussian.standard(3)), 0.5 * sum(terms), atol=1e-6 * np.abs(terms).sum()
    )


def test_kl_is_the_mean_log_ratio_of_draws():
    """By the definition of the KL, which relates the formulas to log_prob with the right sign."""
    pairs = [random_pair(np.random.default_rng(5), kinds) for kinds in PAIRS]

    def log_ratio(key, q, p):
        z = q.sample(key)
        return q.log_prob(z) - p.log_prob(z)

    # By lax.map, which compiles in a third of vmap's time.
    run = partial(jax.lax.map, lambda key: jnp.stack([log_ratio(key, q, p) for q, p in pairs]))
    ratios = np.asarray(jax.jit(run)(jax.random.split(jax.random.key(0), 20_000)), np.float64)
    means, errors = ratios.mean(0), ratios.std(0) / np.sqrt(len(ratios))
    there, back = np.transpose([[kl_closed(q, p), kl_closed(p, q)] for q, p in pairs])
    assert (np.abs(means - there) <= 4 * errors).all()
    assert (np.abs(means - back) > 8 * errors).all()


def test_kl_is_summed_over_the_whole_event_whatever_its_rank():
    """Other libraries left axes of video latents unsummed, or took a mean over latents."""
    rng, shape = np.random.default_rng(6), (2, 3, 2, 2)
    q, p = [Gaussian(*jnp.asarray(rng.normal(size=(2, *shape)))) for _ in range(2)]
    each = kl_per_latent(q, p)
    assert each.shape == shape
    flat = [jax.tree.map(jnp.ravel, side) for side in (q, p)]
    singles = kls_closed(*[jax.tree.map(lambda leaf: leaf[:, None], side) for side in flat])
    np.testing.assert_allclose(each.ravel(), singles, rtol=1e-6)
    assert kl_closed(q, p).shape == ()
    np.testing.assert_allclose(kl_closed(q, p), np.asarray(singles).sum(), rtol=1e-6)


def test_a_shared_log_scale_counts_for_every_latent():
    q, p = Gaussian(jnp.ones(3), jnp.array(0.5)), Gaussian(jnp.zeros(3), jnp.array(-0.5))
    spread = [Gaussian(side.loc, jnp.full(3, side.log_scale)) for side in (q, p)]
    assert kl_per_latent(q, p).shape == (3,)
    np.testing.assert_array_equal(kl_per_latent(q, p), kl_per_latent(*spread))


@pytest.mark.parametrize("kinds", PAIRS)
def test_kl_does_not_see_an_invertible_affine_map(kinds):
    """KL(A q + b || A p + b) = KL(q || p), here for a triangular A."""
    rng = np.random.default_rng(7)
    q, p = [
        side if isinstance(side, FullCovarianceGaussian) else as_full(side)
        for side in random_pair(rng, kinds)
    ]
    moved, b = random_gaussian(rng, "full").scale_tril, jnp.array([1.0, -2.0, 0.5])
    image = lambda side: FullCovarianceGaussian(moved @ side.loc + b, moved @ side.scale_tril)
    # Condition numbers of A and the factors, below 10 each, come before the rounding.
    np.testing.assert_allclose(kl_closed(image(q), image(p)), kl_closed(q, p), rtol=1e-5)


def test_entries_of_scale_tril_above_the_diagonal_are_ignored():
    q, p = random_pair(np.random.default_rng(8), "full from full")
    dirt = jnp.triu(jnp.full((3, 3), 7.0), 1)
    dirty = [FullCovarianceGaussian(side.loc, side.scale_tril + dirt) for side in (q, p)]
    value, slopes = jax.jit(jax.value_and_grad(kl, argnums=(0, 1)))(*dirty)
    np.testing.assert_allclose(value, kl_closed(q, p), rtol=1e-6)
    for slope in slopes:
        np.testing.assert_array_equal(np.triu(slope.scale_tril, 1), np.zeros((3, 3)))


def test_kl_without_a_formula_is_estimated_without_bias():
    """KL(Laplace(m, 1) || N(0, s^2)) = log(s sqrt(2 pi) / 2) - 1 + (2 + m^2) / (2 s^2), each."""
    q, p = Laplace(jnp.array([0.3, -1.0])), Gaussian(jnp.zeros(2), jnp.array([0.5, 0.0]))
    m, s = np.asarray(q.loc, np.float64), np.exp(np.asarray(p.log_scale, np.float64))
    exact = np.sum(np.log(s * np.sqrt(2 * np.pi) / 2) - 1 + (2 + m**2) / (2 * s**2))
    spread = {}
    for num_samples in (1, 100):
        estimate = lambda key, n=num_samples: kl(q, p, key=key, num_samples=n)
        over_keys = jax.jit(partial(jax.lax.map, estimate))
        estimates = np.asarray(over_keys(jax.random.split(jax.random.key(1), 1_000)), np.float64)
        spread[num_samples] = estimates.std()
        assert abs(estimates.mean() - exact) <= 4 * estimates.std() / np.sqrt(1_000)
        assert (estimates < 0.0).any() == (num_samples == 1)
    # 100 draws of their own spread by a tenth; each spread is known to about 1 / sqrt(2 * 1,000)
    # of itself, twice that where log ratios have heavier tails than a Gaussian.
    assert spread[100] == pytest.approx(spread[1] / 10, rel=4 * 2 / np.sqrt(1_000))


def test_a_formula_can_be_added(monkeypatch):
    pair = (Laplace(jnp.zeros(2)), Laplace(jnp.zeros(2)))
    assert not has_closed_form(*pair)
    monkeypatch.setitem(CLOSED_FORMS, (Laplace, Laplace), lambda q, p: jnp.array(42.0))
    assert has_closed_form(*pair)
    assert kl(*pair) == 42.0


# Transform


def all_kinds(rng, **sizes):
    return [random_gaussian(rng, kind, **sizes) for kind in ("diagonal", "full") * 2]


def all_pairs(diagonal_q, full_q, diagonal_p, full_p):
    return jnp.stack([kl(q, p) for q in (diagonal_q, full_q) for p in (diagonal_p, full_p)])


@pytest.mark.slow
def test_eager_jit_vmap_and_pmap_agree():
    batch = all_kinds(np.random.default_rng(8), batch=(8,))
    rows = [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in range(8)]
    chex.clear_trace_counter()
    jitted = jax.jit(chex.assert_max_traces(all_pairs, 1))
    eager = np.stack([all_pairs(*row) for row in rows])
    assert (eager > 0.1).all()
    for result in (
        np.stack([jitted(*row) for row in rows]),
        jax.jit(jax.vmap(all_pairs))(*batch),
        jax.pmap(all_pairs)(*batch),
    ):
        np.testing.assert_allclose(result, eager, rtol=2e-6)


def test_gradient_of_the_diagonal_kl_is_its_closed_form():
    q, p = random_pair(np.random.default_rng(9), "diagonal from diagonal")
    of_q, of_p = jax.device_get(jax.jit(jax.grad(kl, argnums=(0, 1)))(q, p))
    loc_q, log_q, loc_p, log_p = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves((q, p))]
    shift, ratio = (loc_q - loc_p) * np.exp(-log_p), np.exp(2 * (log_q - log_p))
    close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
    close(of_q.loc, shift * np.exp(-log_p))
    close(of_p.loc, -shift * np.exp(-log_p))
    close(of_q.log_scale, ratio - 1)
    close(of_p.log_scale, 1 - ratio - shift**2)


def test_gradients_are_finite_differences():
    """Central differences at h err by h^2 f''' / 6 + eps f / h: 1e-9 of f at h = 1e-5."""
    with jax.enable_x64(True):
        rng, h = np.random.default_rng(10), 1e-5
        sides, direction = all_kinds(rng), all_kinds(rng)
        along = jax.jit(
            lambda t: all_pairs(*jax.tree.map(lambda a, b: a + t * jnp.tril(b) if b.ndim == 2
                                              else a + t * b, sides, direction))
        )  # fmt: skip
        slope = jax.jit(jax.jacrev(along))(0.0)
        difference = (along(h) - along(-h)) / (2 * h)
        scale = np.abs(along(0.0)) + np.abs(slope)
    assert (np.abs(slope - difference) <= 1e-7 * scale).all()


@pytest.mark.parametrize("limit", [10.0, 20.0])
def test_kl_is_finite_in_the_corners(limit):
    """Means 200 apart and scales from exp(-limit) to exp(limit). At 20 a full factor is left out:
    the gradient by its entries, exp(100), is more than float32 holds."""
    corners = jnp.array([[-limit, -limit], [-limit, limit], [limit, -limit], [limit, limit]])
    loc = jnp.array([100.0, -100.0])

    def total(log_scale_q, log_scale_p):
        q, p = Gaussian(loc, log_scale_q), Gaussian(-loc, log_scale_p)
        if limit == 20.0:
            return kl(q, p)
        return all_pairs(q, as_full(q), p, as_full(p)).sum()

    slopes = jax.jit(jax.vmap(jax.value_and_grad(total, argnums=(0, 1))))
    chex.assert_tree_all_finite(slopes(corners[:, 0], corners[:, 1]))


@pytest.mark.parametrize("kinds", PAIRS)
def test_bfloat16_parameters_give_a_float32_kl(kinds):
    pair = random_pair(np.random.default_rng(11), kinds)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), pair)
    high = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low)
    result = kl_closed(*low)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, kl_closed(*high), rtol=1e-6)


# Failure


@pytest.mark.parametrize("arguments", [{}, {"key": None}, {"num_samples": 0}])
def test_a_pair_without_a_formula_needs_a_key(arguments):
    arguments = {"key": jax.random.key(0)} | arguments if arguments else arguments
    with pytest.raises(
        ValueError,
        match=r"kl: Laplace against Gaussian has no closed form\. Pass key= and num_samples >= 1 "
        r"for an estimate, or add the formula to divergences\.CLOSED_FORMS\.",
    ):
        kl(Laplace(jnp.zeros(2)), Gaussian.standard(2), **arguments)


def test_an_unsummed_log_prob_is_rejected():
    """Its mean would also be a mean over latents, as in several other libraries."""

    class Unsummed(Laplace):
        def log_prob(self, value):
            return -jnp.abs(value - self.loc)

    for q, p in permutations((Unsummed(jnp.zeros(2)), Gaussian.standard(2))):
        with pytest.raises(ValueError, match=r"must be a scalar, summed over the event"):
            kl(q, p, key=jax.random.key(0), num_samples=3)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", PAIRS)
def test_events_of_different_shapes_are_rejected(kinds):
    rng = np.random.default_rng(12)
    q_kind, p_kind = kinds.split(" from ")
    with pytest.raises(
        ValueError,
        match=r"kl: q and p must have the same event shape, q has \(2,\) and p has \(3,\)\. "
        "Build encoder and prior with the same latent_dim",
    ):
        kl(random_gaussian(rng, q_kind, dim=2), random_gaussian(rng, p_kind, dim=3))
