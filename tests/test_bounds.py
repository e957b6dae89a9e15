"""The ELBO and the importance-weighted bound, held against a model whose log p(x) is known."""

from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise, product
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from flax import nnx

from jaxvae import Bernoulli, FullCovarianceGaussian, Gaussian, elbo, iwae, kl
from jaxvae.bounds import posterior_samples
from jaxvae.testing import LinearGaussian

EPS = float(np.finfo(np.float32).eps)
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
NUM_KEYS = 2_000
CASES = {
    "1 from 1, diagonal": (1, 1, ()),
    "5 from 2, full": (5, 2, (5,)),
    "20 from 4, diagonal": (20, 4, ()),
}
SMALL, LARGE = "5 from 2, full", "20 from 4, diagonal"

cases = pytest.mark.parametrize("case", CASES)
precisions = pytest.mark.parametrize("precision", TOLERANCE)
bounds = pytest.mark.parametrize("bound", [elbo, iwae], ids=["elbo", "iwae"])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Foreign:
    """Another library's distribution behind an adapter: its KL has no closed form here."""

    inner: Any

    def sample(self, key):
        return self.inner.sample(key)

    def log_prob(self, value):
        return self.inner.log_prob(value)


def to_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


def in_float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def linear_gaussian(case):
    """A model and an x, in float64."""
    dim, latent_dim, noise_shape = CASES[case]
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(dim, latent_dim)) / np.sqrt(latent_dim)
    log_scale = rng.normal(-0.3, 0.3, size=noise_shape)
    return LinearGaussian(weight, rng.normal(size=dim), log_scale), rng.normal(size=dim)


def gaussian(case, loc, covariance):
    """The Gaussian of the case's kind with these moments, as far as its kind can have them."""
    if case.endswith("full"):
        return FullCovarianceGaussian(loc, np.linalg.cholesky(covariance))
    return Gaussian(loc, 0.5 * np.log(np.diag(covariance)))


def posterior_moments(model, x):
    """By W^T (W W^T + R)^-1, another route than the library's."""
    noise = np.diag(np.broadcast_to(np.exp(2 * model.log_scale), model.bias.shape))
    gain = model.weight.T @ np.linalg.inv(model.weight @ model.weight.T + noise)
    return gain @ (x - model.bias), np.eye(model.weight.shape[1]) - gain @ model.weight


def oracle(case):
    """A model, an x, and a q(z|x) that is wider than the posterior and off it, in float64."""
    model, x = linear_gaussian(case)
    loc, covariance = posterior_moments(model, x)
    shifted = loc + 0.3 * np.sqrt(np.diag(covariance))
    return model, gaussian(case, shifted, 1.3**2 * covariance), x


def functions(model, q):
    return {"encode": lambda x: q, "decode": model.decode, "prior": model.prior()}


@partial(jax.jit, static_argnames="num_samples")
def over_keys(model, q, x, keys, num_samples):
    """Latents and both bounds by the same draws of them, for each key; and log p(x). By lax.map,
    which compiles in a third of vmap's time."""

    def of_one(key):
        run = lambda bound: bound(key, x, **functions(model, q), num_samples=num_samples)
        return posterior_samples(key, q, num_samples)[0], run(elbo), run(iwae)

    return *jax.lax.map(of_one, keys), model.log_prob(x)


def run_over_keys(model, q, x, num_samples=4):
    """over_keys for NUM_KEYS keys, and log p(x); arrays of the precision in force."""
    keys = jax.random.split(jax.random.key(0), NUM_KEYS)
    model, q, x = to_jax((model, q, x))
    return jax.device_get(over_keys(model, q, x, keys, num_samples))


@cache
def drawn(case, precision="float32", num_samples=4):
    """z, elbo and iwae of the oracle by NUM_KEYS keys, and log p(x)."""
    with jax.enable_x64(precision == "float64"):
        return run_over_keys(*oracle(case), num_samples)


def means_and_errors(*draws):
    """Mean and standard error of each."""
    draws = in_float64(draws)
    return [(d.mean(), d.std() / np.sqrt(len(d))) for d in draws]


def log_mean_exp(log_weights):
    return scipy.special.logsumexp(log_weights, axis=-1) - np.log(log_weights.shape[-1])


# Golden


