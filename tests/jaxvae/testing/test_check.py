"""`check_bound`: the library's bounds pass, and published objectives that are not bounds fail."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient
from jax.scipy.special import logsumexp

from jaxvae import kl
from jaxvae.bounds import ciwae, elbo, iwae, miwae, piwae, posterior_samples, renyi, tvo
from jaxvae.testing import check_bound
from jaxvae.testing.check import _model
from jaxvae.testing.report import Draws, judge

SIZES = ((5, 2),)
"""Only one model, to save time in the default test run."""


@cache
def report(objective, sizes=SIZES, num_samples=(2, 8)):
    return check_bound(objective, sizes=sizes, num_samples=num_samples)


def log_weights(key, x, encode, decode, prior, num_samples):
    """log p(x|z_k) [K], and log p(z_k) - log q(z_k|x) [K]."""
    z, log_q = posterior_samples(key, encode(x), num_samples)
    log_likelihood = jax.vmap(lambda z: decode(z).log_prob(x))(z)
    return log_likelihood, jax.vmap(prior.log_prob)(z) - log_q


# Law: bounds pass


RIGHT = {
    "elbo, stl": (partial(elbo, estimator="stl"), "constant"),
    "iwae, dreg": (partial(iwae, estimator="dreg"), "tightens"),
    "tvo, dreg": (partial(tvo, estimator="dreg"), "tightens"),
}
RIGHT_LONG = {
    "elbo": (elbo, "constant"),
    "iwae": (iwae, "tightens"),
    "miwae": (partial(miwae, num_groups=2), "tightens"),
    "miwae, dreg": (partial(miwae, num_groups=2, estimator="dreg"), "tightens"),
    "ciwae": (ciwae, "tightens"),
    "ciwae, dreg": (partial(ciwae, estimator="dreg"), "tightens"),
    "renyi": (partial(renyi, alpha=0.5), "tightens"),
    "renyi, dreg": (partial(renyi, alpha=0.5, estimator="dreg"), "tightens"),
    "tvo": (tvo, "tightens"),
    "iwae, score": (partial(iwae, estimator="score"), "tightens"),
    "iwae, vimco": (partial(iwae, estimator="vimco"), "tightens"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
def test_our_bounds_pass(name):
    objective, trend = RIGHT[name]
    found = report(objective)
    assert found.passed, f"\n{found}"
    assert found.with_samples == trend


@pytest.mark.long
@pytest.mark.parametrize("name", RIGHT | RIGHT_LONG)
def test_all_our_bounds_pass_at_full_strength(name):
    objective, trend = (RIGHT | RIGHT_LONG)[name]
    found = check_bound(objective, num_samples=(2, 4, 16), num_keys=20_000)
    assert found.passed, f"\n{found}"
    assert found.with_samples == trend


@pytest.mark.long
def test_piwae_is_two_objectives():
    """The model's gradient is that of all draws together, the encoder's that of the groups."""
    found = check_bound(partial(piwae, num_groups=2), num_samples=(2, 8))
    assert found.is_lower_bound
    assert found.gradients["encoder"].is_equal
    assert not found.gradients["decoder"].is_equal


# Law: wrong objectives fail


def beta_half(key, x, *, encode, decode, prior, num_samples):
    """An ELBO with half its KL."""
    log_likelihood, _ = log_weights(key, x, encode, decode, prior, num_samples)
    return log_likelihood.mean() - 0.5 * kl(encode(x), prior)


def self_normalised(key, x, **model):
    """pythae's IWAE: -sum softmax(log w) log w, the gradient of IWAE under another value."""
    logs = sum(log_weights(key, x, **model))
    return jnp.sum(stop_gradient(jax.nn.softmax(logs)) * logs)


def inverted(key, x, *, encode, decode, prior, num_samples):
    """PyTorch-VAE's IWAE: weights by softmax of the loss, so that the worst draw counts most."""
    log_likelihood, _ = log_weights(key, x, encode, decode, prior, num_samples)
    loss = kl(encode(x), prior) - log_likelihood
    return -jnp.sum(jax.nn.softmax(loss) * loss)


def mean_of_weights(key, x, **model):
    """An ELBO of several draws, which is not tighter."""
    return jnp.mean(sum(log_weights(key, x, **model)))


def without_constant(key, x, *, encode, decode, prior, num_samples):
    """An ELBO by squared errors: log p(x|z) without its log 2 pi."""
    found = elbo(key, x, encode=encode, decode=decode, prior=prior, num_samples=num_samples)
    return found.objective + 0.5 * x.size * np.log(2 * np.pi)


def stopped(key, x, *, encode, decode, prior, num_samples):
    """An ELBO whose draws carry no gradient."""
    still = lambda x: jax.tree.map(stop_gradient, encode(x))
    log_likelihood, _ = log_weights(key, x, still, decode, prior, num_samples)
    return log_likelihood.mean() - kl(encode(x), prior)


def biased(key, x, *, encode, decode, prior, num_samples):
    """ "stl" for weighted draws, which is biased (Tucker et al. 2019)."""
    z, _ = posterior_samples(key, encode(x), num_samples)
    still = jax.tree.map(stop_gradient, encode(x))
    of = lambda z: decode(z).log_prob(x) + prior.log_prob(z) - still.log_prob(z)
    return logsumexp(jax.vmap(of)(z)) - np.log(num_samples)


def above_but_at_posterior(key, x, *, encode, decode, prior, num_samples):
    """A Renyi objective of negative order: above log p(x), unless q is the posterior."""
    return renyi(
        key, x, encode=encode, decode=decode, prior=prior, num_samples=num_samples, alpha=-2.0
    )


