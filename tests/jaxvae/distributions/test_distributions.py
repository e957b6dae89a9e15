"""Densities, samples and their gradients, one event at a time."""

from dataclasses import FrozenInstanceError
from functools import partial
from itertools import product

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import Bernoulli, FullCovarianceGaussian, Gaussian, kl, soft_clamp
from jaxvae.distributions import at_least_float32
from tests.files import golden
from tests.golden import make_golden

GOLDEN = golden("golden")
FAMILIES = {
    "gaussian": (Gaussian, ("loc", "log_scale")),
    "full_covariance_gaussian": (FullCovarianceGaussian, ("loc", "scale_tril")),
    "bernoulli": (Bernoulli, ("logits",)),
}
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
"""Error allowed for each unit of summed absolute terms: 8 eps in float32, 4,500 in float64."""
EPS, TINY = float(np.finfo(np.float32).eps), float(np.finfo(np.float32).tiny)
NUM_DRAWS = 20_000
KINDS = ("diagonal", "one scale", "full", "bernoulli")

log_prob = jax.jit(lambda p, value: p.log_prob(value))
log_probs = jax.jit(lambda p, values: jax.vmap(p.log_prob)(values))
value_and_gradient = jax.jit(jax.value_and_grad(lambda p, value: p.log_prob(value)))
samples = jax.jit(lambda p, keys: jax.lax.map(p.sample, keys))  # compiles faster than vmap


def distribution(kind):
    loc = jnp.array([0.5, -2.0, 1.0])
    tril = jnp.array([[0.5, 0.0, 0.0], [1.0, 2.0, 0.0], [-0.3, 0.7, 1.5]])
    return {
        "diagonal": Gaussian(loc, jnp.array([-1.0, 0.0, 0.7])),
        "one scale": Gaussian(loc, jnp.array(0.3)),
        "full": FullCovarianceGaussian(loc, tril),
        "bernoulli": Bernoulli(loc),
    }[kind]


def scale_matrix(p):
    """L of N(loc, L L^T), in float64."""
    if isinstance(p, FullCovarianceGaussian):
        return np.asarray(p.scale_tril, np.float64)
    return np.diag(np.exp(np.broadcast_to(np.asarray(p.log_scale, np.float64), p.loc.shape)))


def draws(p):
    keys = jax.random.split(jax.random.key(1), NUM_DRAWS)
    return np.asarray(samples(p, keys), np.float64)


# Golden


@pytest.mark.slow
def test_golden_file_is_what_its_script_makes():
    made = make_golden.make_golden()
    assert made.keys() == GOLDEN.keys()
    for group in made:
        for new, old in zip(made[group], GOLDEN[group], strict=True):
            name = old["name"]
            assert new.pop("name") == name
            # scipy may move by some eps of float64 from release to release.
            chex.assert_trees_all_close(
                new, {k: v for k, v in old.items() if k != "name"}, rtol=1e-13, custom_message=name
            )


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("family", FAMILIES)
def test_log_prob_is_the_golden_value(family, precision):
    make, names = FAMILIES[family]
    for case in GOLDEN[family]:
        with jax.enable_x64(precision == "float64"):
            parameters = [jnp.asarray(case[name], float) for name in names]
            result = log_prob(make(*parameters), jnp.asarray(case["x"], float))
        assert (result.shape, result.dtype.name) == ((), precision)
        error = abs(float(result) - case["log_prob"])
        assert error <= TOLERANCE[precision] * case["terms"] + TINY, case["name"]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_bernoulli_gradient_is_the_golden_value(precision):
    for case in GOLDEN["bernoulli"]:
        with jax.enable_x64(precision == "float64"):
            logits, x = (jnp.asarray(case[name], float) for name in ("logits", "x"))
            result = value_and_gradient(Bernoulli(logits), x)[1].logits
        # x - sigmoid(l): two numbers of at most 1, so their absolute sum is at most 2.
        error = np.abs(np.asarray(result, np.float64) - case["gradient"]).max()
        assert error <= 2 * TOLERANCE[precision], case["name"]


# Law


