"""Likelihood families: their densities, initial outputs and sigma."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import jaxvae.distributions as families_of
from experiments.flags import combinations
from jaxvae import soft_clamp
from jaxvae.models import likelihoods
from jaxvae.models.likelihoods import LIKELIHOODS, Likelihood, gaussian, laplace, likelihood_named

SHAPE = (3, 2, 2)
SIGMAS = (0.3, "learned", "per_channel", "per_pixel")
OTHERS = [name for name in LIKELIHOODS if name not in ("gaussian", "laplace")]
FAMILIES = {
    **{name: likelihood_named(name, "learned", SHAPE) for name in OTHERS},
    **{
        f"{name} {sigma}": likelihood_named(name, sigma, SHAPE)
        for name in ("gaussian", "laplace")
        for sigma in SIGMAS
    },
    "gaussian optimal": gaussian("optimal", SHAPE),
}
PIXELS = ("discretized_logistic", "logistic_mixture", "color_logistic_mixture", "categorical")
COUNTS = ("poisson", "negative_binomial", "zero_inflated_negative_binomial")

families = pytest.mark.parametrize("name", FAMILIES)
scaled = pytest.mark.parametrize("family", [gaussian, laplace])


@cache
def scorer(name):
    """(params, output, x) -> log p(x|z) and that of each entry, compiled once."""

    @jax.jit
    def score(params, output, x):
        p = FAMILIES[name].distribution(params, output)
        return p.log_prob(x), p.log_prob_per_entry(x)

    return score


@cache
def batch_gradient(name):
    """([8] params, [8] outputs, [8] xs) -> log p(x|z) and its gradients, compiled once."""

    def score(params, output, x):
        return FAMILIES[name].distribution(params, output).log_prob(x)

    return jax.jit(jax.vmap(jax.value_and_grad(score, argnums=(0, 1))))


@cache
def example(name):
    """Parameters, outputs, and one x in the support, all random."""
    family, rng = FAMILIES[name], np.random.default_rng(0)
    shape = jax.eval_shape(lambda: family.output_at(jnp.full(SHAPE, 0.5), 1.0)).shape
    output = rng.normal(size=shape).astype(np.float32)
    params = jax.tree.map(
        lambda leaf: rng.normal(scale=0.5, size=leaf.shape).astype(np.float32), family.init(0.3)
    )
    if name == "bernoulli":
        x = rng.integers(0, 2, SHAPE)
    elif name in PIXELS:
        x = rng.permutation([0, 255, *rng.integers(0, 256, 10)]).reshape(SHAPE)
    elif name in COUNTS:
        x = rng.permutation([0, 0, *rng.poisson(2, 10)]).reshape(SHAPE)
    else:
        x = rng.random(SHAPE)
    return params, output, x.astype(np.float32)


def output_and_data():
    rng = np.random.default_rng(0)
    output, x = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    return output, x


def clamped(value, limit=7.0):
    return limit * np.tanh(value / limit)


def before_clamp(log_scale):
    """The parameter of a learned sigma, before its soft_clamp, at which log sigma is this."""
    return jnp.asarray(7 * np.arctanh(log_scale / 7), jnp.float32)


def log_prob(family, log_scale, output, x):
    return family.distribution({"log_scale": log_scale}, output).log_prob(x)


# Golden


def expected_scaled(name, params, output, x):
    sigma = name.split()[1]
    if sigma == "per_pixel":
        output, log_scale = output[..., 0], clamped(output[..., 1])
    elif sigma == "0.3":
        log_scale = np.log(0.3)
    else:
        log_scale = params["log_scale"] if sigma == "optimal" else clamped(params["log_scale"])
    family = scipy.stats.norm if name.startswith("gaussian") else scipy.stats.laplace
    return family.logpdf(x, output, np.exp(log_scale))


def logistic_log_mass(x, loc, log_scale):
    """By the logistic's cumulative distribution, the ends open; loc and scale in [-1, 1]."""
    logistic = scipy.stats.logistic(127.5 * (1 + loc), 127.5 * np.exp(clamped(log_scale)))
    above = np.where(x == 255, 1.0, logistic.cdf(x + 0.5))
    return np.log(above - np.where(x == 0, 0.0, logistic.cdf(x - 0.5)))


