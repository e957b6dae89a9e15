"""Properties of every bound, on a model whose log p(x) is known."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxvae import Bernoulli, Gaussian, elbo, iwae, renyi
from jaxvae.bounds import posterior_samples
from tests.oracles import (
    BOUNDS,
    CASES,
    EPS,
    LARGE,
    LOWER,
    NUM_KEYS,
    PRECISION,
    SMALL,
    TOLERANCE,
    cases,
    drawn,
    drawn_at_posterior,
    functions,
    in_float64,
    log_mean_exp,
    means_and_errors,
    oracle,
    to_jax,
)

bounds = pytest.mark.parametrize("name", BOUNDS)


def left_sum(points, logs):
    """Thermodynamic integration with self-normalized weights."""
    weights = scipy.special.softmax(points[:-1, None, None] * logs, axis=-1)
    return np.diff(points) @ np.sum(weights * logs, axis=-1)


IN_NUMPY = {
    "elbo, sampled KL": lambda logs: logs.mean(-1),
    "iwae": log_mean_exp,
    "miwae": lambda logs: log_mean_exp(logs.reshape(-1, 2, 2)).mean(-1),
    "piwae": lambda logs: log_mean_exp(logs.reshape(-1, 2, 2)).mean(-1),
    "ciwae": lambda logs: 0.3 * logs.mean(-1) + 0.7 * log_mean_exp(logs),
    "renyi 0.5": lambda logs: log_mean_exp(0.5 * logs) / 0.5,
    "renyi 2": lambda logs: -log_mean_exp(-logs),
    "renyi -1": lambda logs: log_mean_exp(2 * logs) / 2,
    "tvo": partial(left_sum, np.array([0, 0.05, np.sqrt(0.05), 1])),
}
"""Each bound, of log weights [B, K] in float64."""


# Golden


@pytest.mark.slow
@cases
def test_every_term_is_scipys_at_the_same_draws(case):
    (results, _), precision = drawn(case), PRECISION[case]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(results)} == {precision}
    model, q, x = oracle(case)
    z = results["elbo"].samples
    if isinstance(q, Gaussian):
        log_q = scipy.stats.norm.logpdf(z, q.loc, np.exp(q.log_scale)).sum(-1)
        variance, log_det = np.exp(2 * q.log_scale).sum(), 2 * q.log_scale.sum()
    else:
        covariance = q.scale_tril @ q.scale_tril.T
        log_q = scipy.stats.multivariate_normal.logpdf(z, q.loc, covariance)
        variance, log_det = np.trace(covariance), np.linalg.slogdet(covariance)[1]
    log_prior = scipy.stats.norm.logpdf(z).sum(-1)
    center = z @ model.weight.T + model.bias
    log_likelihoods = scipy.stats.norm.logpdf(x, center, np.exp(model.log_scale)).sum(-1)
    log_likelihood, log_weights = log_likelihoods.mean(1), log_likelihoods + log_prior - log_q
    rate = 0.5 * (variance + q.loc @ q.loc - len(q.loc) - log_det)
    # Each part is itself a sum of terms of both signs, of up to 3 times its size here.
    terms = 3 * np.max(np.abs(log_likelihoods) + np.abs(log_prior) + np.abs(log_q))
    close = partial(np.testing.assert_allclose, rtol=0, atol=TOLERANCE[precision] * terms)
    for result in results.values():
        np.testing.assert_array_equal(result.samples, z)
        close(result.log_weights, log_weights)
        close(result.reconstruction, log_likelihood)
        sampled = result is results["elbo, sampled KL"]
        kl = (log_q - log_prior).mean(1) if sampled else np.full(NUM_KEYS, rate)
        close(result.kl, kl)
        close(result.elbo, log_likelihood - kl)
    close(results["elbo"].objective, log_likelihood - rate)


@cases
@pytest.mark.parametrize("name", IN_NUMPY)
def test_every_objective_is_its_formula_in_numpy(name, case):
    result = drawn(case)[0][name]
    log_weights = in_float64(result.log_weights)
    rounding = TOLERANCE[PRECISION[case]] * np.abs(log_weights).max()
    expected = IN_NUMPY[name](log_weights)
    np.testing.assert_allclose(result.objective, expected, rtol=0, atol=rounding)
    assert np.std(expected) > 100 * rounding


# Law


@cases
@bounds
def test_terms_add_up(name, case):
    result = drawn(case)[0][name]
    rounding = EPS * (np.abs(result.reconstruction) + np.abs(result.kl))
    assert (np.abs(result.elbo - (result.reconstruction - result.kl)) <= rounding).all()
    assert result.log_weights.shape == (NUM_KEYS, 4)
    assert result.samples.shape == (NUM_KEYS, 4, CASES[case][1])
    if case.endswith("full") or name == "elbo, sampled KL":
        assert result.kl_per_latent is None
    else:
        assert result.kl_per_latent.shape == (NUM_KEYS, CASES[case][1])
        np.testing.assert_allclose(result.kl_per_latent.sum(1), result.kl, rtol=4 * EPS)


@cases
@pytest.mark.parametrize("name", LOWER)
def test_every_lower_bound_lies_between_the_elbo_and_log_prob(name, case):
    """The objective "renyi 2" is a lower bound on log p(x), but may be below the ELBO."""
    results, log_prob = drawn(case)
    objective, log_weights = in_float64((results[name].objective, results[name].log_weights))
    ((mean, error),) = means_and_errors(objective)
    assert mean <= log_prob + 4 * error
    assert log_prob - mean > 4 * error, "a q that is off the posterior leaves a gap"
    if name not in ("elbo", "renyi 2"):  # Jensen, draw by draw: from the mean to IWAE
        rounding = 4 * EPS * np.abs(log_weights).max()
        assert (objective >= log_weights.mean(1) - rounding).all()
        assert (objective <= log_mean_exp(log_weights) + rounding).all()


@pytest.mark.parametrize("case", [SMALL, LARGE])
def test_every_sample_of_the_true_posterior_weighs_log_prob(case):
    """log p(x, z) - log p(z|x) = log p(x) for every z, without noise: equal up to rounding."""
    (results, log_prob), precision = drawn_at_posterior(case), PRECISION[case]
    z = results["elbo"].samples
    # The terms of log p(x|z), log p(z) and log q(z|x): squares, log scales and constants.
    terms = 2 * abs(log_prob) + 2 * CASES[case][0] + np.max(np.square(z).sum(-1)) + 4 * z.shape[-1]
    close = partial(np.testing.assert_allclose, rtol=0, atol=TOLERANCE[precision] * terms)
    for name in IN_NUMPY:
        close(results[name].log_weights, np.full((NUM_KEYS, 4), log_prob))
        close(results[name].objective, np.full(NUM_KEYS, log_prob))
    ((mean, error),) = means_and_errors(results["elbo"].objective)
    assert abs(mean - log_prob) <= 4 * error


@cases
def test_weights_are_unbiased(case):
    """E p(x, z) / q(z|x) = p(x), which detects a constant missing in any density."""
    results, log_prob = drawn(case)
    ((mean, error),) = means_and_errors(np.exp(results["iwae"].log_weights - log_prob).mean(1))
    assert error < 0.05
    assert abs(mean - 1) <= 4 * error


def test_the_draws_are_those_of_the_key():
    """`posterior_samples` makes the draws that the bound makes with the same key."""
    _, q, _ = to_jax(oracle(LARGE))
    keys = jax.random.split(jax.random.key(0), NUM_KEYS)
    z, log_q = jax.jit(partial(jax.lax.map, lambda key: posterior_samples(key, q, 4)))(keys)
    result = drawn(LARGE)[0]["iwae"]
    np.testing.assert_allclose(result.samples, z, rtol=1e-6)
    assert log_q.shape == (NUM_KEYS, 4)
    flat = result.samples.reshape(-1, 4)
    assert len(np.unique(flat, axis=0)) == len(flat)


def test_rescaling_the_latent_changes_nothing():
    """f'(z) = f(z / s), mu' = s mu, sigma' = s sigma, prior N(0, s^2 I): Doersch 2016, 2.4.3."""
    model, q, x = to_jax(oracle(LARGE))

    @jax.jit
    def rescaled(s):
        run = lambda bound: bound(
            jax.random.key(3),
            x,
            encode=lambda x: Gaussian(s * q.loc, q.log_scale + jnp.log(s)),
            decode=lambda z: model.decode(z / s),
            prior=Gaussian(jnp.zeros(4), jnp.log(s)),
            num_samples=4,
        )
        results = {name: run(BOUNDS[name]) for name in ("elbo", "iwae", "renyi 2", "tvo")}
        as_before = lambda bound: bound._replace(samples=bound.samples / s, posterior=None)
        return {name: as_before(result) for name, result in results.items()}

    for s in (0.01, 3.0, 1000.0):
        # Log densities of 20 pixels and 4 latents, with terms that add up to less than 100.
        chex.assert_trees_all_close(rescaled(s), rescaled(1.0), rtol=0, atol=1e-6 * 100)


