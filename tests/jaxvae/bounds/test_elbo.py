"""The ELBO, its KL and the options that reweigh it, on a model whose ELBO is known."""

from functools import partial
from itertools import product

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxvae import Bernoulli, FullCovarianceGaussian, Gaussian, elbo
from jaxvae.testing import LinearGaussian
from tests.oracles import (
    EPS,
    LARGE,
    NUM_KEYS,
    SMALL,
    TOLERANCE,
    Foreign,
    cases,
    drawn,
    functions,
    in_float64,
    means_and_errors,
    oracle,
    posterior_moments,
    to_jax,
)

BOTH_KLS = ("elbo", "elbo, sampled KL")


def options_on(case, *options, num_samples=2):
    """The ELBO of the oracle with each set of options, with the same key."""
    model, q, x = to_jax(oracle(case))
    arguments = functions(model, q) | {"num_samples": num_samples}
    run = lambda key: [elbo(key, x, **arguments, **chosen) for chosen in options]
    return jax.jit(run)(jax.random.key(1))


# Golden


@cases
def test_elbo_is_log_prob_less_the_divergence_from_the_posterior(case):
    """log p(x) - KL(q || p(z|x)), in float64 by linear algebra: Doersch 2016, equation 5."""
    model, q, x = oracle(case)
    loc, covariance = posterior_moments(model, x)
    of_q = np.diag(np.exp(2 * q.log_scale)) if isinstance(q, Gaussian) else None
    of_q = q.scale_tril @ q.scale_tril.T if of_q is None else of_q
    ratio, shift = np.linalg.solve(covariance, of_q), q.loc - loc
    gap = np.trace(ratio) - len(loc) + shift @ np.linalg.solve(covariance, shift)
    gap = 0.5 * (gap - np.linalg.slogdet(ratio)[1])
    noise = np.diag(np.broadcast_to(np.exp(2 * model.log_scale), x.shape))
    marginal = model.weight @ model.weight.T + noise
    expected = scipy.stats.multivariate_normal.logpdf(x, model.bias, marginal) - gap
    closed_form = jax.jit(LinearGaussian.elbo)(*to_jax((model, x, q)))
    np.testing.assert_allclose(closed_form, expected, rtol=1e-5)
    results, log_prob = drawn(case, 4, BOTH_KLS)
    draws = (results["elbo"].objective, results["elbo, sampled KL"].objective)
    for mean, error in means_and_errors(*draws):
        assert abs(mean - expected) <= 4 * error
        assert log_prob - expected > 8 * error, "a bound that is tight shows nothing"


@pytest.mark.parametrize("precision", TOLERANCE)
def test_elbo_of_a_decoder_that_ignores_its_latent_is_exact(precision):
    """log N(x | b, R) - KL(q || p), for any key."""
    model, q, x = oracle(LARGE)
    with jax.enable_x64(precision == "float64"):
        still, q_jax, x_jax = to_jax((model._replace(weight=0 * model.weight), q, x))
        run = lambda key: elbo(key, x_jax, **functions(still, q_jax)).elbo
        result = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 20))
    log_p = scipy.stats.norm.logpdf(x, model.bias, np.exp(model.log_scale))
    rate = 0.5 * np.array([np.exp(2 * q.log_scale), q.loc**2, -np.ones(4), -2 * q.log_scale])
    terms = np.abs(log_p).sum() + np.abs(rate).sum()
    expected = np.full(20, log_p.sum() - rate.sum())
    np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE[precision] * terms)


# Law


def test_the_objective_is_the_elbo_at_the_defaults():
    closed_form, sampled = (drawn(LARGE, 4, BOTH_KLS)[0][name] for name in BOTH_KLS)
    for bound in (closed_form, sampled):
        np.testing.assert_allclose(bound.objective, bound.elbo, rtol=8 * EPS)


def test_more_draws_leave_the_mean_and_take_the_noise():
    """4 draws and 64 of them: the same expectation, 16 times the variance."""
    for name in BOTH_KLS:
        few, many = (drawn(LARGE, k, BOTH_KLS)[0][name].elbo for k in (4, 64))
        (mean, error), (mean_of_many, error_of_many) = means_and_errors(few, many)
        assert abs(mean - mean_of_many) <= 4 * np.hypot(error, error_of_many)
        # A variance of NUM_KEYS nearly Gaussian draws has a relative error of sqrt(2 / NUM_KEYS).
        ratio = (error / error_of_many) ** 2 / 16
        assert abs(np.log(ratio)) <= 4 * np.sqrt(2 * 3 / NUM_KEYS)


@cases
def test_kl_in_closed_form_is_the_mean_of_the_sampled_one(case):
    results, _ = drawn(case, 4, BOTH_KLS)
    ((mean, error),) = means_and_errors(results["elbo, sampled KL"].kl)
    assert abs(mean - results["elbo"].kl[0]) <= 4 * error
    assert error > 0.0