VERDICTS = ("is_lower_bound", "is_tight", "with_samples", "has_right_gradient")
WRONG = {
    beta_half: (False, False, "constant", True),
    self_normalised: (False, True, "tightens", False),
    inverted: (True, False, "loosens", True),
    mean_of_weights: (True, True, "constant", True),
    without_constant: (False, False, "constant", True),
    stopped: (True, True, "constant", False),
}
WRONG_LONG = {
    biased: (True, True, "tightens", False),
    above_but_at_posterior: (False, True, "tightens", True),
}
every_wrong = [*WRONG, *(pytest.param(fn, marks=pytest.mark.long) for fn in WRONG_LONG)]


@pytest.mark.slow
@pytest.mark.parametrize("objective", every_wrong, ids=lambda fn: fn.__name__)
def test_wrong_objectives_fail_in_the_expected_findings(objective):
    found = report(objective)
    verdicts = tuple(getattr(found, name) for name in VERDICTS)
    assert verdicts == (WRONG | WRONG_LONG)[objective], f"\n{found}"
    assert found.passed == (objective is mean_of_weights)


def test_a_gradient_that_is_wrong_for_one_group_fails_only_for_that_group():
    wrong = [name for name, found in report(stopped).gradients.items() if not found.is_equal]
    assert wrong == ["encoder"]


@pytest.mark.slow
def test_the_report_depends_only_on_the_key():
    run = partial(check_bound, mean_of_weights, sizes=SIZES, num_samples=(2, 8))
    assert run() == report(mean_of_weights)
    other = run(key=jax.random.key(1))
    assert other.highest != report(mean_of_weights).highest
    assert other.passed


# Law: the judgement


@pytest.mark.parametrize("size", [(5, 2), (2, 2)])
def test_the_first_q_is_the_posterior_and_the_second_is_not(size):
    with jax.enable_x64(True):
        exact, off, x = _model(np.random.default_rng(0), *size)
        posterior = jax.jit(exact.decoder.posterior)(x)
        q = exact.encoder(x)
        np.testing.assert_allclose(q.loc, posterior.loc, atol=1e-12)
        np.testing.assert_allclose(np.diag(np.exp(q.log_scale)), posterior.scale_tril, atol=1e-12)
        assert kl(off.encoder(x), posterior) > 0.2


def draws(at_posterior=0.0, off=(-1.0, -0.5), gradient=2.0, noise=1.0):
    """Draws of an objective with these means, where log p(x) is 0 and the slopes are 2."""
    values = noise * np.tile([-1.0, 1.0], 5000)  # four standard errors are 0.04
    return Draws(
        model="5 from 2",
        log_prob=0.0,
        rounding=1e-5,
        at_posterior={2: values + at_posterior, 8: values + at_posterior},
        off={2: values + off[0], 8: -values + off[1]},
        slopes={"encoder": np.full(10_000, 2.0)},
        gradients={"encoder": values + gradient},
    )


@pytest.mark.parametrize(
    ("found", "verdicts"),
    [
        ({}, (True, True, "tightens", True)),
        ({"at_posterior": 0.039}, (True, True, "tightens", True)),
        ({"at_posterior": 0.041}, (False, False, "tightens", True)),
        ({"at_posterior": -0.041}, (True, False, "tightens", True)),
        ({"off": (-0.5, 0.041)}, (False, True, "tightens", True)),
        ({"off": (-0.5, -0.421)}, (True, True, "constant", True)),
        ({"off": (-0.5, -0.419)}, (True, True, "tightens", True)),
        ({"off": (-0.5, -0.579)}, (True, True, "constant", True)),
        ({"off": (-0.5, -0.581)}, (True, True, "loosens", True)),
        ({"gradient": 2.041}, (True, True, "tightens", True)),
        ({"gradient": 2.043}, (True, True, "tightens", False)),
        ({"gradient": 1.957}, (True, True, "tightens", False)),
        ({"noise": np.nan}, (False, False, "loosens", False)),
    ],
)
def test_verdicts_turn_at_four_standard_errors(found, verdicts):
    """The noise of the two numbers of samples adds up to 0.08."""
    judged = judge([draws(), draws(**found)])
    assert tuple(getattr(judged, name) for name in VERDICTS) == verdicts


def test_the_report_is_a_line_for_each_finding():
    assert str(judge([draws(off=(-0.5, -1.0), gradient=3.0)])).splitlines() == [
        "lower bound      yes      0.0000 against 0.0000, allowing 0.0400 (5 from 2, 2 samples, "
        "q exact)",
        "tight            yes      0.0000 against 0.0000, allowing 0.0400 (5 from 2, 2 samples, "
        "q exact)",
        "more samples     loosens  -0.5000 against 0.0000, allowing 0.0800 (5 from 2, "
        "2 to 8 samples, q off)",
        "encoder gradient NO       3.0000 against 2.0000, allowing 0.0420 (5 from 2, 8 samples, "
        "q off)",
    ]


# Failure


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": (8,)}, r"two or more ascending numbers, got \(8,\)"),
        ({"num_samples": (8, 2)}, r"two or more ascending numbers, got \(8, 2\)"),
        ({"num_keys": 1}, "num_keys must be at least 2, got 1"),
        ({"sizes": [(2, 3)]}, r"D >= Z, got \[\(2, 3\)\]"),
        ({"sizes": []}, r"D >= Z, got \[\]"),
    ],
)
def test_invalid_arguments_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_bound(elbo, **arguments)


def test_an_objective_that_is_not_summed_is_rejected():
    per_sample = lambda key, x, **model: sum(log_weights(key, x, **model))
    with pytest.raises(ValueError, match=r"scalar for one example, got shape \(1,\)"):
        check_bound(per_sample)