@pytest.mark.parametrize("x", [0.0, 1.0])
@pytest.mark.parametrize("logit", [-1e4, -90.0, 0.0, 90.0, 1e4])
def test_bernoulli_is_right_where_a_published_formula_is_not(logit, x):
    """Flax's VAE example gives NaN or infinity at logit 90, in value and gradient."""

    def published(logit):
        log_p = jax.nn.log_sigmoid(logit)
        return x * log_p + (1.0 - x) * jnp.log(-jnp.expm1(log_p))

    value, slope = value_and_gradient(Bernoulli(jnp.array(logit)), jnp.array(x))
    # log(1 + exp(-90)) = 8e-40, so that away from 0 the value is a straight line.
    signed = logit if x == 1.0 else -logit
    expected = min(signed, 0.0) if logit else -np.log(2.0)
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=TINY)
    np.testing.assert_allclose(slope.logits, x - np.heaviside(logit, 0.5), rtol=1e-6, atol=TINY)
    if logit >= 90.0:
        assert not np.isfinite(jax.value_and_grad(published)(jnp.array(logit))).all()


def test_bernoulli_masses_add_up_to_one():
    logits = jnp.linspace(-3.0, 4.0, 6)
    values = jnp.array(list(product([0.0, 1.0], repeat=6)))
    masses = jnp.exp(log_probs(Bernoulli(logits), values))
    terms = jnp.sum(jnp.abs(logits) + jax.nn.softplus(logits))
    np.testing.assert_allclose(masses.sum(), 1.0, rtol=1e-6 * float(terms))


def test_bernoulli_of_a_grey_level_is_the_expected_log_mass():
    logits, grey = jnp.linspace(-3.0, 4.0, 6), jnp.linspace(0.0, 1.0, 6)
    values = jnp.array(list(product([0.0, 1.0], repeat=6)))
    chances = jnp.prod(jnp.where(values == 1.0, grey[None], 1.0 - grey[None]), axis=1)
    expected = jnp.sum(chances * log_probs(Bernoulli(logits), values))
    terms = jnp.sum(jnp.abs(logits) + jax.nn.softplus(logits))
    np.testing.assert_allclose(
        Bernoulli(logits).log_prob(grey), expected, rtol=0, atol=2e-6 * float(terms)
    )


@pytest.mark.parametrize("kind", ["diagonal", "one scale", "full"])
def test_density_integrates_to_one(kind):
    """By the trapezoid rule, whose error at steps of 0.5 is exp(-2 pi^2 / 0.5^2) = 1e-34."""
    p = distribution(kind)
    grid, scale = np.arange(-6.0, 6.5, 0.5), scale_matrix(p)
    eps = np.stack(np.meshgrid(grid, grid, grid), -1).reshape(-1, 3)
    densities = np.exp(log_probs(p, jnp.asarray(np.asarray(p.loc) + eps @ scale.T)))
    total = densities.sum(dtype=np.float64) * 0.5**3 * np.linalg.det(scale)
    # An exponent errs by 1e-6 of its terms: 1.5 from |eps|^2 / 2 on average, 6 from the constants.
    np.testing.assert_allclose(total, 1.0, rtol=10e-6)


@pytest.mark.parametrize("kind", ["diagonal", "one scale", "full"])
def test_gaussian_draws_have_the_right_moments(kind):
    p = distribution(kind)
    z = draws(p)
    covariance = scale_matrix(p) @ scale_matrix(p).T
    variance = np.diag(covariance)
    np.testing.assert_array_equal(p.mean(), p.loc)
    error_mean = np.abs(z.mean(0) - np.asarray(p.loc))
    assert (error_mean <= 4 * np.sqrt(variance / NUM_DRAWS)).all()
    # Var of an entry of the sample covariance (Isserlis): (S_ii S_jj + S_ij^2) / N.
    se_covariance = np.sqrt((np.outer(variance, variance) + covariance**2) / NUM_DRAWS)
    assert (np.abs(np.cov(z.T) - covariance) <= 4 * se_covariance).all()
    # Of a Gaussian, and of no other noise with these moments: E eps^4 = 3, Var eps^4 = 105 - 9.
    eps = np.linalg.solve(scale_matrix(p), (z - np.asarray(p.loc)).T)
    assert (np.abs(np.mean(eps**4, axis=1) - 3) <= 4 * np.sqrt(96 / NUM_DRAWS)).all()