def test_kl_is_estimated_from_the_same_draws_where_it_has_no_formula():
    model, q, x = to_jax(oracle(LARGE))
    arguments = functions(model, q) | {"prior": Foreign(model.prior()), "num_samples": 4}
    keys = jax.random.split(jax.random.key(0), NUM_KEYS)
    over_keys = jax.jit(partial(jax.lax.map, lambda key: elbo(key, x, **arguments)))
    result, sampled = (
        jax.device_get(over_keys(keys)),
        drawn(LARGE, 4, BOTH_KLS)[0]["elbo, sampled KL"],
    )
    assert result.kl_per_latent is None
    # Terms of both signs that add up to less than 100.
    close = partial(chex.assert_trees_all_close, rtol=0, atol=1e-6 * 100)
    close(result, sampled._replace(kl_per_latent=None))


def test_a_joint_draw_and_density_is_preferred():
    """A flow knows the density of its own draws only."""

    class OnlyJointly:
        def sample_and_log_prob(self, key):
            z = jax.random.normal(key, (2,))
            return z, Gaussian.standard(2).log_prob(z) + 100.0

    decode, prior = lambda z: Gaussian(jnp.zeros(2), jnp.array(0.0)), Gaussian.standard(2)
    arguments = {"encode": lambda x: OnlyJointly(), "decode": decode, "prior": prior}
    result = jax.jit(partial(elbo, **arguments, num_samples=2))(jax.random.key(0), jnp.zeros(2))
    np.testing.assert_allclose(result.log_weights, -np.log(2 * np.pi) - 100, rtol=1e-6)
    np.testing.assert_allclose(result.kl, 100.0, rtol=1e-6)


def test_the_mean_gradient_of_elbo_is_the_gradient_of_the_exact_one():
    model, q, x = to_jax(oracle(SMALL))
    slope = jax.grad(lambda sides, key: elbo(key, x, **functions(*sides)).objective)
    keys = jax.random.split(jax.random.key(2), NUM_KEYS)
    drawn_slopes = jax.jit(partial(jax.lax.map, lambda key: slope((model, q), key)))(keys)
    slopes = jax.jit(jax.grad(lambda sides: sides[0].elbo(x, sides[1])))((model, q))
    drawn_slopes, slopes = jax.tree.leaves(drawn_slopes), in_float64(jax.tree.leaves(slopes))
    assert len(slopes) == 5
    for draws, slope in zip(in_float64(drawn_slopes), slopes, strict=True):
        noise = draws.std(0) / np.sqrt(NUM_KEYS)
        assert (np.abs(draws.mean(0) - slope) <= 4 * noise + 1e-5 * np.abs(slope).max()).all()


def test_options_that_change_the_objective_leave_the_elbo_unchanged():
    """beta, free bits and capacity change only the objective, each by its own formula."""
    plain, *others = options_on(
        LARGE, {}, {"beta": 0.0}, {"beta": 4.0}, {"free_bits": 0.7}, {"capacity": 5.0},
        {"beta": 10.0, "free_bits": 0.7, "capacity": 0.5},
    )  # fmt: skip
    likelihood, per_latent = plain.reconstruction, np.asarray(plain.kl_per_latent)
    assert per_latent.min() < 0.7 < per_latent.max()
    free = np.maximum(per_latent, 0.7).sum()
    rates = [0.0, 4 * plain.kl, free, abs(plain.kl - 5.0), 10 * abs(free - 0.5)]
    for result, rate in zip(others, rates, strict=True):
        chex.assert_trees_all_equal(result._replace(objective=plain.objective), plain)
        np.testing.assert_allclose(result.objective, likelihood - rate, rtol=4 * EPS)
    assert len({float(result.objective) for result in others}) == 5


def test_beta_weighs_a_sampled_kl_as_well():
    """It leaves all other fields as they are; the KL of "stl" is the one in closed form."""
    plain, weighted, closed, landed = options_on(
        SMALL,
        {"kl": "sampled"},
        {"kl": "sampled", "beta": 3.0},
        {},
        {"estimator": "stl", "beta": 3.0},
    )
    for result, rest in [(weighted, plain), (landed, closed)]:
        chex.assert_trees_all_close(result._replace(objective=rest.objective), rest, rtol=4 * EPS)
        expected = plain.reconstruction - 3 * plain.kl
        np.testing.assert_allclose(result.objective, expected, rtol=1e-6)


