"""Posterior families: their densities, latents and initial parameters."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import jaxvae.distributions as families_of
from jaxvae.distributions import Gaussian
from jaxvae.divergences import has_closed_form, kl, kl_per_latent, splits_by_latent
from jaxvae.evaluation import center_of
from jaxvae.flows import autoregressive_flow, coupling_flow
from jaxvae.models.posteriors import POSTERIORS, Posterior, on_feature_map, posterior_named

DIM, CATEGORIES = 3, 4
NUM_OUTPUTS = {
    "gaussian": 6,
    "full_covariance": 9,
    "low_rank": 12,
    "iaf": 9,
    "coupling": 9,
    "spline": 9,
    "von_mises_fisher": 4,
    "relaxed_categorical": 12,
    "categorical": 12,
}
FLOWS = ("iaf", "coupling", "spline")
SIMPLEX = ("relaxed_categorical", "categorical")
PRIORS = {
    "von_mises_fisher": "UniformSphere",
    "relaxed_categorical": "RelaxedCategorical",
    "categorical": "OneHotCategorical",
}
KEYS = jax.random.split(jax.random.key(5), 256)

posteriors = pytest.mark.parametrize("name", POSTERIORS)


@cache
def family(name):
    """The posterior and its own parameters."""
    posterior = posterior_named(name, DIM, CATEGORIES)
    return posterior, jax.jit(posterior.init)(jax.random.key(1))


@cache
def outputs_of(name):
    return np.random.default_rng(2).normal(size=NUM_OUTPUTS[name]).astype(np.float32)


@cache
def scorer(name):
    """(params, outputs, z) -> log q(z|x) and its gradients by params and outputs."""
    log_prob = lambda params, outputs, z: family(name)[0].distribution(params, outputs).log_prob(z)
    return jax.jit(jax.value_and_grad(log_prob, argnums=(0, 1)))


@cache
def drawer(name):
    """outputs -> 256 draws z with their log q(z|x), and the standard prior's log p(z)."""
    posterior, params = family(name)

    def draw(outputs, key):
        q = posterior.distribution(params, outputs)
        z, log_q = families_of.sample_and_log_prob(q, key)
        return z, log_q, posterior.standard_prior().log_prob(z)

    many = jax.jit(jax.vmap(draw, in_axes=(None, 0)))
    return lambda outputs: many(outputs, KEYS)


def some_z(name):
    """One generic z of the family's space."""
    posterior, _ = family(name)
    rng = np.random.default_rng(3)
    z = rng.normal(size=posterior.latent_shape)
    if name == "von_mises_fisher":
        z /= np.linalg.norm(z)
    if name == "relaxed_categorical":
        z = scipy.special.softmax(z, axis=-1)
    if name == "categorical":
        z = np.eye(CATEGORIES)[rng.integers(0, CATEGORIES, DIM)]
    return z.astype(np.float32)


# Golden


def clamped(log_scale):
    return 7 * np.tanh(log_scale / 7)


def concrete_log_prob(z, logits, temperature):
    """Maddison, Mnih & Teh 2017, equation 10, one row at a time."""
    total = 0.0
    for row, logit in zip(z, logits, strict=True):
        alpha, n = np.exp(logit), len(row)
        powers = alpha * row ** (-temperature)
        density = math.factorial(n - 1) * temperature ** (n - 1)
        total += np.log(density * np.prod(alpha * row ** (-temperature - 1) / powers.sum()))
    return total


def expected(name, outputs, z):
    """log q(z|x) of the documented formula in numpy."""
    loc, scale = outputs[:3], np.exp(clamped(outputs[3:6]))
    rest = outputs[6:]
    normal = lambda covariance: scipy.stats.multivariate_normal(loc, covariance).logpdf(z)
    if name == "gaussian":
        return normal(np.diag(scale**2))
    if name == "full_covariance":
        unit = np.array([[1, 0, 0], [rest[0], 1, 0], [rest[1], rest[2], 1]])
        factor = np.diag(scale) @ unit
        return normal(factor @ factor.T)
    if name == "low_rank":
        factor = np.diag(scale) @ rest.reshape(3, 2)
        return normal(factor @ factor.T + np.diag(scale**2))
    if name == "von_mises_fisher":
        concentration = 1 + np.logaddexp(0, outputs[3])
        mean = outputs[:3] / np.linalg.norm(outputs[:3])
        return scipy.stats.vonmises_fisher(mean, concentration).logpdf(z)
    logits = outputs.reshape(3, 4)
    if name == "relaxed_categorical":
        return concrete_log_prob(z, logits, 2 / 3)
    return (scipy.special.log_softmax(logits, axis=1) * z).sum()


