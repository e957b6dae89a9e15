"""The gradient of every bound with every estimator, against quadrature and enumeration."""

from functools import cache, partial
from itertools import pairwise, product
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

from jaxvae import Bernoulli, Gaussian, distributions, elbo, iwae
from jaxvae.bounds import ciwae, miwae, piwae, renyi, tvo
from tests.oracles import LARGE, SMALL, at_posterior, functions, in_float64, to_jax

NUM_KEYS, MANY_KEYS = 20_000, 400_000
NUM_NODES = {2: 48, 4: 20}
"""Number of noises K -> nodes of Gauss-Hermite quadrature for each; the error is below 1e-5."""

mean = lambda r: r.mean(-1)
log_mean_exp = lambda r: logsumexp(r, axis=-1) - jnp.log(r.shape[-1])
pairs = lambda r: r.reshape(*r.shape[:-1], 2, 2)


def left_sum(r, points=(0, 0.5, 0.5**0.5, 1)):
    at = lambda b: jnp.sum(jax.nn.softmax(b * r, axis=-1) * r, axis=-1)
    return sum((high - low) * at(low) for low, high in pairwise(points))


BOUNDS = {
    "elbo": (partial(elbo, num_samples=2), 2, mean),
    "elbo, beta 0.5": (partial(elbo, num_samples=2, kl="sampled", beta=0.5), 2, mean),
    "iwae": (partial(iwae, num_samples=2), 2, log_mean_exp),
    "miwae": (partial(miwae, num_samples=4, num_groups=2), 2, log_mean_exp),
    "piwae": (partial(piwae, num_samples=4, num_groups=2), 2, log_mean_exp),
    "ciwae": (
        partial(ciwae, num_samples=2, elbo_weight=0.3),
        2,
        lambda r: 0.3 * mean(r) + 0.7 * log_mean_exp(r),
    ),
    "renyi 0.5": (
        partial(renyi, num_samples=2, alpha=0.5), 2, lambda r: 2 * log_mean_exp(0.5 * r),
    ),
    "renyi 2": (partial(renyi, num_samples=2, alpha=2.0), 2, lambda r: -log_mean_exp(-r)),
    "tvo": (partial(tvo, num_samples=2, num_intervals=3, first=0.5), 2, left_sum),
}  # fmt: skip
"""Name -> the bound, the number of noises, and the formula whose expectation it has."""


def estimators(name):
    if name == "piwae":
        return ("reparameterized", "dreg")
    doubly = "stl" if name.startswith("elbo") else "dreg"
    return ("reparameterized", doubly, "score", "vimco")


PAIRS = [(name, estimator) for name in BOUNDS for estimator in estimators(name)]
SHORT_BOUNDS = ("elbo", "elbo, beta 0.5", "iwae", "miwae", "piwae")
SHORT_PAIRS = tuple(
    pair
    for pair in PAIRS
    if pair[0] in SHORT_BOUNDS or (pair[0] != "renyi 2" and pair[1] in ("reparameterized", "dreg"))
)
"""Every function of the weights with its first and second derivatives, and the estimators by score,
which take only its value, with the ELBO, one group and several. The other pairs are slow."""
OTHER_PAIRS = tuple(pair for pair in PAIRS if pair not in SHORT_PAIRS)
BY_SPEED = [
    *[pytest.param(*pair) for pair in SHORT_PAIRS],
    *[pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHER_PAIRS],
]
OTHER_NAMES = sorted({name for name, _ in OTHER_PAIRS} - {"renyi 2"})
COMPARED = (*OTHER_PAIRS, *[(name, "reparameterized") for name in OTHER_NAMES])
"""The slow pairs, with what their values are compared with."""
pairs_of_both = pytest.mark.parametrize(("name", "estimator"), PAIRS)

# One data dimension, one latent; log_scale is that of the noise.
PARAMS = {
    "q": {"loc": 0.7, "log_scale": -0.4},
    "decoder": {"weight": 1.3, "bias": -0.2, "log_scale": -0.1},
    "prior": {"loc": 0.1, "log_scale": 0.2},
}
X = 1.5


