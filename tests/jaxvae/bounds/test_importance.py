"""Importance-weighted bounds: their order, the effect of samples and groups, and their gap."""

from functools import cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import FullCovarianceGaussian, Gaussian, iwae
from jaxvae.bounds import ciwae, miwae, piwae, renyi, tvo
from jaxvae.testing import LinearGaussian
from tests.oracles import (
    EPS,
    LARGE,
    SMALL,
    cases,
    drawn,
    functions,
    in_float64,
    linear_gaussian,
    log_mean_exp,
    means_and_errors,
    posterior_moments,
    tightness,
    to_jax,
    weighted_by,
)

TIGHTER = ("iwae", "ciwae", "miwae", "piwae")
SPREADS = [1e-3, 1.0, 1e4]


NUM_KEYS, NUM_SAMPLES = 2_000, 6
RUNS = {
    "iwae": iwae,
    "iwae of 2": partial(iwae, num_samples=2),
    **{f"miwae {m}": partial(miwae, num_groups=m) for m in (1, 2, 3, 6)},
    **{f"piwae {m}": partial(piwae, num_groups=m) for m in (1, 2, 3, 6)},
    **{f"ciwae {b}": partial(ciwae, elbo_weight=b) for b in (0.0, 0.25, 1.0)},
    "ciwae 0.5": ciwae,
}


@jax.jit
def of_all(scale, keys):
    """{name: objective and log weights}, log weights of that spread, for each key."""

    def run(bound, key):
        sizes = (
            {} if "num_samples" in getattr(bound, "keywords", {}) else {"num_samples": NUM_SAMPLES}
        )
        result = bound(key, **weighted_by(scale), **sizes)
        return result.objective, result.log_weights

    return jax.vmap(lambda key: {name: run(bound, key) for name, bound in RUNS.items()})(keys)


@cache
def weighted(scale):
    keys = jax.random.split(jax.random.key(0), NUM_KEYS)
    return in_float64(jax.device_get(of_all(jnp.float32(scale), keys)))


# Golden


@pytest.mark.parametrize("scale", SPREADS)
@pytest.mark.parametrize("name", RUNS)
def test_an_objective_is_its_formula_also_for_weights_far_apart(name, scale):
    """Groups are rows of draws: 1/M sum_m log 1/K sum_k w_mk."""
    objective, logs = weighted(scale)[name]
    number = float(name.split(" ")[-1]) if name[-1].isdigit() else 1
    if name.startswith("ciwae"):
        expected = number * logs.mean(-1) + (1 - number) * log_mean_exp(logs)
    elif name.startswith("iwae"):
        expected = log_mean_exp(logs)
    else:
        expected = log_mean_exp(logs.reshape(NUM_KEYS, int(number), -1)).mean(-1)
    rounding = 1e-6 * (scale * 4 + np.log(6))
    np.testing.assert_allclose(objective, expected, rtol=0, atol=rounding)


# Law


@pytest.mark.slow
@cases
def test_iwae_of_all_draws_is_above_the_mean_of_it_for_one_less(case):
    """Burda et al.'s proof, draw by draw."""
    result = drawn(case, 4, ("elbo, sampled KL", *TIGHTER))[0]["iwae"]
    log_weights = in_float64(result.log_weights)
    rounding = 4 * EPS * np.abs(log_weights).max()
    fewer = np.mean([log_mean_exp(np.delete(log_weights, k, 1)) for k in range(4)], axis=0)
    assert (result.objective >= fewer - rounding).all()
    assert (result.objective <= log_weights.max(1) + rounding).all()


@pytest.mark.parametrize("name", ["iwae", "ciwae"])
def test_more_samples_never_loosen(name):
    results, log_prob = tightness(LARGE, name, TIGHTER)
    assert all(mean <= log_prob + 4 * error for mean, error in results)
    for (fewer, error_fewer), (more, error_more) in pairwise(results):
        assert more - fewer > 4 * np.hypot(error_fewer, error_more)


@pytest.mark.parametrize("name", ["miwae", "piwae"])
def test_more_samples_of_each_group_never_loosen(name):
    (_, *results), log_prob = tightness(LARGE, name, TIGHTER)
    assert all(mean <= log_prob + 4 * error for mean, error in results)
    assert results[1][0] - results[0][0] > 4 * results[0][1]


def test_one_sample_gives_the_elbo_with_a_sampled_kl():
    runs = [iwae, ciwae, partial(miwae, num_groups=1), partial(renyi, alpha=0.5), tvo]
    arguments = weighted_by(2.0) | {"num_samples": 1}
    results = jax.jit(lambda key: [bound(key, **arguments) for bound in runs])(jax.random.key(1))
    for result in results:
        np.testing.assert_allclose(result.objective, result.log_weights[0], rtol=1e-6)


