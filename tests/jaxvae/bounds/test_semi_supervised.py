"""The semi-supervised bound, on a mixture whose log p(x), log p(x, y) and ELBO are exact."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import jaxvae
from jaxvae import VAE, Gaussian, Hierarchy, OneHotCategorical, elbo
from jaxvae.bounds import Labelled, semi_supervised
from jaxvae.testing import LinearGaussian, LinearGaussianMixture

NUM_KEYS = 20_000
X = jnp.array([0.4, -1.2, 0.9])


@cache
def mixture():
    rng = np.random.default_rng(0)
    model = LinearGaussian(rng.normal(size=(3, 2)), rng.normal(size=3), rng.normal(-0.3, 0.2, 3))
    found = LinearGaussianMixture(rng.normal(size=4), 2 * rng.normal(size=(4, 3)), model)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), found)


@cache
def guess():
    """Parameters of a q that is not the posterior: logits [4], loc [4, 2] and log_scale [4, 2]."""
    rng = np.random.default_rng(1)
    draws = rng.normal(size=4), rng.normal(size=(4, 2)), rng.normal(-0.5, 0.3, (4, 2))
    return tuple(jnp.asarray(array, jnp.float32) for array in draws)


def classifier(params, carry):
    return OneHotCategorical(params[0]), lambda y: y


def of_label(params, y):
    return Gaussian(y @ params[1], y @ params[2]), lambda z: z


def q_of(params):
    return Hierarchy(params, (classifier, of_label), reparameterized=False)


def exact_bound(point, label):
    """The bound in closed form, from the linear Gaussian model's ELBO for each label."""
    model, (logits, loc, log_scale) = point
    of_one = lambda shift, m, s: model.model.shifted(shift).elbo(X, Gaussian(m, s))
    each = jax.vmap(of_one)(model.shifts, loc, log_scale) + jax.nn.log_softmax(model.logits)
    log_q = jax.nn.log_softmax(logits)
    if label >= 0:
        return each[label] + 0.3 * log_q[label]
    return jnp.exp(log_q) @ (each - log_q)


def test_log_prob_of_the_mixture_is_scipys():
    model = mixture()
    noise = np.diag(np.exp(2 * np.asarray(model.model.log_scale)))
    weight = np.asarray(model.model.weight)
    masses = np.exp(jax.nn.log_softmax(model.logits))
    densities = [
        scipy.stats.multivariate_normal(
            np.asarray(model.model.bias) + shift, weight @ weight.T + noise
        ).pdf(X)
        for shift in np.asarray(model.shifts)
    ]
    np.testing.assert_allclose(model.log_prob(X), np.log(masses @ densities), rtol=1e-4)
    np.testing.assert_allclose(model.log_joint(X), np.log(masses * densities), rtol=1e-4)


def test_at_the_posterior_it_is_log_prob_of_what_is_known():
    model = mixture()
    parts = {"encode": model.posterior, "decode": model.decode, "prior": model.prior()}
    bound = jax.jit(lambda label: semi_supervised(jax.random.key(0), Labelled(X, label), **parts))
    # q(z|x, y) is a full covariance: its KL to N(0, I) is in closed form, the rest at one draw.
    of_keys = lambda label: jax.vmap(
        lambda key: semi_supervised(key, Labelled(X, label), **parts).elbo
    )(jax.random.split(jax.random.key(1), NUM_KEYS))
    expected = [model.log_prob(X), *model.log_joint(X)]
    for label, value in zip(range(-1, 4), expected, strict=True):
        draws = np.asarray(jax.jit(of_keys)(jnp.int32(label)), np.float64)
        assert abs(draws.mean() - value) < 4.5 * draws.std() / np.sqrt(NUM_KEYS) + 1e-4
    assert bound(jnp.int32(2)).samples[0].tolist() == [[0, 0, 1, 0]]


@pytest.mark.parametrize("label", [-1, 2])
def test_value_and_gradient_are_those_in_closed_form(label):
    point = mixture(), guess()

    def objective(point, key):
        model, params = point
        return semi_supervised(
            key, Labelled(X, jnp.int32(label)), encode=lambda x: q_of(params), prior=model.prior(),
            decode=model.decode, classifier_weight=0.3,
        ).objective  # fmt: skip

    keys = jax.random.split(jax.random.key(0), NUM_KEYS)
    found = jax.jit(jax.vmap(jax.value_and_grad(objective), in_axes=(None, 0)))(point, keys)
    expected = jax.value_and_grad(partial(exact_bound, label=label))(point)
    for draws, value in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        draws = np.asarray(draws, np.float64)
        error = np.maximum(draws.std(0) / np.sqrt(NUM_KEYS), 1e-5)
        assert np.max(np.abs(draws.mean(0) - value) / error) < 4.5


def test_an_unknown_label_is_summed_and_so_varies_less_than_if_drawn():
    model, params = mixture(), guess()
    parts = {"encode": lambda x: q_of(params), "decode": model.decode, "prior": model.prior()}
    summed = lambda key: semi_supervised(key, Labelled(X, jnp.int32(-1)), **parts).elbo
    drawn = lambda key: elbo(key, X, estimator="score", **parts).elbo
    keys = jax.random.split(jax.random.key(0), 5000)
    found = [np.asarray(jax.jit(jax.vmap(of))(keys), np.float64) for of in (summed, drawn)]
    error = np.hypot(*[values.std() for values in found]) / np.sqrt(5000)
    assert abs(found[0].mean() - found[1].mean()) < 4 * error
    assert found[0].std() < 0.7 * found[1].std()