def parameters(params=PARAMS):
    return jax.tree.map(jnp.asarray, params)


def log_density(value, loc, log_scale):
    return -0.5 * ((value - loc) * jnp.exp(-log_scale)) ** 2 - log_scale - 0.5 * jnp.log(2 * jnp.pi)


def exact(params, num_noises, formula, beta=1.0):
    """E F over all noises, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NUM_NODES[num_noises])
    weights = weights / weights.sum()
    q, p, prior = params["q"], params["decoder"], params["prior"]
    z = q["loc"] + jnp.exp(q["log_scale"]) * nodes
    log_likelihood = log_density(X, p["weight"] * z + p["bias"], p["log_scale"])
    rate = log_density(z, q["loc"], q["log_scale"]) - log_density(z, **prior)
    r = log_likelihood - beta * rate
    grid = jnp.stack(jnp.meshgrid(*num_noises * [r], indexing="ij"), axis=-1)
    shares = np.prod(np.meshgrid(*num_noises * [weights], indexing="ij"), axis=0)
    return jnp.sum(shares * formula(grid))


@cache
def every_exact_slope():
    """{name: value and gradient} in float64."""

    def of(name, num_noises, formula):
        beta = 0.5 if name == "elbo, beta 0.5" else 1.0
        expectation = partial(exact, num_noises=num_noises, formula=formula, beta=beta)
        return jax.value_and_grad(expectation)(parameters())

    def of_all():
        every = {name: of(name, *by_noises) for name, (_, *by_noises) in BOUNDS.items()}
        return every | {"iwae of 4": of("iwae of 4", 4, log_mean_exp)}

    with jax.enable_x64(True):
        return jax.device_get(jax.jit(of_all)())


def exact_slopes(name):
    """Value and gradient; of piwae the model's part is that of all 4 draws in one bound."""
    value, slopes = every_exact_slope()[name]
    if name == "piwae":
        whole = every_exact_slope()["iwae of 4"][1]
        slopes = whole | {"q": slopes["q"]}
    return value, slopes


@partial(jax.jit, static_argnames="pairs")
def slopes_by_key(params, x, keys, pairs):
    """{(name, estimator): value and gradient} for each key, in one program, which shares the draws
    and compiles in less time than many programs."""

    def objective(params, key, name, estimator):
        q, p, prior = params["q"], params["decoder"], params["prior"]
        of_one = lambda loc, log_scale: Gaussian(loc[None], log_scale[None])
        return BOUNDS[name][0](
            key,
            x[None],
            encode=lambda x: of_one(**q),
            decode=lambda z: Gaussian(p["weight"] * z + p["bias"], p["log_scale"]),
            prior=of_one(**prior),
            estimator=estimator,
        ).objective

    def of_one(key):
        slope = jax.value_and_grad(objective)
        return {"; ".join(pair): slope(params, key, *pair) for pair in pairs}

    return jax.vmap(of_one)(keys)


@cache
def slopes_of(pairs, num_keys):
    keys = jax.random.split(jax.random.key(0), num_keys)
    return in_float64(jax.device_get(slopes_by_key(parameters(), X, keys, pairs)))


def drawn_slopes(name, estimator, num_keys=NUM_KEYS):
    """Value and gradient of each key, and those of "reparameterized", from the program of the pairs
    that are slow or not."""
    pairs = SHORT_PAIRS if (name, estimator) in SHORT_PAIRS else COMPARED
    slopes = slopes_of(pairs, num_keys)
    return slopes[f"{name}; {estimator}"], slopes[f"{name}; reparameterized"]


def assert_same_in_expectation(draws, expected):
    def close(draws, expected):
        error = draws.std(0) / np.sqrt(len(draws))
        rounding = 1e-5 * (1 + np.abs(expected))
        assert (np.abs(draws.mean(0) - expected) <= 4 * error + rounding).all()

    jax.tree.map(close, draws, expected)