@pytest.mark.parametrize("name", [name for name in POSTERIORS if name not in FLOWS])
def test_q_is_its_documented_formula(name):
    """The tolerance is 160 eps of float32, in sums of up to 12 terms of order one to ten."""
    _, params = family(name)
    outputs, z = outputs_of(name), some_z(name)
    log_q, _ = scorer(name)(params, outputs, z)
    right = expected(name, outputs.astype(np.float64), z.astype(np.float64))
    np.testing.assert_allclose(log_q, right, rtol=2e-5, atol=2e-5)
    assert params == {}


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_has_base_and_context_from_the_outputs(name):
    posterior, params = family(name)
    outputs = outputs_of(name)
    base = Gaussian(outputs[:3], clamped(outputs[3:6]))
    context = jnp.asarray(outputs[6:])
    if name == "iaf":
        flow = autoregressive_flow(params, base, context)
    else:
        kind = "spline" if name == "spline" else "affine"
        flow = coupling_flow(params, base, context, kind=kind)
    q = posterior.distribution(params, outputs)
    assert jax.tree.structure(q) == jax.tree.structure(flow)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    jax.tree.map(same, q, flow)


def test_a_prior_over_the_same_simplex_has_its_own_temperature():
    """Maddison et al. 2017: 2/3 for the posterior, 1/2 for the prior."""
    z = some_z("relaxed_categorical")
    prior = family("relaxed_categorical")[0].standard_prior()
    right = concrete_log_prob(z.astype(np.float64), np.zeros((3, 4)), 0.5)
    np.testing.assert_allclose(prior.log_prob(z), right, rtol=2e-5)


# Law


@pytest.mark.slow
@posteriors
def test_every_output_is_used(name):
    """log q(z|x) has a gradient by each, and by each of the family's own parameters."""
    posterior, params = family(name)
    assert posterior.num_outputs == NUM_OUTPUTS[name]
    _, (to_params, to_outputs) = scorer(name)(params, outputs_of(name), some_z(name))
    assert to_outputs.shape == (NUM_OUTPUTS[name],)
    assert np.isfinite(to_outputs).all()
    assert (np.abs(to_outputs) > 1e-7).all()
    for path, leaf in jax.tree_util.tree_leaves_with_path(to_params):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path
    assert bool(params) == (name in FLOWS)


@pytest.mark.slow
@posteriors
def test_the_standard_prior_is_over_the_same_latents(name):
    """Draws of the one are in the space of the other, where its density is finite."""
    posterior, params = family(name)
    shape = (DIM, CATEGORIES) if name in SIMPLEX else (DIM,)
    assert posterior.latent_shape == shape
    assert type(posterior.standard_prior()).__name__ == PRIORS.get(name, "Gaussian")
    z, log_q, log_prior = drawer(name)(outputs_of(name))
    assert z.shape == (256, *shape)
    assert np.isfinite(log_q).all()
    assert np.isfinite(log_prior).all()
    from_prior = jax.jit(lambda key: posterior.standard_prior().sample(key))(KEYS[0])
    assert from_prior.shape == shape
    log_q, _ = scorer(name)(params, outputs_of(name), from_prior)
    assert np.isfinite(log_q)
    if name == "von_mises_fisher":
        np.testing.assert_allclose(np.linalg.norm(z, axis=-1), np.ones(256), rtol=1e-6)
    if name in SIMPLEX:
        np.testing.assert_allclose(np.sum(z, axis=-1), np.ones((256, DIM)), rtol=1e-6)