def test_a_certain_classifier_has_finite_gradients():
    model, (_, *rest) = mixture(), guess()
    params = (jnp.array([200.0, 0.0, 0.0, 0.0]), *rest)
    of = lambda params, label: semi_supervised(
        jax.random.key(0), Labelled(X, label), encode=lambda x: q_of(params), decode=model.decode,
        prior=model.prior(),
    ).objective  # fmt: skip
    for label in (-1, 0, 1):
        gradient = jax.jit(jax.grad(of))(params, jnp.int32(label))
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_a_training_step_takes_labelled_examples():
    """Two clusters with one label each: the classifier learns all others."""
    start = (jnp.zeros((2, 2)), jnp.zeros((2, 2)), jnp.zeros((2, 1)))
    vae = VAE(
        init=lambda key: {"classifier": start[0], "centers": jax.random.normal(key, (2, 2))},
        encode=lambda params, x: Hierarchy(
            (params["classifier"] @ x, jnp.zeros((2, 1)), jnp.zeros((2, 1))),
            (classifier, of_label), reparameterized=False,
        ),
        decode=lambda params, z: Gaussian(z[0] @ params["centers"], jnp.array(0.0)),
        prior=lambda params: Hierarchy(
            (jnp.zeros(2), jnp.zeros((2, 1)), jnp.zeros((2, 1))), (classifier, of_label),
            reparameterized=False,
        ),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    x = np.where(y[:, None] == 0, 2.0, -2.0) + rng.normal(size=(200, 2))
    labels = np.full(200, -1, np.int32)
    for kind in (0, 1):
        labels[np.argmax(y == kind)] = kind
    optimizer = optax.adam(0.05)
    state = jaxvae.init_state(vae, optimizer, jax.random.key(0))
    objective = partial(semi_supervised, classifier_weight=10.0)
    step = jax.jit(jaxvae.make_train_step(vae, optimizer, objective=objective))
    for t in range(100):
        keys = jax.random.split(jax.random.key(t), 200)
        state, metrics = step(state, keys, Labelled(x.astype(np.float32), labels))
    assert np.isfinite(metrics["elbo"])
    found = np.argmax(x @ np.asarray(state.params["classifier"]).T, axis=1)
    assert np.mean(found == y) > 0.95


def one_hot(params, y):
    return OneHotCategorical(jnp.zeros((2, 2))), lambda z: z


def test_a_label_that_there_is_not_makes_the_bound_nan():
    model = mixture()
    parts = {"encode": model.posterior, "decode": model.decode, "prior": model.prior()}
    bound = semi_supervised(jax.random.key(0), Labelled(X, jnp.int32(4)), **parts)
    assert np.isnan(bound.elbo)
    assert np.isnan(bound.objective)


def test_a_label_without_probability_adds_nothing():
    model = mixture()._replace(logits=jnp.array([0.0, -jnp.inf, 0.5, 1.0]))
    parts = {"encode": model.posterior, "decode": model.decode, "prior": model.prior()}
    of = lambda x: semi_supervised(jax.random.key(0), Labelled(x, jnp.int32(-1)), **parts).elbo
    value, gradient = jax.value_and_grad(of)(X)
    assert abs(value - model.log_prob(X)) < 3
    assert np.all(np.isfinite(gradient))


def test_memory_of_a_gradient_hardly_grows_with_the_number_of_labels():
    def bytes_for(count):
        params = (jnp.zeros(count), jnp.zeros((count, 2)), jnp.zeros((count, 2)))
        weights = jnp.ones((2, 4096))

        def objective(weights):
            return semi_supervised(
                jax.random.key(0), Labelled(jnp.zeros(4096), jnp.int32(-1)),
                encode=lambda x: q_of(params), prior=q_of(params),
                decode=lambda z: Gaussian(jnp.tanh(z[1] @ weights), jnp.array(0.0)),
            ).objective  # fmt: skip

        compiled = jax.jit(jax.grad(objective)).lower(weights).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert bytes_for(40) < bytes_for(4) + 20 * 4096 * 4


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"prior": Gaussian.standard(2)}, "must be Hierarchies from the top"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        (
            {"encode": lambda x: Hierarchy(guess(), (classifier, one_hot), reparameterized=False)},
            "draws of level 2, OneHotCategorical, carry no gradient",
        ),
        (
            {"encode": lambda x: Hierarchy(guess(), (of_gaussian, of_label))},
            "first level must be a OneHotCategorical of the label, got Gaussian",
        ),
    ],
)
def test_what_is_no_hierarchy_over_a_label_is_rejected(parts, message):
    model = mixture()
    given = {"encode": model.posterior, "decode": model.decode, "prior": model.prior()} | parts
    with pytest.raises(ValueError, match=message):
        semi_supervised(jax.random.key(0), Labelled(X, jnp.int32(-1)), **given)


def of_gaussian(params, carry):
    return Gaussian(jnp.zeros(4), jnp.zeros(4)), lambda z: z