# Golden


@pytest.mark.slow
@pytest.mark.parametrize(("name", "estimator"), BY_SPEED)
def test_value_and_gradient_have_the_expectation_that_quadrature_gives(name, estimator):
    assert_same_in_expectation(drawn_slopes(name, estimator)[0], exact_slopes(name))


@pytest.mark.long
@pairs_of_both
def test_value_and_gradient_have_that_expectation_by_many_keys(name, estimator):
    assert_same_in_expectation(drawn_slopes(name, estimator, MANY_KEYS)[0], exact_slopes(name))


def test_quadrature_gives_the_closed_form_of_the_elbo():
    """E_q log N(x | w z + b, s^2) - KL(q || p), term by term."""
    value, slopes = exact_slopes("elbo")

    def closed_form(params):
        q, p, prior = params["q"], params["decoder"], params["prior"]
        residual = X - p["weight"] * q["loc"] - p["bias"]
        spread = p["weight"] ** 2 * jnp.exp(2 * q["log_scale"])
        distortion = 0.5 * (residual**2 + spread) * jnp.exp(-2 * p["log_scale"]) + p["log_scale"]
        ratio = q["log_scale"] - prior["log_scale"]
        shift = (q["loc"] - prior["loc"]) * jnp.exp(-prior["log_scale"])
        rate = 0.5 * (jnp.exp(2 * ratio) + shift**2 - 1) - ratio
        return -distortion - 0.5 * jnp.log(2 * jnp.pi) - rate

    with jax.enable_x64(True):
        expected = jax.value_and_grad(closed_form)(parameters())
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), (value, slopes), expected)


# A discrete latent: two bits, three binary pixels, and every pair and triple of states.
BITS = np.array(list(product([0.0, 1.0], repeat=2)))
DISCRETE = {
    "q": np.array([0.3, -0.8]),
    "decoder": {"weight": np.array([[1.0, -2.0], [0.5, 1.5], [-1.0, 0.7]]), "bias": np.ones(3)},
    "prior": np.array([-0.4, 0.6]),
}
PIXELS = np.array([1.0, 0.0, 1.0])
ON_BITS = {
    "elbo": (elbo, 2, mean),
    "elbo, sampled KL": (partial(elbo, kl="sampled"), 2, mean),
    "iwae of 2": (iwae, 2, log_mean_exp),
    "iwae of 3": (iwae, 3, log_mean_exp),
}


@cache
def enumerated():
    """{name: E F over all tuples of states, value and gradient} in float64."""
    log_mass = lambda value, logits: jnp.sum(value * logits - jnp.logaddexp(0, logits), axis=-1)

    def expectation(params, num_samples, formula):
        p = params["decoder"]
        log_q = log_mass(BITS, params["q"][None])
        logits = BITS @ p["weight"].T + p["bias"][None]
        r = log_mass(PIXELS[None], logits) + log_mass(BITS, params["prior"][None]) - log_q
        tuples = np.array(list(product(range(4), repeat=num_samples)))
        return jnp.sum(jnp.exp(log_q[tuples].sum(-1)) * formula(r[tuples]))

    slope = jax.value_and_grad(expectation)
    of_all = lambda params: {name: slope(params, *of[1:]) for name, of in ON_BITS.items()}
    with jax.enable_x64(True):
        return jax.device_get(jax.jit(of_all)(to_jax(DISCRETE)))


@cache
def drawn_on_bits(num_keys=NUM_KEYS):
    """{name: {estimator: value and gradient}} for each key."""

    def objective(params, key, name, estimator):
        (bound, num_samples, _), p = ON_BITS[name], params["decoder"]
        return bound(
            key,
            jnp.asarray(PIXELS),
            encode=lambda x: Bernoulli(params["q"]),
            decode=lambda z: Bernoulli(p["weight"] @ z + p["bias"]),
            prior=Bernoulli(params["prior"]),
            estimator=estimator,
            num_samples=num_samples,
        ).objective

    def of_one(params, key):
        slope = partial(jax.value_and_grad(objective), params, key)
        return {name: {by: slope(name, by) for by in ("score", "vimco")} for name in ON_BITS}

    keys = jax.random.split(jax.random.key(1), num_keys)
    over_keys = jax.jit(jax.vmap(of_one, in_axes=(None, 0)))
    return in_float64(jax.device_get(over_keys(to_jax(DISCRETE), keys)))