def expected_pixels(name, params, output, x):
    if name == "discretized_logistic":
        return logistic_log_mass(x, output[..., 0], output[..., 1])
    if name == "categorical":
        masses = scipy.special.log_softmax(output, axis=-1)
        return np.take_along_axis(masses, x.astype(int)[..., None], axis=-1)[..., 0]
    if name == "color_logistic_mixture":
        logits, rest = output[..., :5], output[..., 5:].reshape(*x.shape[:-1], 5, 5)
        loc, log_scale, coefficient = rest[..., :2, :], rest[..., 2:4, :], np.tanh(rest[..., 4, :])
        before = (x[..., :1] - 127.5) / 127.5
        loc = np.stack([loc[..., 0, :], loc[..., 1, :] + coefficient * before], axis=-2)
        each = logistic_log_mass(x[..., None], loc, log_scale).sum(-2)
    else:
        logits, loc, log_scale = output[..., :5], output[..., 5:10], output[..., 10:]
        each = logistic_log_mass(x[..., None], loc, log_scale)
    return scipy.special.logsumexp(scipy.special.log_softmax(logits, axis=-1) + each, axis=-1)


def expected_counts(name, params, output, x):
    if name == "poisson":
        return scipy.stats.poisson.logpmf(x, np.exp(clamped(output, 15)))
    zero_inflated = name.startswith("zero")
    mean = np.exp(clamped(output[..., 0] if zero_inflated else output, 15))
    dispersion = np.exp(clamped(params["log_dispersion"]))
    binomial = scipy.stats.nbinom.logpmf(x, dispersion, dispersion / (dispersion + mean))
    if not zero_inflated:
        return binomial
    dropped = scipy.special.expit(output[..., 1])
    return np.log((1 - dropped) * np.exp(binomial) + dropped * (x == 0))


def expected(name, params, output, x):
    if name == "bernoulli":
        return scipy.stats.bernoulli.logpmf(x, scipy.special.expit(output))
    if name == "continuous_bernoulli":
        return x * output - np.log(np.expm1(output) / output)
    if name in PIXELS:
        return expected_pixels(name, params, output, x)
    return (expected_counts if name in COUNTS else expected_scaled)(name, params, output, x)


@families
def test_log_prob_is_scipys(name):
    """Entries of order one to ten, each of a few operations: 1e-5 is 80 eps of float32."""
    params, output, x = example(name)
    total, each = scorer(name)(params, output, x)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, output, x))
    right = expected(name, *exact)
    assert right.shape == (SHAPE[:-1] if FAMILIES[name].per_pixel else SHAPE)
    np.testing.assert_allclose(each, right, rtol=1e-5, atol=1e-5)
    assert total.shape == ()
    assert abs(float(total) - right.sum()) <= 1e-5 * np.abs(right).sum()


def test_the_encoder_sees_numbers_of_order_one():
    pixels, counts = np.array([0.0, 51.0, 255.0]), np.array([-3.0, 0.0, 1.0, 1e6])
    for name, family in FAMILIES.items():
        if name in PIXELS:
            np.testing.assert_allclose(family.network_input(pixels), [-1, -0.6, 1], atol=1e-6)
        elif name in COUNTS:
            seen = family.network_input(counts)
            # Below 0, where only a pseudo-input can be, x itself: a gradient leads back.
            np.testing.assert_allclose(seen, [-3, *np.log1p([0, 1, 1e6])], rtol=1e-6)
        else:
            assert family.network_input(counts) is counts


# Law


