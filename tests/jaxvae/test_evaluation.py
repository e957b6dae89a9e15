"""Scores of a data set: exact where log p(x) is known, and independent of batches and devices."""

import math
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import jaxvae
from jaxvae import FullCovarianceGaussian, Gaussian
from jaxvae.evaluation import (
    Estimate,
    bits_per_dimension,
    count_active_units,
    estimate,
    log_likelihood,
    make_score,
    map_dataset,
    scored_x,
)
from jaxvae.models.vae import VAE
from jaxvae.testing import LinearGaussian
from jaxvae.training.devices import make_map, make_mesh, replicate
from jaxvae.training.step import active_units

DIM, LATENT_DIM, NUM = 5, 2, 13
KEYS = jax.random.split(jax.random.key(3), 50)


def drawn_model():
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(DIM, LATENT_DIM)), rng.normal(size=DIM), rng.normal(size=DIM) / 3
    return LinearGaussian(*[jnp.asarray(array, jnp.float32) for array in arrays])


MODEL = drawn_model()
XS = np.random.default_rng(1).normal(size=(NUM, DIM)).astype(np.float32)


def guess(x):
    """A q(z|x) that is off the posterior and wider, so that its weights have a variance."""
    posterior = MODEL.posterior(x)
    tril = posterior.scale_tril
    return FullCovarianceGaussian(posterior.loc + 0.3 * tril.sum(1), 1.3 * tril)


def diagonal_guess(x):
    q = guess(x)
    return Gaussian(q.loc, jnp.log(jnp.diagonal(q.scale_tril)))


def vae(encode):
    """The model as a VAE; its parameters shift the encoder."""
    return VAE(
        init=lambda key: {"shift": jnp.zeros(())},
        encode=lambda params, x: encode(x + params["shift"]),
        decode=lambda params, z: MODEL.decode(z),
        prior=lambda params: MODEL.prior(),
    )


@partial(jax.jit, static_argnames=("encode", "num_samples", "sample_chunk_size"))
def estimates(keys, x, encode, num_samples, sample_chunk_size=10):
    """One estimate of log p(x) for each key."""
    parts = {"encode": encode, "decode": MODEL.decode, "prior": MODEL.prior()}
    sizes = {"num_samples": num_samples, "sample_chunk_size": sample_chunk_size}
    return jax.vmap(lambda key: log_likelihood(key, x, **parts, **sizes))(keys)


@cache
def log_weights(num_samples):
    """log p(x, z_k) / q(z_k|x) of XS[0] in float64, at the draws of fold_in(KEYS[0], k)."""
    q = guess(XS[0])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEYS[0], jnp.arange(num_samples))
    z = np.asarray(jax.jit(jax.vmap(q.sample))(keys), np.float64)
    weight, bias, log_scale, loc, tril = (
        np.asarray(a, np.float64) for a in (*MODEL, q.loc, q.scale_tril)
    )
    log_q = scipy.stats.multivariate_normal.logpdf(z, loc, tril @ tril.T)
    log_p = scipy.stats.norm.logpdf(np.float64(XS[0]), z @ weight.T + bias, np.exp(log_scale))
    return log_p.sum(1) + scipy.stats.norm.logpdf(z).sum(1) - log_q


# Golden


@pytest.mark.parametrize(("num_samples", "sample_chunk_size"), [(23, 10), (2_000, 50)])
def test_log_likelihood_is_scipys_at_the_same_draws(num_samples, sample_chunk_size):
    """The tolerance is 1e-5, or 80 eps of float32, for terms of order ten."""
    keys = KEYS if num_samples == 23 else KEYS[:1]
    actual = estimates(keys, XS[0], guess, num_samples, sample_chunk_size)
    assert (actual.shape, actual.dtype) == ((len(keys),), "float32")
    expected = scipy.special.logsumexp(log_weights(num_samples)) - np.log(num_samples)
    np.testing.assert_allclose(actual[0], expected, rtol=0, atol=1e-4)