@pytest.mark.parametrize("estimator", ["score", "vimco"])
@pytest.mark.parametrize("name", ON_BITS)
def test_a_discrete_latents_gradient_is_that_of_enumeration(name, estimator):
    assert_same_in_expectation(drawn_on_bits()[name][estimator], enumerated()[name])


@pytest.mark.long
@pytest.mark.parametrize("estimator", ["score", "vimco"])
@pytest.mark.parametrize("name", ON_BITS)
def test_a_discrete_latents_gradient_is_that_by_many_keys(name, estimator):
    assert_same_in_expectation(drawn_on_bits(MANY_KEYS)[name][estimator], enumerated()[name])


# Law


@pytest.mark.parametrize(
    ("name", "estimator"), [p for p in BY_SPEED if p.values != ("elbo", "stl")]
)
def test_no_estimator_alters_the_value(name, estimator):
    """The objective of one key is the same for all estimators, to rounding, except for the ELBO
    with stl, whose KL is sampled."""
    (value, _), (expected, _) = drawn_slopes(name, estimator)
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=2e-6)


def test_a_value_keeps_its_digits_beside_a_much_larger_score():
    """The bound times log q(z), which is thousands of times larger, only adds a gradient."""
    q = Gaussian(jnp.full(50, 0.1), jnp.full(50, -20.0))
    sides = {"encode": lambda x: q, "decode": lambda z: Gaussian(z, jnp.array(-1.0))}
    run = partial(iwae, **sides, prior=Gaussian.standard(50), num_samples=8)
    by = lambda key, estimator: run(key, jnp.zeros(50), estimator=estimator).objective
    names = ("reparameterized", "dreg", "score", "vimco")
    values = jax.jit(lambda key: [by(key, name) for name in names])(jax.random.key(0))
    np.testing.assert_allclose(values[1:], 3 * [values[0]], rtol=1e-6)


def test_the_gradient_by_vimco_is_less_noisy_than_by_score():
    noise = lambda slopes: slopes["q"].std(0)
    for name in ("iwae of 2", "iwae of 3"):
        score, vimco = (noise(drawn_on_bits()[name][by][1]) for by in ("score", "vimco"))
        assert (vimco < 0.8 * score).all()


@cache
def slopes_at_posterior(case):
    """The gradient of q's parameters in each draw, in float64."""
    runs = {
        "reparameterized": partial(elbo, kl="sampled"),
        "stl": partial(elbo, estimator="stl"),
        "dreg": partial(iwae, estimator="dreg"),
    }
    with jax.enable_x64(True):
        model, q, x = to_jax(at_posterior(case))

        def of_one(key):
            run = lambda bound, q: bound(key, x, **functions(model, q), num_samples=3).objective
            return {name: jax.grad(partial(run, bound))(q) for name, bound in runs.items()}

        keys = jax.random.split(jax.random.key(2), 100)
        return jax.device_get(jax.jit(partial(jax.lax.map, of_one))(keys))


@pytest.mark.slow
@pytest.mark.parametrize("case", [SMALL, LARGE])
def test_the_gradient_vanishes_in_every_draw_at_the_true_posterior(case):
    """stl and dreg vanish to rounding; the reparameterized gradient is noise about 0."""
    slopes = slopes_at_posterior(case)
    largest = lambda name: max(np.abs(leaf).max() for leaf in jax.tree.leaves(slopes[name]))
    assert largest("reparameterized") > 1.0
    assert largest("stl") < 1e-10
    assert largest("dreg") < 1e-10