@pytest.mark.parametrize("name", ["bernoulli", *PIXELS[:2], "categorical", *COUNTS])
def test_masses_add_up_to_one(name):
    """256 terms err by at most 1e-6 each; counts above 2,000 have a mass below 1e-6."""
    params, output, _ = example(name)
    num_values = {"bernoulli": 2}.get(name, 256 if name in PIXELS else 2000)
    values = np.broadcast_to(np.arange(num_values)[:, None, None, None], (num_values, *SHAPE))
    each = jax.jit(jax.vmap(FAMILIES[name].distribution(params, output).log_prob_per_entry))
    total = np.exp(np.asarray(each(values), np.float64)).sum(axis=0)
    np.testing.assert_allclose(total, np.ones(SHAPE), rtol=0, atol=1e-5)


def mean_of_pixels(loc, scale):
    """Mean of a logistic variable cut to [0, 255], the integral of 1 - CDF; rounding keeps it."""
    softplus = lambda t: np.logaddexp(0, t)
    return scale * (softplus(loc / scale) - softplus((loc - 255) / scale))


def mean_where_it_starts(name, mean, data_scale):
    """Initial mean of p(x|z), and the float32 error that it may have.

    Means are clipped to 0.01 from the ends (0.02 for a continuous Bernoulli, whose logits would
    exceed 50), where a logit has no gradient. A logistic at an end has only its inner half, so that
    its mean is log(2) scales inside; its scale is half the data's. Counts are at least 0.001, and
    a zero-inflated family loses sigmoid(-3), 5 %, to its extra zeros. A log rate passes through
    tanh and its inverse: 15 eps in the logarithm, a relative error of the mean.
    """
    if name == "bernoulli":
        return np.clip(mean, 0.01, 0.99), 1e-6
    if name == "continuous_bernoulli":
        return np.clip(mean, 0.02, 0.98), 1e-6
    if name in ("discretized_logistic", "categorical"):
        return mean_of_pixels(mean, 0.5 * data_scale), 2e-3
    if name.endswith("logistic_mixture"):
        apart = data_scale * np.array([-1, -0.5, 0, 0.5, 1])
        each = mean_of_pixels(mean[..., None] + apart, 0.5 * data_scale)
        return each.mean(axis=-1), 2e-3
    if name in COUNTS:
        kept = 1 / (1 + np.exp(-3.0)) if name.startswith("zero") else 1.0
        return kept * np.maximum(mean, 1e-3), 3e-5 * mean.max()
    return mean, 0.0


@families
def test_output_at_a_mean_has_about_that_mean(name):
    top = 255.0 if name in PIXELS else 300.0 if name in COUNTS else 1.0
    mean = np.linspace(0, top, 12).reshape(SHAPE)
    family, data_scale = FAMILIES[name], 0.2 * top

    @jax.jit
    def start(mean):
        output = family.output_at(mean, data_scale)
        return output, family.distribution(family.init(data_scale), output).mean()

    output, result = start(mean.astype(np.float32))
    assert output.shape == example(name)[1].shape
    right, error = mean_where_it_starts(name, mean, data_scale)
    np.testing.assert_allclose(result, right, rtol=1e-6, atol=error)


@pytest.mark.parametrize(
    "name", ["discretized_logistic", "logistic_mixture", "color_logistic_mixture"]
)
def test_a_logistic_starts_at_half_the_data_scale(name):
    family = FAMILIES[name]
    p = family.distribution({}, family.output_at(jnp.full(SHAPE, 99.0), 60.0))
    np.testing.assert_allclose(p.log_scale, np.full(p.log_scale.shape, np.log(30)), rtol=1e-6)