@pytest.mark.parametrize("name", ["gaussian", "low_rank", "von_mises_fisher", "categorical"])
def test_draws_have_the_mean_of_q(name):
    """Each entry within 4 standard errors of 256 draws."""
    posterior, params = family(name)
    z, _, _ = drawer(name)(outputs_of(name))
    z = np.asarray(z, np.float64)
    error = 4 * z.std(axis=0) / math.sqrt(len(z)) + 1e-6
    mean = jax.jit(lambda outputs: posterior.distribution(params, outputs).mean())(outputs_of(name))
    assert (np.abs(z.mean(axis=0) - mean) <= error).all()


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_starts_near_its_base(name):
    """A coupling layer as the identity, an autoregressive one as 0.88 z: its gate is sigmoid(2).

    What the networks' last layers add is 0.01 of the order of their inputs, in two layers.
    """
    outputs = np.array([1.0, -2.0, 0.5, 0.3, -0.6, 0.1, 0.7, -0.2, 1.1], np.float32)
    z, _, _ = drawer(name)(outputs)
    kept = 1 / (1 + np.exp(-clamped(2.0))) if name == "iaf" else 1.0
    base = Gaussian(outputs[:3], clamped(outputs[3:6]))
    first = jax.vmap(base.sample)(KEYS)
    np.testing.assert_allclose(z, kept**2 * first, rtol=0.2, atol=0.2)
    assert np.abs(z - kept**2 * first).mean() < 0.05


def test_low_rank_has_no_more_columns_than_latents():
    posterior = posterior_named("low_rank", 1, 0)
    assert posterior.num_outputs == 3
    log_prob = jax.jit(lambda outputs, z: posterior.distribution({}, outputs).log_prob(z))
    right = scipy.stats.norm(0.5, math.sqrt(5)).logpdf(1.5)
    result = log_prob(jnp.array([0.5, 0.0, 2.0]), jnp.array([1.5]))
    np.testing.assert_allclose(result, right, rtol=1e-5)


def test_a_new_direction_of_zero_length_has_a_finite_density():
    """All outputs zero, as with a zero kernel and bias: concentration 1 + log 2, finite slopes."""
    z = some_z("von_mises_fisher")
    zeros = np.zeros(4, np.float32)
    log_q, (_, slopes) = scorer("von_mises_fisher")({}, zeros, z)
    assert np.isfinite(log_q)
    assert np.isfinite(slopes).all()
    q = family("von_mises_fisher")[0].distribution({}, jnp.zeros(4))
    np.testing.assert_allclose(np.exp(q.log_concentration), 1 + math.log(2), rtol=1e-6)
    draws, log_qs, _ = drawer("von_mises_fisher")(zeros)
    assert np.isfinite(draws).all()
    assert np.isfinite(log_qs).all()


@posteriors
def test_extreme_outputs_have_finite_densities_and_gradients(name):
    """At each sign of 1e4: log scales are clamped, directions and logits take any size."""
    _, params = family(name)
    rng = np.random.default_rng(4)
    for _ in range(4):
        outputs = rng.choice([-1e4, 0.0, 1e4], NUM_OUTPUTS[name]).astype(np.float32)
        results = scorer(name)(params, outputs, some_z(name))
        for path, leaf in jax.tree_util.tree_leaves_with_path(results):
            assert np.isfinite(leaf).all(), path


def test_a_posterior_can_be_added(monkeypatch):
    wide = lambda latent_dim, num_categories: POSTERIORS["gaussian"](2 * latent_dim, 0)
    monkeypatch.setitem(POSTERIORS, "two words", wide)
    assert isinstance(posterior_named("two words", 3, 0), Posterior)
    assert posterior_named("two words", 3, 0).latent_shape == (6,)


# Transform


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in POSTERIORS if name not in FLOWS])
def test_eager_and_jit_agree(name):
    """The same operations fused in other ways: some eps of terms of order one to ten."""
    posterior, params = family(name)
    outputs, z = outputs_of(name), some_z(name)
    eager = posterior.distribution(params, outputs).log_prob(z)
    assert eager.shape == ()
    jitted, _ = scorer(name)(params, outputs, z)
    np.testing.assert_allclose(jitted, eager, rtol=2e-5, atol=2e-5)


@posteriors
def test_a_vmapped_draw_carries_the_density_of_its_z(name):
    """A flow computes it forward and again by the inverse, with some eps for each step."""
    z, log_q, _ = drawer(name)(outputs_of(name))
    for i in range(4):
        again, _ = scorer(name)(family(name)[1], outputs_of(name), z[i])
        np.testing.assert_allclose(log_q[i], again, rtol=1e-4, atol=1e-4)


@posteriors
def test_outputs_in_bfloat16_give_draws_and_densities_in_float32(name):
    posterior, params = family(name)

    def everything(outputs):
        q = posterior.distribution(params, outputs)
        return q.sample(KEYS[0]), q.log_prob(some_z(name))

    low = jax.ShapeDtypeStruct((NUM_OUTPUTS[name],), jnp.bfloat16)
    assert {leaf.dtype.name for leaf in jax.eval_shape(everything, low)} == {"float32"}