@pytest.mark.slow
def test_the_encoders_signal_falls_with_more_samples_and_that_of_dreg_rises():
    """|mean| / standard deviation of the gradient by q's loc falls as 1 / sqrt(K) (Rainforth et
    al. 2018), and rises as sqrt(K) for dreg (Tucker et al. 2019)."""
    runs = [(estimator, k) for estimator in ("reparameterized", "dreg") for k in (4, 32)]

    def objective(loc, key, estimator, num_samples):
        return iwae(
            key,
            jnp.array([X]),
            encode=lambda x: Gaussian(loc, jnp.array([-0.4])),
            decode=lambda z: Gaussian(1.3 * z, jnp.array(-0.1)),
            prior=Gaussian.standard(1),
            num_samples=num_samples,
            estimator=estimator,
        ).objective

    keys = jax.random.split(jax.random.key(3), NUM_KEYS)
    of_one = lambda key: [jax.grad(objective)(jnp.array([0.2]), key, *run) for run in runs]
    slopes = in_float64(jax.device_get(jax.jit(jax.vmap(of_one))(keys)))
    ratios = np.array([abs(draws.mean()) / draws.std() for draws in slopes])
    errors = np.sqrt((1 + ratios**2 / 2) / NUM_KEYS)
    few, many = ratios[[0, 2]], ratios[[1, 3]]
    rise = np.array([-1, 1]) * (many - few)
    assert (rise > 4 * np.hypot(errors[[0, 2]], errors[[1, 3]])).all()


OF_FOUR = {
    "miwae": partial(miwae, num_groups=2),
    "iwae": iwae,
    "miwae by dreg": partial(miwae, num_groups=2, estimator="dreg"),
    "piwae": partial(piwae, num_groups=2),
    "piwae by dreg": partial(piwae, num_groups=2, estimator="dreg"),
}


@jax.jit
def of_four_draws(params, keys):
    """{name: gradient and log weights}, all for the same 4 draws of each key."""

    def objective(params, key, bound):
        q, (weight, noise), prior = params["q"], params["decoder"], params["prior"]
        decode = lambda z: Gaussian(weight * z, noise)
        sides = {"encode": lambda x: q, "decode": decode, "prior": prior}
        result = bound(key, jnp.ones(2), **sides, num_samples=4)
        return result.objective, result.log_weights

    slope = jax.grad(objective, has_aux=True)
    of_one = lambda key: {name: slope(params, key, bound) for name, bound in OF_FOUR.items()}
    return jax.vmap(of_one)(keys)


@pytest.mark.parametrize("log_scale", [-0.5, -4.0])
@pytest.mark.parametrize("by", ["", " by dreg"])
def test_piwae_has_the_encoders_gradient_of_miwae_and_the_models_of_iwae(by, log_scale):
    """Equal in every draw. With a noise of exp(-4) the groups' weights differ by hundreds of nats,
    and iwae's weights of one group are 0."""
    rng = np.random.default_rng(4)
    params = {
        "q": Gaussian(*rng.normal(size=(2, 2))),
        "decoder": (rng.normal(size=2), np.array(log_scale)),
        "prior": Gaussian(*rng.normal(size=(2, 2))),
    }
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(5), 200)
        results = jax.device_get(of_four_draws(to_jax(params), keys))
    slopes, log_weights = results["piwae" + by]
    if log_scale < -1:
        groups = log_weights.reshape(-1, 2, 2).max(-1)
        assert (np.abs(groups[:, 0] - groups[:, 1]) > 200).mean() > 0.3
    for side, other in (("q", "miwae" + by), ("decoder", "iwae"), ("prior", "iwae")):
        for ours, theirs in zip(
            *(jax.tree.leaves(s[side]) for s in (slopes, results[other][0])), strict=True
        ):
            scale = np.abs(theirs).max(axis=tuple(range(1, theirs.ndim)), keepdims=True)
            assert (np.abs(ours - theirs) <= 1e-12 * 50 * (1 + scale)).all()
            assert (scale > 0).all()


# Transform