@pytest.mark.parametrize(
    ("case", "precision"),
    [*((case, "float32") for case in CASES), (SMALL, "float64"), (LARGE, "float64")],
)
def test_every_term_is_scipys_at_the_same_draws(case, precision):
    z, *results = drawn(case, precision)[:3]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(results)} == {precision}
    model, q, x = oracle(case)
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
    for result in results:
        close(result.log_weights, log_weights)
        close(result.log_likelihood, log_likelihood)
        close(result.kl, np.full(NUM_KEYS, rate))
        close(result.elbo, log_likelihood - rate)
    close(results[0].objective, log_likelihood - rate)
    close(results[1].objective, log_mean_exp(log_weights))


@precisions
def test_elbo_of_a_decoder_that_ignores_its_latent_is_exact(precision):
    """log N(x | b, R) - KL(q || p), whatever the key."""
    model, q, x = oracle(LARGE)
    with jax.enable_x64(precision == "float64"):
        _, result, _, _ = run_over_keys(model._replace(weight=0 * model.weight), q, x)
    log_p = scipy.stats.norm.logpdf(x, model.bias, np.exp(model.log_scale))
    rate = 0.5 * np.array([np.exp(2 * q.log_scale), q.loc**2, -np.ones(4), -2 * q.log_scale])
    terms = np.abs(log_p).sum() + np.abs(rate).sum()
    expected = np.full(NUM_KEYS, log_p.sum() - rate.sum())
    np.testing.assert_allclose(result.elbo, expected, rtol=0, atol=TOLERANCE[precision] * terms)


# Law


@cases
def test_terms_add_up(case):
    for result in drawn(case)[1:3]:
        rounding = EPS * (np.abs(result.log_likelihood) + result.kl)
        assert (np.abs(result.elbo - (result.log_likelihood - result.kl)) <= rounding).all()
        assert result.log_weights.shape == (NUM_KEYS, 4)
        if case.endswith("full"):
            assert result.kl_per_latent is None
        else:
            assert result.kl_per_latent.shape == (NUM_KEYS, CASES[case][1])
            np.testing.assert_allclose(result.kl_per_latent.sum(1), result.kl, rtol=4 * EPS)


@cases
def test_elbo_is_unbiased_and_below_log_prob(case):
    model, q, x = to_jax(oracle(case))
    _, result, _, log_prob = drawn(case)
    exact = jax.jit(LinearGaussian.elbo)(model, x, q)
    np.testing.assert_array_equal(result.objective, result.elbo)
    # log p(x) less this is the ELBO with a sampled KL, of the same expectation.
    for mean, error in means_and_errors(result.elbo, result.log_weights.mean(1)):
        assert abs(mean - exact) <= 4 * error
        assert mean <= log_prob + 4 * error
        assert log_prob - exact > 8 * error


@pytest.mark.parametrize("case", [SMALL, LARGE])
@precisions
def test_every_sample_of_the_true_posterior_weighs_log_prob(case, precision):
    """log p(x, z) - log p(z|x) = log p(x) for every z: no noise, no tolerance but rounding. A
    diagonal q is the posterior where the columns of W are orthogonal."""
    model, x = linear_gaussian(case)
    if case.endswith("diagonal"):
        columns, _ = np.linalg.qr(model.weight)
        model = model._replace(weight=columns * np.array([0.5, 1.0, 2.0, 3.0]))
    with jax.enable_x64(precision == "float64"):
        q = gaussian(case, *posterior_moments(model, x))
        z, of_elbo, of_iwae, log_prob = run_over_keys(model, q, x)
    # The terms of log p(x|z), log p(z) and log q(z|x): squares, log scales and constants.
    terms = 2 * abs(log_prob) + 2 * len(x) + np.max(np.square(z).sum(-1)) + 4 * z.shape[-1]
    close = partial(np.testing.assert_allclose, rtol=0, atol=TOLERANCE[precision] * terms)
    close(of_iwae.log_weights, np.full((NUM_KEYS, 4), log_prob))
    close(of_iwae.objective, np.full(NUM_KEYS, log_prob))
    ((mean, error),) = means_and_errors(of_elbo.elbo)
    assert abs(mean - log_prob) <= 4 * error


@cases
def test_weights_are_unbiased(case):
    """E p(x, z) / q(z|x) = p(x): a constant that some density lacks would show here."""
    _, _, result, log_prob = drawn(case)
    ((mean, error),) = means_and_errors(np.exp(result.log_weights - log_prob).mean(1))
    assert error < 0.05
    assert abs(mean - 1) <= 4 * error