def test_estimate_is_numpys():
    """This includes float32 values whose mean is much larger than their spread."""
    values = (1e4 + np.random.default_rng(0).normal(size=1_000)).astype(np.float32)
    result = estimate(values)
    exact = values.astype(np.float64)
    np.testing.assert_allclose(result.value, exact.mean(), rtol=1e-12)
    np.testing.assert_allclose(result.standard_error, scipy.stats.sem(exact), rtol=1e-9)
    assert [type(number) for number in result] == [float, float]


def test_one_example_has_no_standard_error():
    value, standard_error = estimate(np.array([3.0]))
    assert value == 3.0
    assert math.isnan(standard_error)


def test_bits_per_dimension_of_a_uniform_density_are_eight():
    """Over 8-bit grey levels: density 1 on [0, 1]^D once scaled, 256^-D in their own unit."""
    scaled = bits_per_dimension(Estimate(0.0, 0.0), 784, offset_bits=8.0)
    assert scaled.value == 8.0
    unscaled = bits_per_dimension(Estimate(-784 * math.log(256), 0.0), 784)
    np.testing.assert_allclose(unscaled.value, 8.0, rtol=1e-12)


def test_bits_per_dimension_of_a_known_number():
    """A published MNIST bound of -86.6 nats, here with an error of 0.1, over 784 pixels."""
    result = bits_per_dimension(Estimate(-86.6, 0.1), 784)
    np.testing.assert_allclose(result, (86.6 / 784 / 0.6931471805599453, 0.000184016), rtol=1e-5)


def test_active_units_are_those_of_numpy():
    """The float32 means are far from zero, so that their squares would lose the variance."""
    deviations = np.array([0.0, 0.05, 0.099, 0.101, 0.5])
    noise = np.random.default_rng(0).normal(size=(5_000, 5))
    noise = (noise - noise.mean(0)) / noise.std(0)
    means = (100 + deviations * noise).astype(np.float32)
    assert count_active_units(means) == 2
    assert count_active_units(means[:1]) == 0


# Law


@pytest.mark.parametrize(("num_samples", "sample_chunk_size"), [(7, 10), (30, 7)])
def test_draws_of_the_true_posterior_give_log_prob_exactly(num_samples, sample_chunk_size):
    """Every weight is p(x), so that the mean of any number of them is."""
    keys = jax.random.split(jax.random.key(1), 20)
    actual = estimates(keys, XS[0], MODEL.posterior, num_samples, sample_chunk_size)
    np.testing.assert_allclose(actual, [MODEL.log_prob(XS[0])] * 20, rtol=0, atol=1e-4)


def test_many_draws_come_close_to_log_prob():
    """Within 4 standard errors by the delta method: the relative error of the mean weight."""
    weights = np.exp(log_weights(2_000) - MODEL.log_prob(XS[0]))
    standard_error = weights.std() / weights.mean() / np.sqrt(2_000)
    assert standard_error < 0.03
    actual = estimates(KEYS[:1], XS[0], guess, 2_000, 50)
    assert abs(actual[0] - MODEL.log_prob(XS[0])) < 4 * standard_error


def test_log_likelihood_is_a_lower_bound_and_unbiased_before_the_logarithm():
    keys, log_prob = jax.random.split(jax.random.key(2), 2_000), float(MODEL.log_prob(XS[0]))
    means = []
    for num_samples in (1, 10):
        gaps = np.asarray(estimates(keys, XS[0], guess, num_samples), np.float64) - log_prob
        standard_error = gaps.std() / np.sqrt(len(gaps))
        assert gaps.mean() < -4 * standard_error
        ratios = np.exp(gaps)
        assert abs(ratios.mean() - 1) < 4 * ratios.std() / np.sqrt(len(ratios))
        means.append(gaps.mean())
    assert means == sorted(means)


def test_the_chunk_size_changes_nothing():
    """Equal to 8 eps; the size need not divide the number of draws, and may be larger."""
    one_by_one, some, all_at_once = (
        estimates(KEYS, XS[0], guess, 23, sample_chunk_size) for sample_chunk_size in (1, 10, 100)
    )
    np.testing.assert_allclose(some, one_by_one, rtol=1e-6)
    np.testing.assert_allclose(all_at_once, one_by_one, rtol=1e-6)