def test_bernoulli_draws_have_the_right_mean():
    """The mean is not softplus(logit), the probability in jax's own VAE example."""
    logits = jnp.array([-1e4, -3.0, -0.5, 0.0, 0.5, 3.0, 1e4])
    x = draws(Bernoulli(logits))
    p = 1.0 / (1.0 + np.exp(-np.clip(np.asarray(logits, np.float64), -700, 700)))
    assert set(np.unique(x)) == {0.0, 1.0}
    assert (np.abs(x.mean(0) - p) <= 4 * np.sqrt(p * (1 - p) / NUM_DRAWS) + EPS).all()
    np.testing.assert_allclose(Bernoulli(logits).mean(), p, rtol=4 * EPS, atol=1e-38)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_come_from_the_density(kind):
    """The mean of -log p over draws of p is the entropy."""
    p = distribution(kind)
    surprise = -np.asarray(log_probs(p, jnp.asarray(draws(p))), np.float64)
    if kind == "bernoulli":
        q = np.asarray(p.mean(), np.float64)
        entropy = -np.sum(q * np.log(q) + (1 - q) * np.log1p(-q))
    else:
        entropy = 1.5 * np.log(2 * np.pi * np.e) + np.log(np.linalg.det(scale_matrix(p)))
    assert abs(surprise.mean() - entropy) <= 4 * surprise.std() / np.sqrt(NUM_DRAWS)


@pytest.mark.parametrize("kind", ["diagonal", "one scale", "full"])
def test_sample_is_a_shift_and_scale_of_the_same_noise(kind):
    """z = loc + L eps: dz/dloc = I, dz/dL = eps, dz/dlog_scale = exp(log_scale) eps."""
    p, key = distribution(kind), jax.random.key(2)
    weights = jnp.array([1.0, -2.0, 3.0])
    gradient = jax.jit(jax.grad(lambda p: weights @ p.sample(key)))(p)
    noise = np.asarray(p.sample(key) - p.loc, np.float64)
    # The difference carries the rounding of the sum it undoes: eps |z|, with |z| < 8 here.
    tolerance = {"rtol": 4 * EPS, "atol": 3 * 8 * EPS}
    np.testing.assert_array_equal(gradient.loc, weights)
    if kind == "full":
        eps = np.linalg.solve(scale_matrix(p), noise)
        expected = np.tril(np.outer(weights, eps))
        np.testing.assert_allclose(gradient.scale_tril, expected, rtol=4 * EPS, atol=16 * 3 * EPS)
    else:
        expected = np.asarray(weights) * noise
        expected = expected.sum() if kind == "one scale" else expected
        np.testing.assert_allclose(gradient.log_scale, expected, **tolerance)


def test_gradient_of_a_mean_of_draws_is_that_of_the_expectation():
    """E |z|^2 = |loc|^2 + sum_d s_d^2 has gradients 2 loc and 2 s^2 (Doersch 2016, figure 4)."""
    p = distribution("diagonal")

    def gradient(key):
        return jax.grad(lambda p: jnp.sum(jnp.square(p.sample(key))))(p)

    keys = jax.random.split(jax.random.key(3), NUM_DRAWS)
    gradients = jax.device_get(jax.jit(partial(jax.lax.map, gradient))(keys))
    expected = Gaussian(2 * p.loc, 2 * jnp.exp(2 * p.log_scale))
    for drawn, exact in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        error = np.abs(drawn.mean(0, dtype=np.float64) - np.asarray(exact))
        assert (error <= 4 * drawn.std(0) / np.sqrt(NUM_DRAWS)).all()


def test_bernoulli_draws_pass_no_gradient():
    gradient = jax.grad(lambda logits: Bernoulli(logits).sample(jax.random.key(0)).sum())
    assert (gradient(jnp.ones(3)) == 0.0).all()


