"""Prior families: their densities, initial parameters and gradients."""

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxvae import Gaussian, mlp_vae, soft_clamp
from jaxvae.flows import coupling_flow
from jaxvae.models.posteriors import posterior_named
from jaxvae.models.priors import PRIORS, Prior, Setting, prior_named

NUM, DATA, DIM = 5, 3, 2
STARTS = np.random.default_rng(7).normal(size=(NUM, DATA)).astype(np.float32)
LEARNED = ("mixture", "vamp", "flow")
NO_VECTORS = {
    "von_mises_fisher": "UniformSphere",
    "relaxed_categorical": "RelaxedCategorical",
    "categorical": "OneHotCategorical",
}

priors = pytest.mark.parametrize("name", PRIORS)
learned = pytest.mark.parametrize("name", LEARNED)


def setting(posterior="gaussian", num_components=NUM, latent_dim=DIM):
    return Setting(posterior_named(posterior, latent_dim, 4), num_components, lambda key: STARTS)


def encode(weights, x):
    """q(z|x) of a network with one layer."""
    loc, log_scale = jnp.split(weights @ x, 2)
    return Gaussian(loc, soft_clamp(log_scale))


@cache
def example(name):
    """The prior, its parameters and the encoder's, away from their initial values, and three z."""
    prior = prior_named(name, setting())
    rng = np.random.default_rng(0)
    scale = 0.02 if name == "flow" else 0.5  # of 128 hidden units, the sum
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf + scale * rng.normal(size=leaf.shape), np.float32),
        jax.jit(prior.init)(jax.random.key(0)),
    )
    weights = (0.4 * rng.normal(size=(2 * DIM, DATA))).astype(np.float32)
    return prior, params, weights, rng.normal(size=(3, DIM)).astype(np.float32)


def built(name, params, weights):
    return example(name)[0].distribution(params, lambda x: encode(weights, x))


@cache
def scorer(name):
    """(params, weights, z) -> log p(z) and its gradients by params and weights, over many z."""
    log_prob = lambda params, weights, z: built(name, params, weights).log_prob(z)
    gradient = jax.value_and_grad(log_prob, argnums=(0, 1))
    return jax.jit(jax.vmap(gradient, in_axes=(None, None, 0)))


# Golden


def clamped(log_scale):
    return 7 * np.tanh(log_scale / 7)


def components(params, weights):
    """Mean and log standard deviation [M, Z] of each q(z|u_m), in float64."""
    outputs = params["pseudo_inputs"].astype(np.float64) @ weights.astype(np.float64).T
    return outputs[:, :DIM], clamped(outputs[:, DIM:])


def mixture_log_prob(logits, loc, log_scale, z):
    """log sum_m softmax(logits)_m N(z; loc_m, diag(exp(log_scale_m))^2)."""
    each = scipy.stats.norm.logpdf(z, loc, np.exp(log_scale)).sum(axis=1)
    return scipy.special.logsumexp(scipy.special.log_softmax(logits.astype(np.float64)) + each)


def test_a_vamp_prior_is_the_mixture_of_its_posteriors():
    _, params, weights, zs = example("vamp")
    log_p, _ = scorer("vamp")(params, weights, zs)
    right = [mixture_log_prob(params["logits"], *components(params, weights), z) for z in zs]
    np.testing.assert_allclose(log_p, right, rtol=1e-5)