def test_one_program_serves_every_number_of_samples():
    run = lambda count: log_likelihood(
        jax.random.key(4), XS[0], encode=guess, decode=MODEL.decode,
        prior=MODEL.prior(), num_samples=count,
    )  # fmt: skip
    compiled, known = jax.jit(run), jax.jit(lambda count: run(count), static_argnums=0)
    for num_samples in (1, 9, 10, 25):
        expected = known(num_samples)
        np.testing.assert_allclose(compiled(jnp.int32(num_samples)), expected, rtol=1e-5)
    assert compiled._cache_size() == 1


def test_a_known_number_of_samples_has_a_reverse_mode_gradient():
    run = lambda x: log_likelihood(
        jax.random.key(4), x, encode=guess, decode=MODEL.decode,
        prior=MODEL.prior(), num_samples=25,
    )  # fmt: skip
    assert np.isfinite(jax.jit(jax.grad(run))(XS[0])).all()


def test_scores_are_the_bounds_with_a_key_of_their_own():
    """The example's key is split into one for `prepare`, one for the ELBO, one for the draws."""
    key, params = jax.random.key(4), {"shift": jnp.float32(0.1)}
    prepare = lambda key, x: x + jax.random.normal(key, x.shape)
    score = jax.jit(make_score(vae(diagonal_guess), prepare=prepare, num_samples=7))
    scores = score(params, key, XS[0])

    @jax.jit
    def expected(key, stored):
        key_data, key_elbo, key_samples = jax.random.split(key, 3)
        x = prepare(key_data, stored)
        q = diagonal_guess(x + 0.1)
        parts = {"encode": lambda _: q, "decode": MODEL.decode, "prior": MODEL.prior()}
        many = log_likelihood(key_samples, x, **parts, num_samples=7)
        return jaxvae.elbo(key_elbo, x, **parts), many, q.mean()

    bound, many, mean = expected(key, XS[0])
    for name in ("elbo", "reconstruction", "kl", "kl_per_latent"):
        np.testing.assert_allclose(getattr(scores, name), getattr(bound, name), rtol=1e-5)
    np.testing.assert_allclose(scores.posterior_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(scores.log_likelihood, many, rtol=1e-5)
    rounding = 1e-6 * (abs(scores.reconstruction) + scores.kl)
    assert abs(scores.elbo - (scores.reconstruction - scores.kl)) <= rounding


def test_scores_are_none_if_not_requested_or_not_a_sum_over_latents():
    score = make_score(vae(guess))
    scores = jax.eval_shape(score, {"shift": jnp.zeros(())}, jax.random.key(0), XS[0])
    assert scores.log_likelihood is None
    assert scores.kl_per_latent is None
    assert scores.elbo.shape == ()
    split = jax.eval_shape(
        make_score(vae(diagonal_guess)), {"shift": jnp.zeros(())}, jax.random.key(0), XS[0]
    )
    assert split.kl_per_latent.shape == split.posterior_mean.shape == (LATENT_DIM,)


def test_scaling_the_data_changes_no_bits_per_dimension():
    """Dividing data in [0, 256) by 256 raises the density; offset_bits corrects for that."""
    in_own_unit = np.random.default_rng(2).normal(100.0, 20.0, size=(50, 3))
    densities = [
        scipy.stats.norm.logpdf(in_own_unit, 90.0, 30.0).sum(1),
        scipy.stats.norm.logpdf(in_own_unit / 256, 90.0 / 256, 30.0 / 256).sum(1),
    ]
    one, other = (
        bits_per_dimension(estimate(density), 3, offset_bits=bits)
        for density, bits in zip(densities, [0.0, 8.0], strict=True)
    )
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_active_units_of_a_data_set_are_those_of_its_moments():
    means = np.random.default_rng(3).normal(size=(500, 8)) * np.linspace(0, 0.2, 8)
    moments = means.mean(0), np.square(means).mean(0)
    assert count_active_units(means) == active_units(*moments) == 4


# Transform


def probe(params, key, example):
    """Arguments that map_dataset passes for one example: its key and the stored example."""
    return {"drawn": jax.random.uniform(key), "stored": example, "nothing": None, **params}


def on_devices(function, examples, num_devices, batch_size, **options):
    mesh = make_mesh(jax.devices()[:num_devices])
    params, key = replicate(({"shift": jnp.float32(0.5)}, jax.random.key(5)), mesh)
    mapped = make_map(function, mesh)
    return map_dataset(mapped, params, key, examples, mesh=mesh, batch_size=batch_size, **options)


@pytest.mark.parametrize(
    ("num_devices", "batch_size"), [(1, 1), (1, 13), (2, 5), (4, 5), (8, 1), (8, 100)]
)
def test_neither_devices_nor_batches_change_what_is_computed(num_devices, batch_size):
    """None divides 13 examples; each comes once, in order, with the key of its index."""
    examples = np.random.default_rng(4).integers(0, 256, (NUM, 3, 2), dtype=np.uint8)
    done = []
    result = on_devices(probe, examples, num_devices, batch_size, progress=done.append)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.arange(NUM))
    np.testing.assert_array_equal(result["drawn"], jax.vmap(jax.random.uniform)(keys))
    np.testing.assert_array_equal(result["stored"], examples)
    np.testing.assert_array_equal(result["shift"], np.full(NUM, 0.5))
    assert result["nothing"] is None
    assert {type(result[name]) for name in ("drawn", "stored")} == {np.ndarray}
    assert result["stored"].dtype == np.uint8
    block = -(-min(batch_size, NUM) // num_devices) * num_devices
    assert done == [min(end, NUM) for end in range(block, NUM + block, block)]


@pytest.mark.parametrize("num", [1, 3])
def test_there_may_be_fewer_examples_than_devices(num):
    examples = np.arange(num, dtype=np.float32)
    np.testing.assert_array_equal(on_devices(probe, examples, 8, 20)["stored"], examples)


def test_scores_of_a_data_set_are_those_of_its_examples():
    score = make_score(vae(diagonal_guess), num_samples=5)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.arange(NUM))
    params = {"shift": jnp.float32(0.5)}
    expected = jax.jit(jax.vmap(score, (None, 0, 0)))(params, keys, XS)
    chex.assert_trees_all_close(on_devices(score, XS, 4, 5), expected, rtol=1e-5, atol=1e-5)