EXTREMES = [
    {
        "q": {"loc": loc, "log_scale": of_q},
        "decoder": {"weight": weight, "bias": 0.0, "log_scale": of_p},
        "prior": {"loc": 0.0, "log_scale": of_prior},
    }
    for loc, of_q, weight, of_p, of_prior in [
        (100.0, -20.0, 1.0, 20.0, 0.0),
        (-100.0, 20.0, 1.0, -10.0, 0.0),
        (100.0, -20.0, 100.0, -20.0, 20.0),
        (0.0, 20.0, 0.0, 20.0, -10.0),
        (-100.0, 1.0, 1e4, 0.0, 1.0),
    ]
]
"""The bound multiplies a score, so that the gradient exceeds float32 for bounds of about -1e30,
from scales of exp(20) and exp(-20) together."""


@pytest.mark.parametrize(
    "pairs", [SHORT_PAIRS, pytest.param(COMPARED, marks=pytest.mark.slow)], ids=["short", "rest"]
)
@pytest.mark.parametrize("params", EXTREMES)
def test_value_and_gradient_are_finite_at_extremes(params, pairs):
    """Log scales to +-20 with locations to +-100, weights to 1e4."""
    keys = jax.random.split(jax.random.key(0), NUM_KEYS)
    results = slopes_by_key(parameters(params), X, keys, pairs)
    finite = jax.tree.map(lambda leaf: bool(np.isfinite(leaf).all()), results)
    assert all(jax.tree.leaves(finite)), finite


@cache
def at_large_logits():
    """One draw if the bound allows it, of one latent, with logits of +-1e4."""
    arguments = {"encode": lambda x: Gaussian(jnp.array([100.0]), jnp.array([-20.0]))}
    arguments |= {"prior": Gaussian.standard(1), "x": jnp.array([0.0, 1.0])}
    runs = {
        f"{bound.__name__}, {estimator}": partial(bound, estimator=estimator, **options)
        for bound, options in ((elbo, {}), (iwae, {}), (renyi, {"alpha": 0.5}))
        for estimator in estimators(bound.__name__)
        if bound is not renyi or estimator in ("reparameterized", "dreg")
    }

    def objective(logits, run, key, num_samples):
        decode = lambda z: Bernoulli(logits * jnp.tanh(z))
        return run(key, decode=decode, **arguments, num_samples=num_samples).objective

    def of_all(logits, key):
        return {
            name: jax.value_and_grad(objective)(logits, run, key, 2 if "vimco" in name else 1)
            for name, run in runs.items()
        }

    return jax.device_get(jax.jit(of_all)(jnp.array([1e4, -1e4]), jax.random.key(6)))


@pytest.mark.slow
def test_value_and_gradient_are_finite_for_large_logits():
    results = at_large_logits()
    for value, slope in results.values():
        assert np.isclose(value, results["iwae, reparameterized"][0], rtol=1e-3)
        np.testing.assert_allclose(slope, [-1.0, 1.0], rtol=1e-3)


def test_float32_models_stay_float32_in_x64():
    """float64 numbers of the caller or of a bound do not change a float32 model."""
    q = jax.tree.map(jnp.float32, Gaussian(np.ones(2), np.zeros(2)))
    arguments = {"encode": lambda x: q, "decode": lambda z: Gaussian(z, jnp.float32(0)), "prior": q}
    half = np.float64(0.5)
    with jax.enable_x64(True):
        for bound, estimator in (
            (partial(tvo, num_intervals=3), "dreg"),
            (partial(renyi, alpha=half), "dreg"),
            (partial(ciwae, elbo_weight=half), "dreg"),
            (partial(elbo, beta=half), "stl"),
        ):
            run = partial(bound, num_samples=2, estimator=estimator, **arguments)
            slope = jax.grad(lambda x, run=run: run(jax.random.key(0), x).objective)
            result = jax.eval_shape(run, jax.random.key(0), np.zeros(2, np.float32))
            assert result.objective.dtype == jnp.float32
            assert jax.eval_shape(slope, np.zeros(2, np.float32)).dtype == jnp.float32