@pytest.mark.parametrize("data_scale", [2e-3, 0.25, 1.0, 800.0])
@scaled
@pytest.mark.parametrize("sigma", ["learned", "per_channel", "per_pixel", "optimal"])
def test_a_sigma_that_learns_starts_at_the_data_scale(sigma, family, data_scale):
    """The tolerance is the rounding of tanh near its ends, 7 eps / (1 - (log 800 / 7)^2)."""
    if (sigma, family) == ("optimal", laplace):
        return
    p = family(sigma, SHAPE)
    params = p.init(data_scale)
    shapes = {"learned": (), "per_channel": (2,), "optimal": ()}
    assert {key: leaf.shape for key, leaf in params.items()} == (
        {"log_scale": shapes[sigma]} if sigma in shapes else {}
    )
    assert {leaf.dtype.name for leaf in params.values()} <= {"float32"}
    log_scale = p.distribution(params, p.output_at(jnp.zeros(SHAPE), data_scale)).log_scale
    assert log_scale.shape == (() if sigma in ("learned", "optimal") else SHAPE)
    np.testing.assert_allclose(
        log_scale, np.broadcast_to(np.log(data_scale), log_scale.shape), rtol=0, atol=1e-5
    )


def test_a_dispersion_starts_at_one_for_every_dimension():
    for name in ("negative_binomial", "zero_inflated_negative_binomial"):
        params = FAMILIES[name].init(0.3)
        assert params["log_dispersion"].shape == SHAPE
        assert not np.asarray(params["log_dispersion"]).any()
    assert all(FAMILIES[name].init(0.3) == {} for name in ("bernoulli", "poisson", *PIXELS))