@cases
def test_iwae_lies_between_the_elbo_and_log_prob(case):
    _, _, result, log_prob = drawn(case)
    objective, log_weights = in_float64((result.objective, result.log_weights))
    rounding = 4 * EPS * np.abs(log_weights).max()
    np.testing.assert_allclose(objective, log_mean_exp(log_weights), rtol=0, atol=rounding)
    # Jensen, draw by draw: the mean, the log-mean-exp, the largest.
    assert (objective >= log_weights.mean(1) - rounding).all()
    assert (objective <= log_weights.max(1) + rounding).all()
    # Burda et al.'s proof, draw by draw: K samples against the mean over those less one of them.
    fewer = np.mean([log_mean_exp(np.delete(log_weights, k, 1)) for k in range(4)], axis=0)
    assert (objective >= fewer - rounding).all()
    ((mean, error),) = means_and_errors(objective)
    assert mean <= log_prob + 4 * error


def test_iwae_is_never_looser_with_more_samples():
    values = [drawn(LARGE, num_samples=k)[2].objective for k in (1, 4, 64)]
    log_prob, results = drawn(LARGE)[3], means_and_errors(*values)
    assert all(mean <= log_prob + 4 * error for mean, error in results)
    for (fewer, error_fewer), (more, error_more) in pairwise(results):
        assert more - fewer >= -4 * np.hypot(error_fewer, error_more)
    assert results[-1][0] - results[0][0] > 8 * results[0][1]


def test_iwae_of_one_sample_is_the_elbo_with_a_sampled_kl():
    _, of_elbo, of_iwae, _ = drawn(LARGE, num_samples=1)
    np.testing.assert_array_equal(of_iwae.objective, of_iwae.log_weights[:, 0])
    chex.assert_trees_all_equal(of_iwae._replace(objective=of_elbo.objective), of_elbo)


def test_a_published_value_of_iwae_is_no_bound():
    """pythae returns sum_k w_k log w_k for normalized w: the right gradient, and a value that lies
    log K less the entropy of w above the bound."""
    _, _, result, log_prob = drawn(LARGE, num_samples=64)
    log_weights = in_float64(result.log_weights)
    weights = scipy.special.softmax(log_weights, axis=1)
    published = np.sum(weights * log_weights, axis=1)
    (wrong, error_wrong), (right, error) = means_and_errors(published, result.objective)
    assert wrong > log_prob + 4 * error_wrong
    assert right <= log_prob + 4 * error
    excess = np.log(64) - scipy.stats.entropy(weights, axis=1)
    np.testing.assert_allclose(published - excess, result.objective, rtol=1e-5)


def test_a_published_iwae_gets_worse_with_more_samples():
    """PyTorch-VAE weighs samples by the softmax of their losses, with one KL for all of them, so
    that the worst weigh most."""
    model, _, x = oracle(LARGE)
    results = []
    for num_samples in (4, 64):
        z, result, _, _ = drawn(LARGE, num_samples=num_samples)
        center = z @ model.weight.T + model.bias
        distortion = -scipy.stats.norm.logpdf(x, center, np.exp(model.log_scale)).sum(-1)
        losses = distortion + result.kl[:, None]
        published = -np.sum(scipy.special.softmax(losses, axis=1) * losses, axis=1)
        results += means_and_errors(published)
    (few, error_few), (many, error_many) = results
    assert many - few < -8 * np.hypot(error_few, error_many)


def test_a_mean_over_pixels_or_latents_is_no_bound():
    """As several peers have it: above log p(x), and so without meaning for it."""
    _, result, _, log_prob = drawn(LARGE)
    over_pixels = result.log_likelihood / 20 - result.kl
    over_latents = result.log_likelihood - result.kl / 4
    for mean, error in means_and_errors(over_pixels, over_latents):
        assert mean > log_prob + 4 * error
    ((mean, error),) = means_and_errors(result.elbo)
    assert mean <= log_prob + 4 * error


def test_beta_alters_the_objective_only():
    model, q, x = to_jax(oracle(SMALL))
    run = jax.jit(lambda beta: elbo(jax.random.key(1), x, **functions(model, q), beta=beta))
    plain = run(1.0)
    assert plain.objective == plain.elbo
    assert plain.kl > 0.1
    for beta in (0.0, 0.5, 4.0):
        result = run(beta)
        chex.assert_trees_all_equal(result._replace(objective=plain.objective), plain)
        expected = plain.log_likelihood - beta * plain.kl
        np.testing.assert_allclose(result.objective, expected, rtol=4 * EPS)