def test_more_groups_of_the_same_draws_loosen_and_steady():
    """Jensen, draw by draw, from IWAE to the ELBO with a sampled KL; M groups of K draws have the
    mean of IWAE_K and 1 / M of its variance."""
    by_groups = [weighted(1.0)[name][0] for name in ("miwae 1", "miwae 2", "miwae 3", "miwae 6")]
    np.testing.assert_array_equal(by_groups[0], weighted(1.0)["iwae"][0])
    three, six = by_groups[2:]
    for fewer, more in [(by_groups[0], by_groups[1]), (by_groups[0], three), (by_groups[1], six)]:
        assert (more <= fewer + 1e-6 * 4).all()
        assert (more < fewer - 1e-3).mean() > 0.5
    (mean, error), (of_one, error_of_one) = means_and_errors(three, weighted(1.0)["iwae of 2"][0])
    assert abs(mean - of_one) <= 4 * np.hypot(error, error_of_one)
    # A variance of so many nearly Gaussian draws has a relative error of sqrt(2 / NUM_KEYS).
    assert abs(np.log(3 * (error / error_of_one) ** 2)) <= 4 * np.sqrt(2 * 3 / NUM_KEYS)


def test_a_higher_weight_of_the_elbo_loosens():
    results = weighted(1.0)
    by_weight = [results[f"ciwae {b}"][0] for b in (0.0, 0.25, 0.5, 1.0)]
    for tighter, looser in pairwise(by_weight):
        assert (looser < tighter).all()
    np.testing.assert_allclose(by_weight[0], results["iwae"][0], rtol=1e-6)
    np.testing.assert_allclose(by_weight[-1], results["iwae"][1].mean(1), rtol=0, atol=1e-6 * 4)


def test_the_gap_of_a_wider_posterior_closes_like_one_over_k():
    """q has 1.5 times the posterior's variance in both latents. Then KL(q || p(z|x)) is the gap of
    K = 1, and E (w / p(x))^2 - 1 = (s^2 / (2 s - 1)) - 1 with s = 1.5 is 2 K times that of large K.
    """
    model, x = linear_gaussian(SMALL)
    loc, covariance = posterior_moments(model, x)
    q = FullCovarianceGaussian(loc, np.sqrt(1.5) * np.linalg.cholesky(covariance))
    model, q, x = to_jax((model, q, x))
    keys = jax.random.split(jax.random.key(3), 20_000)
    bound = lambda key: iwae(key, x, **functions(model, q), num_samples=64).log_weights
    logs = in_float64(jax.jit(partial(jax.lax.map, bound, batch_size=500))(keys))
    log_prob = float(jax.jit(LinearGaussian.log_prob)(model, x))
    sizes = (1, 4, 16, 64)
    gaps = means_and_errors(*[log_prob - log_mean_exp(logs[:, :k]) for k in sizes])
    assert abs(gaps[0][0] - (0.5 - np.log(1.5))) <= 4 * gaps[0][1]
    for (wide, error), (narrow, _) in pairwise(gaps[:3]):
        assert wide - narrow > 4 * error
    excess = 1.5**2 / (2 * 1.5 - 1) - 1
    for k, (gap, error) in zip(sizes[2:], gaps[2:], strict=True):
        assert abs(gap - excess / (2 * k)) <= 4 * error + excess / k**2
    assert gaps[3][0] < 0.02 * gaps[0][0] + 4 * gaps[3][1]


# Transform


def test_the_weight_of_the_elbo_may_be_traced():
    run = partial(ciwae, jax.random.key(0), **weighted_by(1.0), num_samples=4)
    weights = jnp.array([0.0, 0.3, 1.0])
    results = jax.jit(jax.vmap(lambda b: run(elbo_weight=b)))(weights)
    traced, logs = results.objective, in_float64(results.log_weights)[0]
    weights = in_float64(weights)
    expected = weights * logs.mean() + (1 - weights) * log_mean_exp(logs)
    np.testing.assert_allclose(traced, expected, rtol=0, atol=1e-6 * 4)


# Failure


@pytest.mark.parametrize("bound", [miwae, piwae], ids=["miwae", "piwae"])
@pytest.mark.parametrize("num_groups", [0, 3, 5, -1])
def test_groups_that_do_not_divide_the_draws_are_rejected(bound, num_groups):
    match = (
        rf"{bound.__name__}: num_groups must divide num_samples, got {num_groups} groups of 4 "
        r"samples\. Give num_samples = groups \* samples of each\."
    )
    q = Gaussian.standard(1)
    sides = {"encode": lambda x: q, "decode": lambda z: q, "prior": q}
    with pytest.raises(ValueError, match=match):
        bound(jax.random.key(0), jnp.zeros(1), **sides, num_samples=4, num_groups=num_groups)
