"""Every bound and estimator over a tuple of latents, on the two-layer linear Gaussian model."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import Gaussian, Hierarchy, elbo, iwae, log_likelihood
from jaxvae.bounds import ciwae, miwae, piwae, renyi, tvo
from tests.oracles import two_layer_model

NUM_KEYS = 40_000
ELBOS = {
    "reparameterized": partial(elbo, num_samples=2),
    "sampled KL": partial(elbo, num_samples=2, kl="sampled"),
    "stl": partial(elbo, num_samples=2, estimator="stl"),
    "score": partial(elbo, num_samples=2, estimator="score"),
    "vimco": partial(elbo, num_samples=2, estimator="vimco"),
}
BOUNDS = {
    "iwae": (partial(iwae, num_samples=2), ("dreg", "score", "vimco")),
    "miwae": (partial(miwae, num_samples=4, num_groups=2), ("dreg", "score", "vimco")),
    "piwae": (partial(piwae, num_samples=4, num_groups=2), ("dreg",)),
    "ciwae": (partial(ciwae, num_samples=2), ("dreg", "score", "vimco")),
    "renyi": (partial(renyi, num_samples=2, alpha=0.5), ("dreg", "score", "vimco")),
    "tvo": (partial(tvo, num_samples=2, num_intervals=2), ("dreg", "score", "vimco")),
}


def parts(point):
    model, chain = point
    return {
        "encode": lambda x: chain.hierarchy(),
        "decode": model.decode,
        "prior": model.prior(),
    }


WEIGHTED = {
    f"{name}, {estimator}": partial(bound, estimator=estimator)
    for name, (bound, others) in BOUNDS.items()
    for estimator in ("reparameterized", *others)
}


@cache
def slopes_by_key(weighted):
    """{name: (value [N], gradient with respect to model and q [N, ...])}, in one program."""
    model, chain, x = two_layer_model()
    every = WEIGHTED if weighted else ELBOS

    def of_key(key):
        of = lambda bound: lambda point: bound(key, x, **parts(point)).objective
        return {
            name: jax.value_and_grad(of(bound))((model, chain)) for name, bound in every.items()
        }

    keys = jax.random.split(jax.random.key(0), NUM_KEYS)
    return jax.device_get(jax.jit(partial(jax.lax.map, of_key, batch_size=4000))(keys))


def largest_score(draws, expected):
    """Largest |mean - expected| in standard errors, over all entries of a tree."""

    def of_leaf(draws, expected):
        draws = np.asarray(draws, np.float64)
        error = draws.std(0, ddof=1) / np.sqrt(len(draws))
        # Entries that are the same for every key may differ by rounding only.
        return np.max(np.abs(draws.mean(0) - expected) / np.maximum(error, 1e-5))

    return max(jax.tree.leaves(jax.tree.map(of_leaf, draws, expected)))


@cache
def exact():
    """Value and gradient of the exact ELBO, in float64."""
    with jax.enable_x64(True):
        model, chain, x = two_layer_model()
        of = jax.value_and_grad(lambda point: point[0].elbo(x, point[1]))
        return jax.device_get(jax.jit(of)((model, chain)))


@pytest.mark.parametrize("name", ELBOS)
def test_elbo_has_the_exact_value_and_gradient(name):
    """41 numbers within 4.5 standard errors: all five pass by chance in 998 of 1,000 seeds."""
    assert largest_score(slopes_by_key(weighted=False)[name], exact()) < 4.5


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDS)
def test_every_estimator_has_the_gradient_of_the_reparameterized(name):
    """On the same draws: the difference is compared with its own standard error."""
    found = slopes_by_key(weighted=True)
    value, gradient = found[f"{name}, reparameterized"]
    for estimator in BOUNDS[name][1]:
        other_value, other = found[f"{name}, {estimator}"]
        np.testing.assert_allclose(other_value, value, rtol=1e-5, atol=1e-5)
        difference = jax.tree.map(np.subtract, other, gradient)
        zero = jax.tree.map(lambda leaf: np.zeros(leaf.shape[1:]), gradient)
        assert largest_score(difference, zero) < 4.5


@pytest.mark.slow
def test_stl_and_dreg_vary_less_than_reparameterized():
    found = slopes_by_key(weighted=True) | slopes_by_key(weighted=False)
    spread = lambda name: np.mean([leaf.var(0).sum() for leaf in found[name][1][1]])
    assert spread("stl") < spread("sampled KL")
    assert spread("iwae, dreg") < spread("iwae, reparameterized")
    assert spread("reparameterized") < spread("sampled KL")  # the KL given the draws


@pytest.mark.parametrize("top_down", [True, False])
def test_every_bound_at_the_posterior_is_log_prob(top_down):
    """In both orders; the weights are equal, so the bounds are, to rounding."""
    model, _, x = two_layer_model()
    given = {"encode": partial(model.posterior, top_down=top_down)}
    given |= {"decode": model.decode, "prior": model.prior()}
    every = {"elbo": (partial(elbo, kl="sampled"), ())} | BOUNDS

    @jax.jit
    def values(key):
        bounds = {name: bound(key, x, **given).objective for name, (bound, _) in every.items()}
        return bounds | {"log p(x)": log_likelihood(key, x, num_samples=20, **given)}

    for name, value in values(jax.random.key(0)).items():
        np.testing.assert_allclose(value, model.log_prob(x), rtol=1e-4, err_msg=name)


def test_log_likelihood_of_many_samples_is_log_prob():
    model, chain, x = two_layer_model()
    given = parts((model, chain))
    estimate = jax.jit(lambda key: log_likelihood(key, x, num_samples=500, **given))
    found = np.exp(np.asarray(jax.vmap(estimate)(jax.random.split(jax.random.key(0), 400)), float))
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean() - np.exp(float(model.log_prob(x)))) < 4 * error


def test_beta_and_free_bits_of_each_level():
    model, chain, x = two_layer_model()
    of = lambda **options: elbo(jax.random.key(0), x, **parts((model, chain)), **options)
    plain = of()
    levels = np.array([float(level.sum()) for level in plain.kl_per_latent])
    assert float(plain.kl) == pytest.approx(levels.sum(), rel=1e-5)
    objective = lambda penalty: float(plain.reconstruction) - penalty
    weighted = of(beta=jnp.array([0.5, 2.0])).objective
    assert float(weighted) == pytest.approx(objective(levels @ [0.5, 2.0]), rel=1e-5)
    free = np.array([2 * levels[0], 0.5 * levels[1]])
    clamped = of(free_bits=jnp.asarray(free, jnp.float32)).objective
    assert float(clamped) == pytest.approx(objective(2 * levels[0] + levels[1]), rel=1e-5)
    assert float(of(free_bits=0.0).objective) == pytest.approx(float(plain.objective), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": jnp.ones(3)}, r"beta must be a number, or \[L\] .* got shape \(3,\)"),
        ({"beta": jnp.ones(2), "estimator": "stl"}, "beta must be a number"),
        ({"free_bits": 0.1, "estimator": "score"}, "free_bits needs a KL in closed form"),
        ({"beta": jnp.ones(2), "capacity": 1.0}, "capacity is for the whole KL"),
        ({"kl": "closed_form", "estimator": "score"}, "has no closed form. Use kl='sampled'"),
    ],
)
def test_options_of_levels_without_a_closed_form_are_rejected(options, message):
    model, chain, x = two_layer_model()
    with pytest.raises(ValueError, match=message):
        elbo(jax.random.key(0), x, **parts((model, chain)), **options)


def test_free_bits_need_hierarchies_of_the_same_order():
    model, _, x = two_layer_model()
    given = {"encode": partial(model.posterior, top_down=False)}
    given |= {"decode": model.decode, "prior": model.prior()}
    with pytest.raises(ValueError, match="free_bits needs a KL in closed form"):
        elbo(jax.random.key(0), x, free_bits=0.1, **given)
    assert elbo(jax.random.key(0), x, **given).kl_per_latent is None


def _first(params, carry):
    return Gaussian(params["loc"], jnp.zeros(2)), lambda z: z


def test_one_level_is_the_plain_model_on_the_same_draws():
    """But for the key of the level, which is split off; the KL is the same number."""
    q, prior = Gaussian(jnp.array([0.5, -1.0]), jnp.zeros(2)), Gaussian.standard(2)
    decode = lambda z: Gaussian(jnp.tile(z, 2), jnp.array(0.0))
    x, key = jnp.ones(4), jax.random.key(0)
    chain = lambda loc: Hierarchy({"loc": loc}, (_first,))
    level = elbo(
        key, x, encode=lambda x: chain(q.loc), decode=lambda z: decode(z[0]),
        prior=chain(jnp.zeros(2)), num_samples=3,
    )  # fmt: skip
    plain = elbo(key, x, encode=lambda x: q, decode=decode, prior=prior, num_samples=3)
    np.testing.assert_allclose(level.kl, plain.kl, rtol=1e-6)
    np.testing.assert_allclose(level.kl_per_latent[0], plain.kl_per_latent, rtol=1e-6)
    weights = [decode(z).log_prob(x) + prior.log_prob(z) - q.log_prob(z) for z in level.samples[0]]
    np.testing.assert_allclose(level.log_weights, np.stack(weights), rtol=1e-5)
    assert level.samples[0].shape == plain.samples.shape