@pytest.mark.parametrize(("loc", "log_scale"), list(product([-100.0, 100.0], [-20.0, 20.0])))
def test_gaussian_is_finite_and_right_in_the_corners(loc, log_scale):
    """d/dloc = eps / s and d/dlog_scale = eps^2 - 1, with eps = (x - loc) / s."""
    p = Gaussian(jnp.array([loc]), jnp.array([log_scale]))
    for x in (0.0, loc):
        value, gradient = value_and_gradient(p, jnp.array([x]))
        eps = (x - loc) * np.exp(-log_scale)
        assert np.isfinite(value)
        # Two or three products of factors good to some eps each.
        np.testing.assert_allclose(gradient.loc, [eps * np.exp(-log_scale)], rtol=8 * EPS)
        np.testing.assert_allclose(gradient.log_scale, [eps**2 - 1], rtol=8 * EPS)
    assert np.isfinite(draws(p)).all()


def test_entries_of_scale_tril_above_the_diagonal_are_ignored():
    p, x, key = distribution("full"), jnp.ones(3), jax.random.key(0)
    dirty = FullCovarianceGaussian(p.loc, p.scale_tril + jnp.triu(jnp.full((3, 3), 7.0), 1))
    value_and_slope = jax.jit(jax.value_and_grad(lambda p: p.log_prob(x) + p.sample(key).sum()))
    chex.assert_trees_all_equal(value_and_slope(dirty)[0], value_and_slope(p)[0])
    np.testing.assert_array_equal(
        np.triu(value_and_slope(dirty)[1].scale_tril, 1), np.zeros((3, 3))
    )


@pytest.mark.parametrize("limit", [7.0, 2.0])
def test_soft_clamp_is_smooth_and_bounded(limit):
    clamp = lambda x: soft_clamp(x, limit)
    x = jnp.array([-1e30, -50.0, -3.0, -1e-3, 0.0, 1e-3, 3.0, 50.0, 1e30])
    y, slope = jax.device_get(jax.jit(jax.vmap(jax.value_and_grad(clamp)))(x))
    # limit * tanh(x / limit) has the slope 1 - (y / limit)^2: at 0 it is 1, far out 0.
    np.testing.assert_allclose(slope, 1 - (y / limit) ** 2, rtol=8 * EPS, atol=2 * EPS)
    np.testing.assert_allclose(y, limit * np.tanh(np.asarray(x, np.float64) / limit), rtol=8 * EPS)
    assert slope[4] == 1.0
    assert slope[0] == slope[-1] == 0.0
    assert (np.abs(y) <= limit).all()
    assert (np.diff(y) >= 0.0).all()
    np.testing.assert_array_equal(y, -y[::-1])


def test_soft_clamp_leaves_log_scales_of_practice_nearly_alone():
    # x - limit tanh(x / limit) = x^3 / (3 limit^2) to leading order, from below.
    x = jnp.linspace(-1.0, 1.0, 9)
    assert (jnp.abs(x - soft_clamp(x)) <= jnp.abs(x) ** 3 / (3 * 7.0**2) + EPS).all()


# Transform


@pytest.mark.slow
def test_eager_jit_vmap_and_pmap_agree():
    """All families in one function: each transform returns the same distributions."""
    kinds = [distribution(kind) for kind in KINDS]
    rows = [jax.tree.map(lambda leaf, i=i: leaf * (1 + 0.1 * i), kinds) for i in range(8)]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    keys = jax.random.split(jax.random.key(4), 8)
    chex.clear_trace_counter()

    def draw_and_score(kinds, key):
        return [(p, z := p.sample(key), p.log_prob(z), p.mean()) for p in kinds]

    def over_rows(draw_and_score):
        results = [draw_and_score(row, key) for row, key in zip(rows, keys, strict=True)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *results)

    eager = over_rows(draw_and_score)
    # The same operations fused in other ways: some eps of terms that add up to less than 20.
    for result in (
        over_rows(jax.jit(chex.assert_max_traces(draw_and_score, 1))),
        jax.device_get(jax.jit(jax.vmap(draw_and_score))(batch, keys)),
        jax.device_get(jax.pmap(draw_and_score)(batch, keys)),
    ):
        assert [type(p) for p, *_ in result] == [type(p) for p in kinds]
        chex.assert_trees_all_close(result, eager, rtol=0, atol=1e-6 * 20)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_parameters_give_float32_densities(kind):
    p = distribution(kind)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), p)
    high = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low)
    x = jnp.array([0.0, 1.0, 1.0], jnp.bfloat16)
    assert low.log_prob(x).dtype == jnp.float32
    assert low.log_prob(x) == high.log_prob(x.astype(jnp.float32))
    assert low.sample(jax.random.key(0)).dtype == jnp.float32
    assert at_least_float32(x)[0].dtype == jnp.float32