# Transform

DATA_DIM, LATENT_DIM, BATCH = 6, 2, 8


def networks():
    """An encoder with a hidden layer and a linear decoder, x [8, 6] and keys [8]."""
    rng = np.random.default_rng(5)
    normal = lambda *shape: jnp.asarray(rng.normal(0.0, 0.5, size=shape), jnp.float32)
    params = {"hidden": normal(DATA_DIM, 4), "logits": normal(LATENT_DIM, DATA_DIM)}
    params |= {"loc": normal(4, LATENT_DIM), "log_scale": normal(4, LATENT_DIM)}
    x = jnp.asarray(rng.integers(2, size=(BATCH, DATA_DIM)), jnp.float32)
    return params, jax.random.split(jax.random.key(7), BATCH), x


def sides(params):
    def encode(x):
        h = jnp.tanh(x @ params["hidden"])
        return Gaussian(h @ params["loc"], h @ params["log_scale"])

    decode = lambda z: Bernoulli(z @ params["logits"])
    return {"encode": encode, "decode": decode, "prior": Gaussian.standard(LATENT_DIM)}


def of_one(params, key, x, names=tuple(BOUNDS)):
    """Every bound on one example."""
    return {name: BOUNDS[name](key, x, **sides(params), num_samples=4) for name in names}