def test_scored_examples_are_those_that_were_scored():
    """With p(x|z) = N(0, 1), the reconstruction term is a function of the prepared x alone."""
    fixed = Gaussian(jnp.zeros(3), jnp.zeros(3))
    model = VAE(
        init=lambda key: {},
        encode=lambda params, x: Gaussian.standard(2),
        decode=lambda params, z: fixed,
        prior=lambda params: Gaussian.standard(2),
    )
    prepare = lambda key, stored: stored + jax.random.normal(key, stored.shape)
    examples, key = np.arange(21.0, dtype=np.float32).reshape(7, 3), jax.random.key(3)
    mesh = make_mesh(jax.devices()[:1])
    mapped = make_map(make_score(model, prepare=prepare), mesh)
    scores = map_dataset(mapped, {}, key, examples, mesh=mesh, batch_size=4)
    indices = jnp.array([5, 2])
    xs = scored_x(prepare, key, indices, examples[indices])
    np.testing.assert_allclose(
        jax.vmap(fixed.log_prob)(xs), scores.reconstruction[indices], rtol=1e-5
    )


# Failure


@pytest.mark.parametrize(("num_samples", "sample_chunk_size"), [(0, 10), (5, 0), (-1, 1)])
def test_zero_draws_are_rejected(num_samples, sample_chunk_size):
    message = f"must be at least 1, got {num_samples} and {sample_chunk_size}"
    with pytest.raises(ValueError, match=message):
        estimates(jax.random.key(0)[None], XS[0], guess, num_samples, sample_chunk_size)


def test_an_empty_data_set_is_rejected():
    with pytest.raises(ValueError, match="at least one example to evaluate, got none"):
        on_devices(probe, XS[:0], 1, 5)