# Failure


def reject(bound, match, q=None, num_samples=2, **options):
    q = Gaussian.standard(2) if q is None else q
    arguments = {"encode": lambda x: q, "decode": lambda z: Gaussian(z, jnp.array(0.0)), "prior": q}
    with pytest.raises(ValueError, match=match):
        bound(jax.random.key(0), jnp.zeros(2), **arguments, num_samples=num_samples, **options)


EVERY = {
    elbo: {}, iwae: {}, miwae: {"num_groups": 2}, piwae: {"num_groups": 2}, ciwae: {},
    renyi: {"alpha": 0.5}, tvo: {},
}  # fmt: skip
every = pytest.mark.parametrize("bound", EVERY, ids=lambda bound: bound.__name__)


@every
def test_an_unknown_estimator_is_rejected(bound):
    names = "reparameterized, stl, dreg, score, vimco"
    reject(bound, f"estimator must be one of {names}, got 'pathwise'", estimator="pathwise",
           **EVERY[bound])  # fmt: skip


@every
def test_an_estimator_with_a_wrong_gradient_is_rejected(bound):
    options, name = EVERY[bound], bound.__name__
    if bound is elbo:
        reject(bound, r"elbo: .* 'dreg' reduces to 'stl' for the ELBO.*Use 'stl'", estimator="dreg")
    else:
        match = rf"{name}: estimator 'stl' is biased for weighted draws.*Use 'dreg'"
        reject(bound, match, estimator="stl", **options)
    if bound is piwae:
        for estimator in ("score", "vimco"):
            match = f"piwae: estimator '{estimator}' is not defined for two bounds at once"
            reject(bound, match, estimator=estimator, **options)


@every
def test_a_path_through_discrete_draws_is_rejected(bound):
    q, options = Bernoulli(jnp.zeros(2)), EVERY[bound]
    for estimator in ("reparameterized", "stl" if bound is elbo else "dreg"):
        match = (
            rf"{bound.__name__}: draws of Bernoulli carry no gradient, so estimator "
            rf"'{estimator}' would be wrong\. Use 'score', or 'vimco' with num_samples >= 2"
        )
        reject(bound, match, q=q, estimator=estimator, **options)


def test_families_declare_whether_their_draws_carry_gradients():
    """A mixture's draws carry no gradient to its weights; a flow's do if its base's do."""
    names = ["Bernoulli", "Categorical", "OneHotCategorical", "Poisson", "NegativeBinomial"]
    names += ["ZeroInflatedNegativeBinomial", "DiscretizedLogistic", "DiscretizedLogisticMixture"]
    names += ["ColorLogisticMixture"]
    assert not any(getattr(distributions, name).reparameterized for name in [*names, "Mixture"])
    gaussian = Gaussian.standard(2)
    assert distributions.Flow(gaussian, ()).reparameterized
    mixture = distributions.Mixture(jnp.zeros(2), Gaussian(jnp.zeros((2, 2)), jnp.zeros((2, 2))))
    reject(iwae, "draws of Mixture carry no gradient", q=mixture)
    reject(iwae, "draws of Flow carry no gradient", q=distributions.Flow(mixture, ()))


def test_vimco_of_one_draw_is_rejected():
    match = r"vimco' compares draws, so num_samples must be at least 2, got 1\. Use 'score'"
    for bound in (elbo, iwae):
        reject(bound, match, num_samples=1, estimator="vimco")


def test_estimators_that_split_the_gradient_reject_a_posterior_that_is_not_a_pytree():
    class Opaque:
        reparameterized: ClassVar[bool] = True

        def sample(self, key):
            return jax.random.normal(key, (2,))

        def log_prob(self, value):
            return jnp.sum(value)

    match = r"'dreg' needs encode\(x\) to be a pytree of arrays, but Opaque is not .* Register"
    reject(iwae, match, q=Opaque(), estimator="dreg")