@pytest.mark.slow
def test_eager_jit_vmap_and_pmap_agree():
    params, keys, x = networks()
    few = lambda params, key, x: of_one(params, key, x, ("elbo", "iwae"))
    # Terms of both signs that add up to less than 100.
    close = partial(chex.assert_trees_all_close, rtol=0, atol=1e-6 * 100)
    mapped = jax.device_get(jax.jit(jax.vmap(few, in_axes=(None, 0, 0)))(params, keys, x))
    close(jax.device_get(jax.pmap(few, in_axes=(None, 0, 0))(params, keys, x)), mapped)
    chex.clear_trace_counter()
    jitted = jax.jit(chex.assert_max_traces(few, 1))
    for row in range(3):
        at_row = jax.tree.map(lambda leaf, row=row: leaf[row], mapped)
        close(jitted(params, keys[row], x[row]), at_row)
    # All terms of the ELBO are among those of iwae; each operation is compiled on its own here.
    eager = of_one(params, keys[row], x[row], ("iwae",))
    close(eager, {"iwae": at_row["iwae"]})


def test_an_empty_batch_gives_an_empty_result():
    params, keys, x = networks()
    result = jax.eval_shape(jax.vmap(of_one, in_axes=(None, 0, 0)), params, keys[:0], x[:0])
    assert {leaf.shape[0] for leaf in jax.tree.leaves(result)} == {0}
    of_none = jax.jit(jax.vmap(partial(of_one, names=("iwae",)), in_axes=(None, 0, 0)))
    assert of_none(params, keys[:0], x[:0])["iwae"].objective.shape == (0,)


@bounds
def test_networks_in_bfloat16_give_bounds_in_float32(name):
    params, keys, x = networks()
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    run = partial(of_one, names=(name,))
    result = jax.eval_shape(run, low, keys[0], x[0].astype(jnp.bfloat16))
    numbers = jax.tree.leaves([bound._replace(posterior=None) for bound in result.values()])
    assert {leaf.dtype.name for leaf in numbers} == {"float32"}


@pytest.mark.slow
def test_networks_in_bfloat16_learn_by_finite_gradients_of_their_kind():
    """The gradients are those of float32 networks, to the 8 bits of each bfloat16 number."""
    of_bounds = [elbo, partial(iwae, estimator="dreg"), partial(renyi, alpha=0.5)]
    params, keys, x = networks()
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)

    @jax.jit
    def slopes(params, x):
        def objective(params, bound):
            run = lambda key, x: bound(key, x, **sides(params), num_samples=4).objective
            return jax.vmap(run)(keys, x).mean()

        return [jax.value_and_grad(objective)(params, bound) for bound in of_bounds]

    for (value, slope), (_, exact) in zip(
        slopes(low, x.astype(jnp.bfloat16)), slopes(params, x), strict=True
    ):
        assert value.dtype == jnp.float32
        assert {leaf.dtype.name for leaf in jax.tree.leaves(slope)} == {"bfloat16"}
        chex.assert_tree_all_finite(slope)
        rough, exact = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
                        for tree in in_float64((slope, exact)))  # fmt: skip
        eps = float(jnp.finfo(jnp.bfloat16).eps)
        assert np.linalg.norm(rough - exact) <= 4 * eps * np.linalg.norm(exact)