def test_kl_is_estimated_from_the_same_draws_where_it_has_no_formula():
    model, q, x = to_jax(oracle(SMALL))
    arguments = functions(model, q) | {"prior": Foreign(model.prior()), "num_samples": 4}
    keys = jax.random.split(jax.random.key(0), NUM_KEYS)
    over_keys = jax.jit(partial(jax.lax.map, lambda key: elbo(key, x, **arguments)))
    result = jax.device_get(over_keys(keys))
    with_formula = drawn(SMALL)[1]
    rounding = {"rtol": 0, "atol": 1e-6 * 2 * np.abs(result.log_likelihood).max()}
    np.testing.assert_allclose(result.log_weights, with_formula.log_weights, **rounding)
    np.testing.assert_allclose(result.log_likelihood, with_formula.log_likelihood, **rounding)
    np.testing.assert_allclose(result.elbo, result.log_weights.mean(1), **rounding)
    np.testing.assert_allclose(result.elbo, result.log_likelihood - result.kl, **rounding)
    assert result.kl_per_latent is None
    ((mean, error),) = means_and_errors(result.kl)
    assert error > 0.0
    assert abs(mean - kl(q, model.prior())) <= 4 * error


def test_a_joint_draw_and_density_is_preferred():
    """A flow knows the density of its own draws only."""

    class OnlyJointly:
        def sample_and_log_prob(self, key):
            z = jax.random.normal(key, (2,))
            return z, Gaussian.standard(2).log_prob(z) + 100.0

    decode, prior = lambda z: Gaussian(jnp.zeros(2), jnp.array(0.0)), Gaussian.standard(2)
    arguments = {"encode": lambda x: OnlyJointly(), "decode": decode, "prior": prior}
    result = jax.jit(partial(iwae, **arguments, num_samples=2))(jax.random.key(0), jnp.zeros(2))
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
            num_samples=3,
        )
        return run(elbo), run(iwae)

    for s in (0.01, 3.0, 1000.0):
        # Log densities of 20 pixels and 4 latents, with terms that add up to less than 100.
        chex.assert_trees_all_close(rescaled(s), rescaled(1.0), rtol=0, atol=1e-6 * 100)


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

DATA_DIM, HIDDEN, LATENT_DIM, BATCH = 6, 4, 2, 8


def weights():
    rng = np.random.default_rng(5)
    normal = partial(rng.normal, 0.0, 0.5)
    dense = lambda m, n: {"bias": normal(size=n), "kernel": normal(size=(m, n))}
    encoder = {"hidden": dense(DATA_DIM, HIDDEN), "loc": dense(HIDDEN, LATENT_DIM)}
    encoder["log_scale"] = dense(HIDDEN, LATENT_DIM)
    return to_jax({"encoder": encoder, "decoder": {"logits": dense(LATENT_DIM, DATA_DIM)}})


class LinenEncoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = jnp.tanh(nn.Dense(HIDDEN, name="hidden")(x))
        loc, log_scale = (nn.Dense(LATENT_DIM, name=name)(h) for name in ("loc", "log_scale"))
        return Gaussian(loc, log_scale)


class LinenDecoder(nn.Module):
    @nn.compact
    def __call__(self, z):
        return Bernoulli(nn.Dense(DATA_DIM, name="logits")(z))