def test_a_vamp_prior_is_not_that_of_a_misplaced_parenthesis():
    """PyTorch-VAE's VampVAE divides log_var by the variance too, and has no 2 pi.

    -0.5 * (log_var + (z - mu)**2) / log_var.exp() is no density: at a log variance of -2 it is
    too high by 6 nats for each latent. Adding the constant does not correct it.
    """
    params = {"logits": np.zeros(2, np.float32), "pseudo_inputs": np.eye(2, DATA, dtype=np.float32)}
    weights = np.zeros((2 * DIM, DATA), np.float32)
    weights[DIM:, :2] = np.arctanh(-1 / 7) * 7  # log scale -1, log variance -2, of both
    z = np.zeros((1, DIM), np.float32)
    (log_p,), _ = scorer("vamp")(params, weights, z)
    loc, log_scale = components(params, weights)
    log_var = 2 * log_scale
    mistaken = (-0.5 * (log_var + (z - loc) ** 2) / np.exp(log_var)).sum(axis=1)
    mistaken = scipy.special.logsumexp(mistaken - np.log(2))
    right = DIM * (1 - 0.5 * np.log(2 * np.pi))
    np.testing.assert_allclose(log_p, right, rtol=1e-5)
    np.testing.assert_allclose(mistaken, DIM * np.exp(2), rtol=1e-5)
    for constant in (0.0, -0.5 * DIM * np.log(2 * np.pi)):
        assert abs(float(log_p) - (mistaken + constant)) > 10


def test_a_mixture_is_its_formula():
    _, params, weights, zs = example("mixture")
    log_p, _ = scorer("mixture")(params, weights, zs)
    log_scale = clamped(params["log_scale"].astype(np.float64))
    right = [mixture_log_prob(params["logits"], params["loc"], log_scale, z) for z in zs]
    np.testing.assert_allclose(log_p, right, rtol=1e-5)


def test_a_flow_prior_is_four_coupling_layers_from_a_standard_gaussian():
    prior, params, weights, _ = example("flow")
    assert set(params) == {"flow_0", "flow_1", "flow_2", "flow_3"}
    right = coupling_flow(params, Gaussian.standard(DIM))
    result = built("flow", params, weights)
    assert jax.tree.structure(result) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, result, right)
    assert isinstance(prior, Prior)


def test_the_standard_prior_is_the_posteriors_own():
    for posterior in ("gaussian", *NO_VECTORS):
        own = setting(posterior)
        prior = prior_named("standard", own)
        assert prior.init(jax.random.key(0)) == {}
        chex.assert_trees_all_equal(prior.distribution(None, None), own.posterior.standard_prior())


# Law


@priors
def test_densities_add_up_to_one(name):
    """By the trapezoid rule on [-12, 12]^2: exact at its step of 0.1 for scales above that.

    Tails beyond 4 scales of 3 at most hold 1e-4.
    """
    _, params, weights, _ = example(name)
    axis = np.linspace(-12, 12, 241, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, DIM)
    log_p = jax.jit(lambda zs: jax.vmap(built(name, params, weights).log_prob)(zs))(grid)
    total = np.exp(np.asarray(log_p, np.float64)).sum() * (axis[1] - axis[0]) ** 2
    assert abs(total - 1) < 1e-3


@pytest.mark.parametrize("name", ["mixture", "vamp"])
def test_draws_have_the_mean_of_the_mixture(name):
    """Each entry within 4 standard errors of 2,000 draws."""
    _, params, weights, _ = example(name)
    if name == "vamp":
        loc, _ = components(params, weights)
    else:
        loc = params["loc"]
    draw = jax.jit(
        jax.vmap(lambda params, key: built(name, params, weights).sample(key), (None, 0))
    )
    z = np.asarray(draw(params, jax.random.split(jax.random.key(1), 2000)), np.float64)
    error = 4 * z.std(axis=0) / np.sqrt(len(z))
    right = scipy.special.softmax(params["logits"]) @ loc
    assert (np.abs(z.mean(axis=0) - right) <= error).all()
    np.testing.assert_allclose(built(name, params, weights).mean(), right, rtol=1e-5, atol=1e-6)


def test_a_vamp_prior_starts_at_its_pseudo_inputs_all_weighted_alike():
    params = prior_named("vamp", setting()).init(jax.random.key(0))
    assert set(params) == {"logits", "pseudo_inputs"}
    np.testing.assert_array_equal(params["pseudo_inputs"], STARTS)
    np.testing.assert_array_equal(params["logits"], np.zeros(NUM))