@families
def test_outputs_of_one_dimension_are_that_dimensions(name):
    """Changing one number of the output changes only the density of its own entry."""
    params, output, x = example(name)
    entries = 6 if FAMILIES[name].per_pixel else 12
    columns = output.reshape(entries, -1)
    _, before = scorer(name)(params, output, x)
    for i, k in [(0, 0), (5, columns.shape[1] // 2), (entries - 1, columns.shape[1] - 1)]:
        other = columns.copy()
        other[i, k] += 3.0
        _, after = scorer(name)(params, other.reshape(output.shape), x)
        np.testing.assert_array_equal(np.ravel(after != before), np.arange(entries) == i)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
@scaled
def test_gradient_of_a_learned_sigma_is_its_closed_form(family, factor):
    """d log p / d log sigma = sum_d (|error / sigma|^n - 1), n = 2 (1 for Laplace)."""
    output, x = output_and_data()
    power = 2 if family is gaussian else 1
    log_sigma = np.log(factor * (np.abs(x - output, dtype=np.float64) ** power).mean()) / power
    slope = jax.jit(jax.grad(log_prob, argnums=1), static_argnums=0)(
        family("learned", SHAPE), before_clamp(log_sigma), output, x
    )
    bend = 1 - (log_sigma / 7) ** 2  # of soft_clamp, at the parameter
    expected = x.size * (1 / factor - 1) * bend
    assert abs(float(slope) - expected) <= 1e-5 * x.size * (1 / factor + 1)


@scaled
def test_each_channel_has_the_gradient_of_its_own_errors(family):
    output, x = output_and_data()
    log_sigma = np.array([-0.5, 0.7])
    slope = jax.jit(jax.grad(log_prob, argnums=1), static_argnums=0)(
        family("per_channel", SHAPE), before_clamp(log_sigma), output, x
    )
    ratio = (np.abs(x - output) / np.exp(log_sigma)) ** (2 if family is gaussian else 1)
    bend = 1 - (log_sigma / 7) ** 2
    np.testing.assert_allclose(slope, (ratio - 1).sum((0, 1)) * bend, rtol=1e-5, atol=1e-5)


@scaled
def test_each_pixel_has_the_gradient_of_its_own_error(family):
    loc, x = output_and_data()
    raw = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    score = lambda raw: (
        family("per_pixel", SHAPE).distribution({}, jnp.stack([loc, raw], axis=-1)).log_prob(x)
    )
    ratio = (np.abs(x - loc) / np.exp(clamped(raw))) ** (2 if family is gaussian else 1)
    bend = 1 - np.tanh(raw / 7) ** 2
    np.testing.assert_allclose(
        jax.jit(jax.grad(score))(raw), (ratio - 1) * bend, rtol=1e-5, atol=1e-5
    )


@scaled
@pytest.mark.parametrize("size", [-1e6, 1e6])
def test_a_learned_sigma_stays_within_the_clamp(family, size):
    for sigma in ("learned", "per_channel"):
        log_scale = {"log_scale": jnp.full((2,) if sigma == "per_channel" else (), size)}
        p = family(sigma, SHAPE).distribution(log_scale, jnp.zeros(SHAPE))
        assert (p.log_scale == soft_clamp(jnp.float32(size))).all()
        assert (p.log_scale == np.sign(size) * 7).all()
    p = family("per_pixel", SHAPE).distribution({}, jnp.full((*SHAPE, 2), size))
    assert (p.log_scale == np.sign(size) * 7).all()


@families
def test_extreme_outputs_have_finite_densities_and_gradients(name):
    """Every output and parameter 1e4, -1e4 or 0, at values at both ends of the support."""
    rng = np.random.default_rng(3)
    params, output, _ = example(name)
    low, high = {"bernoulli": (0, 1), "continuous_bernoulli": (0, 1)}.get(
        name, (0, 255) if name in PIXELS else (0, 1e6) if name in COUNTS else (-100, 100)
    )
    extreme = lambda leaf: rng.choice([-1e4, 0.0, 1e4], (8, *np.shape(leaf))).astype(np.float32)
    if name == "gaussian optimal":  # the only one that is given its log scale, not a raw one
        params = {"log_scale": np.float32(-7.0)}
        extremes = jax.tree.map(lambda leaf: np.full(8, leaf), params), extreme(output)
    else:
        extremes = jax.tree.map(extreme, (params, output))
    xs = rng.choice([low, high], (8, *SHAPE)).astype(np.float32)
    results = batch_gradient(name)(*extremes, xs)
    for path, leaf in jax.tree_util.tree_leaves_with_path(results):
        assert np.isfinite(leaf).all(), path


@pytest.mark.parametrize("sigma", ["learned", "optimal"])
def test_the_mean_squared_error_is_the_sigma_squared_of_the_highest_likelihood(sigma):
    """Against a grid of factors; the nearest differ by D / 4 * log(1.1)^2 = 0.027 nats."""
    output, x = output_and_data()
    optimum = 0.5 * np.log(np.square(x - output, dtype=np.float64).mean())
    grid = optimum + 0.5 * np.log(1.1) * np.arange(-40, 41)
    params = before_clamp(grid) if sigma == "learned" else jnp.float32(grid)
    family = gaussian(sigma, SHAPE)
    over_grid = jax.vmap(lambda log_scale: log_prob(family, log_scale, output, x))
    values = np.asarray(over_grid(params))
    assert values.argmax() == 40
    assert values[40] - max(values[39], values[41]) > 0.01


def test_an_optimal_sigma_passes_no_gradient_to_itself():
    """The network still gets the gradient of the Gaussian with this sigma: (x - f) / sigma^2."""
    output, x = output_and_data()
    to_scale, to_output = jax.grad(log_prob, argnums=(1, 2))(
        gaussian("optimal", SHAPE), jnp.log(0.5), output, x
    )
    assert to_scale == 0
    np.testing.assert_allclose(to_output, (x - output) / 0.25, rtol=1e-5)


def test_only_an_optimal_sigma_can_be_set():
    setters = {name: family.with_log_scale for name, family in FAMILIES.items()}
    set_scale = setters.pop("gaussian optimal")
    assert set(setters.values()) == {None}
    params = {"log_scale": jnp.zeros(())}
    assert set_scale(params, jnp.float32(-1.5)) == {"log_scale": -1.5}
    assert params["log_scale"] == 0


@scaled
def test_a_fixed_sigma_does_not_depend_on_parameters_or_data_scale(family):
    p = family(2, SHAPE).distribution({"log_scale": jnp.float32(5.0)}, jnp.zeros(SHAPE))
    np.testing.assert_allclose(p.log_scale, np.log(2), rtol=1e-6)
    assert family(2, SHAPE).init(0.1) == {}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("bernoulli", "Bernoulli"),
        ("continuous_bernoulli", "ContinuousBernoulli"),
        ("gaussian", "Gaussian"),
        ("laplace", "Laplace"),
        ("discretized_logistic", "DiscretizedLogistic"),
        ("logistic_mixture", "DiscretizedLogisticMixture"),
        ("color_logistic_mixture", "ColorLogisticMixture"),
        ("categorical", "Categorical"),
        ("poisson", "Poisson"),
        ("negative_binomial", "NegativeBinomial"),
        ("zero_inflated_negative_binomial", "ZeroInflatedNegativeBinomial"),
    ],
)
def test_a_likelihood_has_the_distribution_of_its_name(name, kind):
    family = likelihood_named(name, 0.5, SHAPE)
    assert isinstance(family, Likelihood)
    output = jax.eval_shape(lambda: family.output_at(jnp.full(SHAPE, 0.5), 1.0))
    p = family.distribution(family.init(1.0), jnp.zeros(output.shape))
    assert type(p) is getattr(families_of, kind)


