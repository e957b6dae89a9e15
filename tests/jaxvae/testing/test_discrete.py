"""The enumerable model, against sums over all its states in float64, and bounds against it."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.scipy.special import logsumexp

from jaxvae.bounds import elbo, iwae
from jaxvae.distributions import OneHotCategorical
from jaxvae.testing import DiscreteLatent

TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
NUM_KEYS = 20_000
DIM, LATENT_DIM, NUM_CLASSES = 4, 2, 3

precisions = pytest.mark.parametrize("precision", TOLERANCE)


def model_and_guess(latent_dim=LATENT_DIM):
    """A model and the logits of a q(z|x) that is not the posterior, in float64."""
    rng = np.random.default_rng(0)
    shape = (latent_dim, NUM_CLASSES)
    weight = 2 * rng.normal(size=(DIM, latent_dim * NUM_CLASSES))
    return DiscreteLatent(rng.normal(size=shape), weight, rng.normal(size=DIM)), rng.normal(
        size=shape
    )


X = np.array([1.0, 0.0, 0.0, 1.0])
ALL_X = np.array(list(itertools.product([0.0, 1.0], repeat=DIM)))


@jax.jit
def everything(model, logits, x):
    q = OneHotCategorical(logits)
    return {
        "states": model.states(),
        "log_joint": model.log_joint(x),
        "log_prob": model.log_prob(x),
        "log_posterior": model.log_posterior(x),
        "elbo": model.elbo(x, q),
        "log_q": jax.vmap(q.log_prob)(model.states()),
        "of_all_x": jax.vmap(model.log_prob)(jnp.asarray(ALL_X, x.dtype)),
    }


@cache
def solved(precision):
    with jax.enable_x64(precision == "float64"):
        to_jax = partial(jax.tree.map, jnp.asarray)
        return jax.device_get(everything(*to_jax((*model_and_guess(), X))))


@cache
def in_float64():
    """States as class numbers, log p(x, z) and log q(z) of each by scipy, and their terms."""
    model, logits = model_and_guess()
    log_prior = scipy.special.log_softmax(model.prior_logits, axis=1)
    log_q = scipy.special.log_softmax(logits, axis=1)
    rows, joint, guess, terms = np.arange(LATENT_DIM), [], [], 0.0
    states = list(itertools.product(range(NUM_CLASSES), repeat=LATENT_DIM))
    for classes in states:
        columns = [NUM_CLASSES * row + c for row, c in enumerate(classes)]
        probability = scipy.special.expit(model.weight[:, columns].sum(1) + model.bias)
        log_likelihood = scipy.stats.bernoulli.logpmf(X, probability)
        parts = np.concatenate([log_likelihood, log_prior[rows, classes]])
        joint.append(parts.sum())
        guess.append(log_q[rows, classes].sum())
        terms = max(terms, np.abs(parts).sum() + np.abs(log_q[rows, classes]).sum())
    return states, np.array(joint), np.array(guess), terms + np.abs(model.weight).sum()


# Golden


@precisions
def test_states_are_all_there_are(precision):
    states = solved(precision)["states"]
    assert [tuple(z.argmax(1)) for z in states] == in_float64()[0]
    np.testing.assert_array_equal(states.sum(-1), np.ones((len(states), LATENT_DIM)))


@precisions
def test_densities_are_scipys(precision):
    result, (_, joint, guess, terms) = solved(precision), in_float64()
    evidence = scipy.special.logsumexp(joint)
    close = partial(np.testing.assert_allclose, rtol=0, atol=TOLERANCE[precision] * terms)
    assert (result["log_prob"].shape, result["log_prob"].dtype.name) == ((), precision)
    close(result["log_joint"], joint)
    close(result["log_prob"], evidence)
    close(result["log_posterior"], joint - evidence)
    close(result["elbo"], np.exp(guess) @ (joint - guess))


# Law


@precisions
def test_probabilities_sum_to_one(precision):
    result = solved(precision)
    tolerance = 16 * TOLERANCE[precision]
    for name in ("of_all_x", "log_posterior", "log_q"):
        assert abs(np.exp(np.asarray(result[name], np.float64)).sum() - 1) <= tolerance


@precisions
def test_elbo_is_log_prob_less_the_gap(precision):
    """KL(q || p(z|x)) = sum_z q(z) (log q(z) - log p(z|x))."""
    result = {name: np.asarray(a, np.float64) for name, a in solved(precision).items()}
    gap = np.exp(result["log_q"]) @ (result["log_q"] - result["log_posterior"])
    assert gap > 0.1
    error = abs(result["log_prob"] - result["elbo"] - gap)
    assert error <= TOLERANCE[precision] * in_float64()[3]


def test_elbo_at_the_posterior_of_one_latent_is_log_prob_and_has_no_slope():
    with jax.enable_x64(True):
        model, _ = model_and_guess(latent_dim=1)
        of_logits = lambda logits: model.elbo(X, OneHotCategorical(logits[None]))
        value, slope = jax.jit(jax.value_and_grad(of_logits))(model.log_posterior(X))
        np.testing.assert_allclose(value, model.log_prob(X), rtol=1e-12)
        np.testing.assert_allclose(slope, np.zeros(NUM_CLASSES), atol=1e-12)


def enumerated(bound, num_samples, model, logits):
    """The mean of a bound over all S^K draws of a q of one latent, exactly."""
    log_q = jax.nn.log_softmax(logits[0])
    log_weights = model.log_joint(X) - log_q
    draws = np.array(list(itertools.product(range(NUM_CLASSES), repeat=num_samples)))
    drawn = log_weights[draws]
    means = {elbo: drawn.mean(1), iwae: logsumexp(drawn, axis=1) - np.log(num_samples)}
    return jnp.exp(log_q[draws].sum(1)) @ means[bound]


def sampled(bound, num_samples, model, logits, key):
    prior, q = model.prior(), OneHotCategorical(logits)
    run = partial(bound, key, jnp.asarray(X), encode=lambda x: q, decode=model.decode, prior=prior)
    return run(num_samples=num_samples, estimator="vimco").objective


@pytest.mark.slow
@pytest.mark.parametrize("bound", [elbo, iwae], ids=["elbo", "iwae"])
def test_bounds_and_their_vimco_gradients_have_the_enumerated_means(bound):
    model, logits = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), model_and_guess(1))
    by_all = jax.value_and_grad(partial(enumerated, bound, 2), argnums=(0, 1))
    by_key = jax.value_and_grad(partial(sampled, bound, 2), argnums=(0, 1))
    keys = jax.random.split(jax.random.key(0), NUM_KEYS)
    draws = jax.jit(lambda model, logits: jax.lax.map(partial(by_key, model, logits), keys))
    expected = jax.jit(by_all)(model, logits)
    for means, exact in zip(
        jax.tree.leaves(draws(model, logits)), jax.tree.leaves(expected), strict=True
    ):
        means = np.asarray(means, np.float64)
        allowance = 4 * means.std(0) / np.sqrt(NUM_KEYS) + 1e-5
        assert np.all(np.abs(means.mean(0) - exact) <= allowance)


# Transform


@pytest.mark.slow
def test_eager_jit_and_vmap_agree():
    model, logits = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), model_and_guess())
    elbo_of = lambda x: model.elbo(x, OneHotCategorical(logits))
    batch = jnp.asarray(ALL_X[:3], jnp.float32)
    batched, jitted = jax.jit(jax.vmap(elbo_of))(batch), jax.jit(elbo_of)
    np.testing.assert_allclose(elbo_of(batch[0]), batched[0], rtol=1e-5)
    np.testing.assert_allclose([jitted(x) for x in batch], batched, rtol=1e-5)


# Failure


def test_too_many_states_and_data_of_another_shape_are_rejected():
    model, _ = model_and_guess()
    with pytest.raises(ValueError, match=r"value has shape \(5,\), this .* event shape \(4,\)"):
        model.log_prob(jnp.zeros(5))
    large = DiscreteLatent(jnp.zeros((20, 3)), jnp.zeros((4, 60)), jnp.zeros(4))
    with pytest.raises(ValueError, match="at most 65536 states"):
        large.log_prob(jnp.zeros(4))