# Failure


def test_an_unknown_posterior_is_rejected():
    with pytest.raises(ValueError, match=r"posterior must be one of .*full_cov.*, got 'normal'"):
        posterior_named("normal", DIM, CATEGORIES)


def test_a_sphere_of_two_points_is_rejected():
    with pytest.raises(ValueError, match="von_mises_fisher needs latent_dim of at least 2, got 1"):
        posterior_named("von_mises_fisher", 1, CATEGORIES)


@pytest.mark.parametrize("name", SIMPLEX)
@pytest.mark.parametrize("num_categories", [1, 0, -2])
def test_less_than_two_categories_are_rejected(name, num_categories):
    message = f"num_categories must be at least 2, got {num_categories}"
    with pytest.raises(ValueError, match=message):
        posterior_named(name, DIM, num_categories)


@posteriors
def test_a_z_of_another_shape_is_rejected(name):
    posterior, params = family(name)
    q = posterior.distribution(params, outputs_of(name))
    with pytest.raises(ValueError, match=r"(value has shape|z must have shape .*) \(7, 2\)"):
        jax.eval_shape(q.log_prob, jnp.zeros((7, 2)))


# Feature maps


def test_a_mixture_over_feature_maps_is_flattened_with_its_components():
    rng = np.random.default_rng(0)
    components = Gaussian(*(jnp.asarray(rng.normal(size=(4, *MAP))) for _ in range(2)))
    p = families_of.Mixture(jnp.zeros(4), components)
    z = jnp.asarray(rng.normal(size=MAP))
    both = jax.jit(lambda p, z: (families_of.flattened(p).log_prob(z.ravel()), p.log_prob(z)))
    np.testing.assert_allclose(*both(p, z), rtol=1e-6)


def test_a_gaussian_with_a_number_as_scale_is_flattened_too():
    """A user's own encoder may return one."""
    q = Gaussian(jnp.arange(6.0).reshape(2, 3), -1.0)
    np.testing.assert_array_equal(families_of.flattened(q).loc, np.arange(6.0))
    assert families_of.flattened(q).log_scale == -1.0
    np.testing.assert_array_equal(center_of(q, jax.random.key(0)), q.loc)


MAP = (1, 3, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [  # any flow is reshaped as a whole, whatever its layers; these two compile the longest
        pytest.param(name, marks=[pytest.mark.slow] if name in ("iaf", "spline") else [])
        for name in POSTERIORS
    ],
)
def test_latents_of_a_feature_map_are_those_of_the_vector(name):
    vector = posterior_named(name, 6, CATEGORIES)
    on_map = on_feature_map(vector, MAP)
    outputs = np.random.default_rng(2).normal(size=vector.num_outputs).astype(np.float32)
    moved = outputs
    if vector.outputs_axis is not None:  # [h, w, n c] in one row -> [n, Z] or [Z, n]
        moved = np.moveaxis(outputs.reshape(1, 3, -1, 2), 2, 0 if vector.outputs_axis == 0 else 3)

    def described(posterior, params, outputs):
        """A draw, its log densities and the KL of a posterior and its standard prior."""
        q, prior = posterior.distribution(params, outputs), posterior.standard_prior()
        z = q.sample(jax.random.key(3))
        closed = has_closed_form(q, prior)
        divergences = [kl(q, prior)] if closed else []
        if splits_by_latent(q, prior):
            divergences.append(kl_per_latent(q, prior))
        vectors = families_of.flattened(q), families_of.flattened_draw(q, z)
        return z, q.log_prob(z), prior.log_prob(z), divergences, vectors

    @jax.jit
    def both(key):
        params = vector.init(key)
        return described(on_map, params, outputs), described(vector, params, moved.ravel())

    of_map, of_vector = both(jax.random.key(1))
    assert of_map[0].shape == on_map.latent_shape == (*MAP, *vector.latent_shape[1:])
    assert [leaf.shape for leaf in of_map[3][1:]] == [MAP] * len(of_vector[3][1:])
    assert jax.tree.structure(of_map) == jax.tree.structure(of_vector)
    for ours, theirs in zip(*map(jax.tree.leaves, (of_map, of_vector)), strict=True):
        np.testing.assert_allclose(ours.ravel(), theirs.ravel(), rtol=1e-5, atol=1e-5)