def test_a_vamp_prior_at_the_data_is_the_aggregated_posterior():
    """p(z) = 1/N sum_n q(z|x_n), by the encoder of a model."""
    xs = np.random.default_rng(1).random((6, 4), dtype=np.float32)
    vae = mlp_vae(
        data_shape=(4,),
        latent_dim=DIM,
        hidden=(5,),
        prior="vamp",
        num_components=6,
        pseudo_inputs=xs,
    )
    params = jax.jit(vae.init)(jax.random.key(0))
    np.testing.assert_array_equal(params["prior"]["pseudo_inputs"], xs)
    q = jax.vmap(vae.encode, (None, 0))(params, xs)
    loc, scale = np.asarray(q.loc, np.float64), np.exp(np.asarray(q.log_scale, np.float64))
    z = np.array([0.3, -0.8])
    aggregated = np.mean(np.prod(scipy.stats.norm.pdf(z, loc, scale), axis=1))
    log_p = vae.prior(params).log_prob(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(log_p, np.log(aggregated), rtol=1e-5)


def test_pseudo_inputs_without_examples_are_noise_about_the_data_mean():
    """The noise has the data's scale: mean and variance within 4 standard errors, 3,000 numbers."""
    mean = np.linspace(0, 1, 30, dtype=np.float32)
    vae = mlp_vae(
        data_shape=(30,),
        latent_dim=1,
        hidden=(),
        prior="vamp",
        num_components=100,
        data_mean=mean,
        data_scale=0.25,
    )
    starts = jax.jit(lambda key: vae.init(key)["prior"]["pseudo_inputs"])(jax.random.key(0))
    eps = (np.asarray(starts, np.float64) - mean) / 0.25
    assert eps.shape == (100, 30)
    assert abs(eps.mean()) < 4 / np.sqrt(eps.size)
    assert abs(eps.var() - 1) < 4 * np.sqrt(2 / eps.size)


def test_a_mixture_starts_with_unit_gaussians_apart():
    params = prior_named("mixture", setting(num_components=400)).init(jax.random.key(0))
    assert {name: leaf.shape for name, leaf in params.items()} == {
        "logits": (400,),
        "loc": (400, DIM),
        "log_scale": (400, DIM),
    }
    assert not np.asarray(params["logits"]).any()
    assert not np.asarray(params["log_scale"]).any()
    assert abs(np.mean(params["loc"])) < 4 / np.sqrt(800)
    assert abs(np.var(params["loc"]) - 1) < 4 * np.sqrt(2 / 800)


def test_a_flow_prior_starts_near_a_standard_gaussian():
    """Its networks' last layers are 0.01 of the order of their inputs, in four layers."""
    prior, _, _, zs = example("flow")
    new = prior.distribution(prior.init(jax.random.key(3)), None)
    standard = Gaussian.standard(DIM)
    for z in zs:
        assert abs(float(new.log_prob(z) - standard.log_prob(z))) < 0.2


@learned
def test_every_parameter_of_the_prior_has_a_gradient(name):
    """Through a VampPrior the encoder has a gradient too."""
    _, params, weights, zs = example(name)
    _, (to_params, to_weights) = scorer(name)(params, weights, zs)
    assert to_params.keys() == params.keys()
    for path, leaf in jax.tree_util.tree_leaves_with_path(to_params):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path
    assert (np.abs(to_weights).max() > 0) == (name == "vamp")


@pytest.mark.parametrize("name", ["mixture", "vamp"])
def test_gradient_of_the_weights_is_responsibility_less_weight(name):
    _, params, weights, zs = example(name)
    _, (to_params, _) = scorer(name)(params, weights, zs)
    if name == "vamp":
        loc, log_scale = components(params, weights)
    else:
        loc, log_scale = params["loc"], clamped(params["log_scale"])
    each = scipy.stats.norm.logpdf(zs[:, None], loc, np.exp(log_scale)).sum(axis=-1)
    responsibility = scipy.special.softmax(params["logits"] + each, axis=1)
    right = responsibility - scipy.special.softmax(params["logits"])
    np.testing.assert_allclose(to_params["logits"], right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("of", ["pseudo_inputs", "encoder"])
def test_gradients_through_a_vamp_prior_are_finite_differences(of):
    """Central differences of 1e-5, of the numpy formula in float64, are accurate to 1e-9."""
    _, params, weights, zs = example("vamp")
    _, (to_params, to_weights) = scorer("vamp")(params, weights, zs[:1])
    array = (params["pseudo_inputs"] if of == "pseudo_inputs" else weights).astype(np.float64)
    differences = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        sides = []
        for sign in (1, -1):
            moved = array.copy()
            moved[index] += sign * 1e-5
            pair = (moved, weights) if of == "pseudo_inputs" else (params["pseudo_inputs"], moved)
            parts = components({"pseudo_inputs": pair[0]}, pair[1])
            sides.append(mixture_log_prob(params["logits"], *parts, zs[0]))
        differences[index] = (sides[0] - sides[1]) / 2e-5
    result = to_params["pseudo_inputs"] if of == "pseudo_inputs" else to_weights
    np.testing.assert_allclose(result[0], differences, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("posterior", NO_VECTORS)
def test_a_vamp_prior_is_over_whatever_the_posterior_is_over(posterior):
    own = setting(posterior)
    kernel = np.random.default_rng(2).normal(size=(own.posterior.num_outputs, DATA))
    kernel = jnp.asarray(kernel, jnp.float32)
    prior = prior_named("vamp", own)

    @jax.jit
    def draw(key):
        to_q = lambda x: own.posterior.distribution(None, kernel @ x)
        p = prior.distribution(prior.init(key), to_q)
        z = p.sample(key)
        return z, p.log_prob(z)

    z, log_p = draw(jax.random.key(0))
    assert z.shape == own.posterior.latent_shape
    assert np.isfinite(log_p)
    squares = posterior == "von_mises_fisher"
    total = np.sum(np.square(z) if squares else z, axis=-1)
    np.testing.assert_allclose(total, np.ones(total.shape), rtol=1e-6)


def test_a_prior_can_be_added(monkeypatch):
    monkeypatch.setitem(PRIORS, "two words", PRIORS["mixture"])
    assert set(prior_named("two words", setting()).init(jax.random.key(0))) == {
        "logits",
        "loc",
        "log_scale",
    }


# Transform


@pytest.mark.slow
@priors
def test_eager_and_vmap_agree(name):
    _, params, weights, zs = example(name)
    log_p, _ = scorer(name)(params, weights, zs)
    eager = built(name, params, weights).log_prob(zs[0])
    assert eager.shape == ()
    np.testing.assert_allclose(log_p[0], eager, rtol=1e-5)


# Failure


def test_an_unknown_prior_is_rejected():
    message = "prior must be one of standard, mixture, vamp, flow.* got 'normal'"
    with pytest.raises(ValueError, match=message):
        prior_named("normal", setting())


@pytest.mark.parametrize("name", ["mixture", "flow"])
@pytest.mark.parametrize(("posterior", "space"), NO_VECTORS.items())
def test_a_density_over_vectors_is_rejected_for_other_latents(name, posterior, space):
    message = rf"prior={name} needs Euclidean latents.*a {space}.*Use prior=standard or vamp"
    with pytest.raises(ValueError, match=message):
        prior_named(name, setting(posterior))


@priors
@pytest.mark.parametrize("num_components", [0, -3])
def test_less_than_one_component_is_rejected(name, num_components):
    message = f"num_components must be at least 1, got {num_components}"
    with pytest.raises(ValueError, match=message):
        prior_named(name, setting(num_components=num_components))


@pytest.mark.parametrize("shape", [(4, DATA), (NUM, DATA + 1), (NUM * DATA,)])
def test_pseudo_inputs_of_another_shape_are_rejected(shape):
    vae = mlp_vae(
        data_shape=(DATA,),
        latent_dim=DIM,
        hidden=(),
        prior="vamp",
        num_components=NUM,
        pseudo_inputs=np.zeros(shape, np.float32),
    )
    message = rf"pseudo_inputs must have shape \({NUM}, {DATA}\), got .*num_components examples"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(vae.init, jax.random.key(0))