@cache
def slopes_and_differences():
    """d/dt of each objective along a direction in all parameters, by autodiff and by central
    differences, which at h err by h^2 f''' / 6 + eps f / h: 1e-9 of f at h = 1e-5."""
    rng, h, (model, q, x) = np.random.default_rng(8), 1e-5, oracle(SMALL)
    towards = jax.tree.map(lambda leaf: rng.normal(size=np.shape(leaf)), (model, q))
    names = [name for name in BOUNDS if name != "piwae"]

    def objectives(t):
        moved = jax.tree.map(lambda a, b: a + t * b, (model, q), towards)
        run = lambda bound: bound(jax.random.key(9), x, **functions(*moved), num_samples=4)
        return {name: run(BOUNDS[name]).objective for name in names}

    with jax.enable_x64(True):
        both = jax.jit(lambda t: jax.jvp(objectives, (t,), (1.0,)))
        (values, slopes), (above, _), (below, _) = jax.device_get([both(t) for t in (0.0, h, -h)])
    differences = {name: (above[name] - below[name]) / (2 * h) for name in names}
    return {name: (values[name], slopes[name], differences[name]) for name in names}


@pytest.mark.parametrize("name", [name for name in BOUNDS if name != "piwae"])
def test_gradients_are_finite_differences(name):
    value, slope, difference = slopes_and_differences()[name]
    assert abs(slope - difference) <= 1e-7 * (abs(value) + abs(slope))
    others = [slope for other, (_, slope, _) in slopes_and_differences().items() if other != name]
    assert np.abs(np.array(others) - slope).min() > 1e-4


# Failure


@bounds
@pytest.mark.parametrize("num_samples", [0, -2])
def test_less_than_one_sample_is_rejected(name, num_samples):
    model, q, x = to_jax(oracle(SMALL))
    with pytest.raises(ValueError, match=rf"num_samples must be at least 1, got {num_samples}\."):
        BOUNDS[name](jax.random.key(0), x, **functions(model, q), num_samples=num_samples)


class Unsummed:
    """A distribution like numpyro's Normal without .to_event(1)."""

    def sample(self, key):
        return jax.random.normal(key, (2,))

    def log_prob(self, value):
        return -0.5 * jnp.square(value)


@pytest.mark.parametrize("name", ["elbo", "iwae"])
@pytest.mark.parametrize(
    ("side", "named"),
    [
        ("decode", r"decode\(z\)\.log_prob\(x\)"),
        ("encode", r"encode\(x\)\.log_prob\(z\)"),
        ("prior", r"prior\.log_prob\(z\)"),
    ],
)
def test_an_unsummed_log_prob_is_rejected(name, side, named):
    good = Gaussian.standard(2)
    arguments = {"encode": lambda x: good, "decode": lambda z: good, "prior": good}
    arguments[side] = Unsummed() if side == "prior" else lambda _: Unsummed()
    with pytest.raises(
        ValueError,
        match=named + r" must be a scalar, summed over the event; for one z it has shape \(2,\)\. "
        r"Sum it \(.*to_event.*\), and pass one example: jax\.vmap adds the batch\.",
    ):
        BOUNDS[name](jax.random.key(0), jnp.zeros(2), **arguments, num_samples=3)


@pytest.mark.parametrize("name", ["elbo", "iwae"])
def test_a_batch_or_a_prior_of_another_size_is_rejected(name):
    model, q, x = to_jax(oracle(SMALL))
    run = partial(BOUNDS[name], jax.random.key(0), num_samples=1)
    with pytest.raises(ValueError, match=r"value has shape \(8, 5\), this .* event shape \(5,\)"):
        jax.eval_shape(partial(run, **functions(model, q)), jnp.zeros((8, 5)))
    arguments = functions(model, q) | {"prior": Gaussian.standard(3)}
    with pytest.raises(ValueError, match=r"value has shape \(2,\), this .* event shape \(3,\)"):
        jax.eval_shape(partial(run, **arguments), x)