def test_a_likelihood_can_be_added(monkeypatch):
    monkeypatch.setitem(LIKELIHOODS, "two words", lambda sigma, shape: gaussian(sigma / 2, shape))
    p = likelihood_named("two words", 1.0, SHAPE).distribution({}, jnp.zeros(SHAPE))
    np.testing.assert_allclose(p.log_scale, -np.log(2), rtol=1e-6)


# Transform


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*OTHERS, "gaussian optimal", "gaussian per_pixel", "laplace per_channel"]
)
def test_eager_jit_and_vmap_agree(name):
    """The same operations fused in other ways: some eps of the terms, which are below 100. The
    other kinds of sigma differ in shapes only, and each operation is compiled on its own."""
    params, output, x = example(name)
    with jax.disable_jit():
        eager = FAMILIES[name].distribution(params, output).log_prob(x)
    rows = jax.tree.map(lambda leaf: np.stack([leaf] * 8), (params, output, x))
    vmapped, _ = batch_gradient(name)(*rows)
    np.testing.assert_allclose(scorer(name)(params, output, x)[0], eager, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(vmapped, np.full(8, eager), rtol=1e-5, atol=1e-5)


# Failure


@pytest.mark.parametrize("sigma", [0.0, -0.5, np.inf, np.nan, "best", "0.5"])
@scaled
def test_an_invalid_sigma_is_rejected(family, sigma):
    message = (
        "sigma must be a positive number, learned, per_channel, per_pixel or optimal, got "
        r"'?(0|-0|inf|nan|best)"
    )
    with pytest.raises(ValueError, match=message):
        family(sigma, SHAPE)


def test_laplace_rejects_an_optimal_sigma():
    """The root mean squared error is the optimum only of a Gaussian."""
    with pytest.raises(ValueError, match="optimal needs likelihood=gaussian, got laplace"):
        likelihood_named("laplace", "optimal", SHAPE)


def test_an_unknown_likelihood_is_rejected():
    with pytest.raises(ValueError, match=r"likelihood must be one of .*gaussian.*, got 'normal'"):
        likelihood_named("normal", "learned", SHAPE)


def test_likelihoods_with_location_and_scale_are_those_of_the_flags():
    """The flags cannot import jax to ask, so they hold a list of their own."""
    assert likelihoods.LOCATION_SCALE == combinations.LOCATION_SCALE
    assert set(likelihoods.LOCATION_SCALE) < set(LIKELIHOODS)