class NnxEncoder(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(DATA_DIM, HIDDEN, rngs=rngs)
        self.loc = nnx.Linear(HIDDEN, LATENT_DIM, rngs=rngs)
        self.log_scale = nnx.Linear(HIDDEN, LATENT_DIM, rngs=rngs)

    def __call__(self, x):
        h = jnp.tanh(self.hidden(x))
        return Gaussian(self.loc(h), self.log_scale(h))


class NnxDecoder(nnx.Module):
    def __init__(self, rngs):
        self.logits = nnx.Linear(LATENT_DIM, DATA_DIM, rngs=rngs)

    def __call__(self, z):
        return Bernoulli(self.logits(z))


def linen_networks():
    params = {side: {"params": tree} for side, tree in weights().items()}
    encode = lambda params, x: LinenEncoder().apply(params["encoder"], x)
    decode = lambda params, z: LinenDecoder().apply(params["decoder"], z)
    return params, encode, decode


def nnx_networks():
    graphs, params = {}, {}
    for side, make in (("encoder", NnxEncoder), ("decoder", NnxDecoder)):
        graphs[side], params[side] = nnx.split(make(nnx.Rngs(0)))
        nnx.replace_by_pure_dict(params[side], weights()[side])
    encode = lambda params, x: nnx.merge(graphs["encoder"], params["encoder"])(x)
    decode = lambda params, z: nnx.merge(graphs["decoder"], params["decoder"])(z)
    return params, encode, decode


def plain_networks():
    dense = lambda layer, x: x @ layer["kernel"] + layer["bias"]

    def encode(params, x):
        layers = params["encoder"]
        h = jnp.tanh(dense(layers["hidden"], x))
        return Gaussian(dense(layers["loc"], h), dense(layers["log_scale"], h))

    decode = lambda params, z: Bernoulli(dense(params["decoder"]["logits"], z))
    return weights(), encode, decode


NETWORKS = {"plain": plain_networks, "linen": linen_networks, "nnx": nnx_networks}


def rows():
    x = np.random.default_rng(6).integers(2, size=(BATCH, DATA_DIM))
    return jax.random.split(jax.random.key(7), BATCH), jnp.asarray(x, jnp.float32)


def with_networks(system, *bounds, num_samples=1):
    """Parameters, and (params, key, x) -> the bounds of one x."""
    params, encode, decode = NETWORKS[system]()

    def of_one(params, key, x):
        sides = {"encode": partial(encode, params), "decode": partial(decode, params)}
        arguments = sides | {"prior": Gaussian.standard(LATENT_DIM), "num_samples": num_samples}
        return [bound(key, x, **arguments) for bound in bounds]

    return params, of_one


@cache
def driven(system):
    """What each transform makes of the ELBO of these networks."""
    params, of_one = with_networks(system, elbo)
    keys, x = rows()

    def loss(params):
        (result,) = jax.vmap(of_one, in_axes=(None, 0, 0))(params, keys, x)
        return -result.objective.mean(), result

    gradients, vmapped = jax.jit(jax.grad(loss, has_aux=True))(params)
    return jax.device_get({
        "jit": jax.jit(of_one)(params, keys[0], x[0]),
        "vmap": vmapped,
        "grad": jax.tree.leaves(gradients),
        "pmap": jax.pmap(of_one, in_axes=(None, 0, 0))(params, keys, x),
    })  # fmt: skip


@pytest.mark.parametrize("transform", ["jit", "vmap", "grad", "pmap"])
@pytest.mark.parametrize("system", ["linen", "nnx"])
def test_flax_networks_give_the_numbers_of_plain_functions(system, transform):
    expected = driven("plain")[transform]
    assert len(jax.tree.leaves(expected)) in (6, 8)
    chex.assert_trees_all_equal(driven(system)[transform], expected)


def test_eager_jit_vmap_and_pmap_agree():
    params, of_one = with_networks("plain", elbo, iwae, num_samples=3)
    keys, x = rows()
    over_rows = lambda fn: jax.tree.map(
        lambda *leaves: np.stack(leaves),
        *[fn(params, key, row) for key, row in zip(keys, x, strict=True)],
    )
    eager = over_rows(of_one)
    chex.clear_trace_counter()
    for result in (
        over_rows(jax.jit(chex.assert_max_traces(of_one, 1))),
        jax.device_get(jax.jit(jax.vmap(of_one, in_axes=(None, 0, 0)))(params, keys, x)),
        jax.device_get(jax.pmap(of_one, in_axes=(None, 0, 0))(params, keys, x)),
    ):
        # Terms of both signs that add up to less than 100.
        chex.assert_trees_all_close(result, eager, rtol=0, atol=1e-6 * 100)


def test_gradients_are_finite_differences():
    """Central differences at h err by h^2 f''' / 6 + eps f / h: 1e-9 of f at h = 1e-5."""
    rng, h, (model, q, x) = np.random.default_rng(8), 1e-5, oracle(SMALL)
    towards = jax.tree.map(lambda leaf: rng.normal(size=np.shape(leaf)), (model, q))

    def objectives(t):
        moved = jax.tree.map(lambda a, b: a + t * b, (model, q), towards)
        arguments, key = functions(*moved) | {"num_samples": 3}, jax.random.key(9)
        by_draws = arguments | {"prior": Foreign(arguments["prior"])}
        weighted = elbo(key, x, **arguments, beta=0.3)
        runs = [elbo(key, x, **arguments), elbo(key, x, **by_draws), iwae(key, x, **arguments)]
        return jnp.stack([run.objective for run in [weighted, *runs]])

    with jax.enable_x64(True):
        both = jax.jit(lambda t: (objectives(t), jax.jacrev(objectives)(t)))
        (values, slopes), (above, _), (below, _) = jax.device_get([both(t) for t in (0.0, h, -h)])
    differences = (above - below) / (2 * h)
    assert (np.abs(slopes - differences) <= 1e-7 * (np.abs(values) + np.abs(slopes))).all()
    assert np.abs(np.diff(slopes)).min() > 1e-3


def test_large_values_give_no_nan():
    """Logits to 1e4, means of 100 and scales of exp(+-20), in encoder and decoder."""

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def loss(params, x):
        loc, log_scale, logits = params
        arguments = {"encode": lambda _: Gaussian(loc, log_scale), "prior": Gaussian.standard(2)}
        pixels = lambda z: Bernoulli(logits * jnp.tanh(z))
        reals = lambda z: Gaussian(z, -log_scale)
        runs = [
            bound(jax.random.key(10), value, decode=decode, **arguments, num_samples=2)
            for bound, (decode, value) in product((elbo, iwae), [(pixels, x), (reals, 100 * x)])
        ]
        return sum(run.objective for run in runs), runs

    for log_scale in (-20.0, 20.0):
        params = (jnp.array([100.0, -100.0]), jnp.full(2, log_scale), jnp.array([1e4, -1e4]))
        chex.assert_tree_all_finite(loss(params, jnp.array([0.0, 1.0])))


@pytest.mark.parametrize("system", NETWORKS)
def test_networks_in_bfloat16_give_bounds_in_float32(system):
    params, of_one = with_networks(system, elbo, iwae, num_samples=3)
    keys, x = rows()
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    result = jax.eval_shape(of_one, low, keys[0], x[0].astype(jnp.bfloat16))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(result)} == {"float32"}