def test_free_bits_and_capacity_steer_the_gradient():
    """The gradient is that of the KL's part by q's loc, for latents with a KL of 0.5, 0.02 and 2
    nats: zero below the free bits, and towards the capacity from either side."""
    expected = [
        ({}, [-1.0, -0.2, -2.0]),
        ({"free_bits": 0.1}, [-1.0, 0.0, -2.0]),
        ({"free_bits": 1.0}, [0.0, 0.0, -2.0]),
        ({"capacity": 2.0, "beta": 5.0}, [-5.0, -1.0, -10.0]),
        ({"capacity": 3.0, "beta": 5.0}, [5.0, 1.0, 10.0]),
    ]

    def objective(loc, options):
        decode = lambda z: Gaussian(jnp.zeros(2), jnp.array(0.0))
        encode, prior = lambda x: Gaussian(loc, jnp.zeros(3)), Gaussian.standard(3)
        sides = {"encode": encode, "decode": decode, "prior": prior}
        return elbo(jax.random.key(0), jnp.zeros(2), **sides, **options).objective

    slopes = jax.jit(lambda loc: [jax.grad(objective)(loc, options) for options, _ in expected])
    for slope, (_, known) in zip(slopes(jnp.array([1.0, 0.2, 2.0])), expected, strict=True):
        np.testing.assert_allclose(slope, known, rtol=1e-6)


def test_grey_levels_stand_for_the_mean_over_binarizations():
    """E log p(x'|z) over x' ~ Bernoulli(x) is log p(x|z) at the grey x, here over all 64 x'."""
    grey, q = jnp.linspace(0.0, 1.0, 6), Gaussian(jnp.array([0.5, -1.0]), jnp.array(-0.5))
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(6, 2)))
    sides = {"encode": lambda _: q, "decode": lambda z: Bernoulli(3 * weight @ z)}
    run = lambda x: elbo(jax.random.key(4), x, **sides, prior=Gaussian.standard(2)).elbo
    binary = np.array(list(product([0.0, 1.0], repeat=6)), np.float32)
    chances = np.prod(np.where(binary == 1.0, grey, 1.0 - grey), axis=1)
    elbos = np.asarray(jax.jit(jax.vmap(run))(np.vstack([binary, grey])), np.float64)
    assert np.ptp(elbos) > 1.0
    # A mean of numbers that are good to some eps of terms of at most 50 each.
    assert abs(chances @ elbos[:-1] - elbos[-1]) <= 1e-6 * 50


# Transform


def test_options_may_be_traced():
    """One trace serves every weight, threshold and capacity of a schedule."""
    model, q, x = to_jax(oracle(LARGE))

    def run(beta, free_bits, capacity):
        options = {"beta": beta, "free_bits": free_bits, "capacity": capacity}
        return elbo(jax.random.key(1), x, **functions(model, q), **options)

    chex.clear_trace_counter()
    traced = jax.jit(chex.assert_max_traces(run, 1))
    for beta, free_bits, capacity in ((1.0, 0.2, 3.0), (0.0, 0.7, 1.0), (4.0, 0.0, 0.0)):
        result = traced(beta, free_bits, capacity)
        rate = abs(np.maximum(result.kl_per_latent, free_bits).sum() - capacity)
        expected = result.reconstruction - beta * rate
        np.testing.assert_allclose(result.objective, expected, rtol=1e-6)


# Failure

FULL = FullCovarianceGaussian(jnp.zeros(2), jnp.eye(2))


@pytest.mark.parametrize(
    ("options", "sides", "match"),
    [
        ({"kl": "exact"}, {}, r"elbo: kl must be auto, closed_form or sampled, got 'exact'"),
        ({"kl": "closed_form", "estimator": "stl"}, {}, r"'stl' needs a sampled KL\. Use kl="),
        (
            {"kl": "closed_form"},
            {"prior": Foreign(Gaussian.standard(2))},
            r"KL of Gaussian against Foreign has no closed form\. Use kl='sampled'",
        ),
        (
            {"free_bits": 0.1, "kl": "sampled"},
            {},
            r"free_bits needs a KL in closed form that splits",
        ),
        ({"free_bits": 0.1, "estimator": "stl"}, {}, r"free_bits needs a KL in closed form that"),
        ({"free_bits": 0.1}, {"encode": lambda x: FULL}, r"free_bits needs a KL in closed form"),
        ({"capacity": 0.1, "kl": "sampled"}, {}, r"capacity needs a KL in closed form\. Use"),
        (
            {"capacity": 0.1},
            {"prior": Foreign(Gaussian.standard(2))},
            r"capacity needs a KL in closed form\. Use a posterior and prior that have one",
        ),
    ],
)
def test_options_without_the_kl_that_they_need_are_rejected(options, sides, match):
    good = Gaussian.standard(2)
    arguments = {"encode": lambda x: good, "decode": lambda z: good, "prior": good} | sides
    with pytest.raises(ValueError, match=match):
        elbo(jax.random.key(0), jnp.zeros(2), **arguments, **options)