def test_sums_are_not_taken_in_bfloat16():
    """In bfloat16, 10,000 ones would add up to 9,984."""
    zeros = jnp.zeros(10_000, jnp.bfloat16)
    expected = -10_000 * np.log(2)
    np.testing.assert_allclose(Bernoulli(zeros).log_prob(zeros), expected, rtol=1e-6)
    expected = -5_000 * np.log(2 * np.pi)
    np.testing.assert_allclose(Gaussian(zeros, zeros).log_prob(zeros), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32, jnp.bool_])
def test_whole_numbers_are_accepted_as_values(kind, dtype):
    x = jnp.array([0, 1, 1])
    result = distribution(kind).log_prob(x.astype(dtype))
    assert result.dtype == jnp.float32
    assert result == distribution(kind).log_prob(x.astype(jnp.float32))


def test_the_standard_gaussian():
    p = Gaussian.standard(3)
    assert (p.loc.shape, p.log_scale.shape) == ((3,), (3,))
    # -1/2 |x|^2 - 3/2 log 2 pi
    expected = -0.5 * (1 + 4 + 9) - 1.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(p.log_prob(jnp.array([1.0, 2.0, 3.0])), expected, rtol=1e-6)
    np.testing.assert_array_equal(p.mean(), jnp.zeros(3))


# Failure


def test_a_value_of_another_shape_is_rejected():
    with pytest.raises(
        ValueError,
        match=r"log_prob: value has shape \(784,\), this Bernoulli has event shape \(28, 28, 1\)\. "
        r"Reshape x, or build the decoder with data_shape=\(784,\)\.",
    ):
        Bernoulli(jnp.zeros((28, 28, 1))).log_prob(jnp.zeros(784))
    with pytest.raises(
        ValueError, match=r"value has shape \(2, 3\), this Gaussian has event shape \(3,\)\. Resh"
    ):
        Gaussian.standard(3).log_prob(jnp.zeros((2, 3)))
    with pytest.raises(
        ValueError,
        match=r"shape \(3, 1\), this FullCovarianceGaussian has event shape \(3,\)\. Flatten",
    ):
        distribution("full").log_prob(jnp.zeros((3, 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_rejection_comes_at_trace_time(kind):
    with pytest.raises(ValueError, match="event shape"):
        jax.eval_shape(log_prob, distribution(kind), jax.ShapeDtypeStruct((4,), jnp.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_distributions_are_frozen(kind):
    with pytest.raises(FrozenInstanceError):
        distribution(kind).loc = jnp.zeros(3)


@pytest.mark.parametrize(("loc", "log_scale"), [((4, 4, 1), (4, 4)), ((1,), (3,)), ((3,), (1,))])
def test_a_scale_of_another_shape_is_rejected(loc, log_scale):
    """Broadcasting would count coordinates that do not exist."""
    with jax.numpy_rank_promotion("allow"):
        p = Gaussian(jnp.zeros(loc), jnp.zeros(log_scale))
        for use in (
            lambda: p.log_prob(jnp.zeros(loc)),
            lambda: p.sample(jax.random.key(0)),
            lambda: kl(p, p),
        ):
            with pytest.raises(ValueError, match=r"log_scale must be a scalar or have loc's shape"):
                use()