# Failure


@bounds
@pytest.mark.parametrize("num_samples", [0, -1])
def test_less_than_one_sample_is_refused(bound, num_samples):
    model, q, x = to_jax(oracle(SMALL))
    with pytest.raises(ValueError, match=rf"num_samples must be at least 1, got {num_samples}\."):
        bound(jax.random.key(0), x, **functions(model, q), num_samples=num_samples)


class Unsummed:
    """What numpyro's Normal is without .to_event(1)."""

    def sample(self, key):
        return jax.random.normal(key, (2,))

    def log_prob(self, value):
        return -0.5 * jnp.square(value)


@bounds
@pytest.mark.parametrize(
    ("side", "named"),
    [
        ("decode", r"decode\(z\)\.log_prob\(x\)"),
        ("encode", r"encode\(x\)\.log_prob\(z\)"),
        ("prior", r"prior\.log_prob\(z\)"),
    ],
)
def test_an_unsummed_log_prob_is_refused(bound, side, named):
    good = Gaussian.standard(2)
    arguments = {"encode": lambda x: good, "decode": lambda z: good, "prior": good}
    arguments[side] = Unsummed() if side == "prior" else lambda _: Unsummed()
    with pytest.raises(
        ValueError,
        match=named + r" must be a scalar, summed over the event; for one z it has shape \(2,\)\. "
        r"Sum it \(.*to_event.*\), and pass one example: jax\.vmap adds the batch\.",
    ):
        bound(jax.random.key(0), jnp.zeros(2), **arguments, num_samples=3)


@bounds
def test_a_batch_or_a_prior_of_another_size_is_refused(bound):
    model, q, x = to_jax(oracle(SMALL))
    run = partial(bound, jax.random.key(0), num_samples=1)
    with pytest.raises(ValueError, match=r"value has shape \(8, 5\), this .* event shape \(5,\)"):
        jax.eval_shape(partial(run, **functions(model, q)), jnp.zeros((8, 5)))
    arguments = functions(model, q) | {"prior": Gaussian.standard(3)}
    with pytest.raises(ValueError, match=r"value has shape \(2,\), this .* event shape \(3,\)"):
        jax.eval_shape(partial(run, **arguments), x)
