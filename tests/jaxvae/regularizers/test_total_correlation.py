"""The parts of the KL, against the sums they estimate and known exact values."""

from itertools import combinations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from jaxvae import FullCovarianceGaussian, Gaussian
from jaxvae.regularizers.total_correlation import (
    exact_kl_decomposition,
    exact_log_prob,
    kl_decomposition,
    minibatch_log_prob,
    total_correlation,
)
from tests.files import golden

GOLDEN = golden("regularizers")
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
DIM, NUM_DATA = 3, 40
PRIOR = Gaussian.standard(DIM)

decompose = jax.jit(kl_decomposition, static_argnames=("num_data", "estimator"))
decompose_exactly = jax.jit(exact_kl_decomposition, static_argnames="microbatch_size")
from_batch = jax.jit(minibatch_log_prob, static_argnames=("num_data", "estimator"))
from_all = jax.jit(exact_log_prob, static_argnames="microbatch_size")


def posteriors(size, seed=0, dim=DIM):
    """Posteriors q [size] and a draw of each [size, dim]."""
    loc, log_scale, eps = np.random.default_rng(seed).normal(size=(3, size, dim))
    log_scale = 0.5 * log_scale - 0.5
    z = loc + np.exp(log_scale) * eps
    return Gaussian(jnp.asarray(loc, float), jnp.asarray(log_scale, float)), jnp.asarray(z, float)


def rows(tree, indices):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[list(indices)], tree)


def published_log_weights(batch_size, num_data):
    """The matrix of beta-tcvae, and of pythae, disvae and PyTorch-VAE after it: strides of B from 0
    walk a column, where the diagonal was meant."""
    others = batch_size - 1
    weights = np.full((batch_size, batch_size), 1 / others)
    weights.reshape(-1)[::batch_size] = 1 / num_data
    weights.reshape(-1)[1::batch_size] = (num_data - others) / (num_data * others)
    weights[others - 1, 0] = (num_data - others) / (num_data * others)
    return np.log(weights)


@jax.jit
def per_latent(q, z):
    """log q(z_ij|x_n): [i, n, j]."""
    return jax.vmap(lambda z: jax.vmap(lambda q: q.log_prob_per_entry(z))(q))(z)


# Golden


@pytest.mark.slow
def test_golden_file_is_what_its_script_makes():
    pytest.importorskip("sklearn")
    from tests.golden import make_regularizers

    made = make_regularizers.make_regularizers()
    assert made.keys() == GOLDEN.keys()
    for group in made:
        for new, old in zip(made[group], GOLDEN[group], strict=True):
            words = {k for k in new if isinstance(new[k], str)}
            assert all(new[k] == old[k] for k in words)
            numbers = new.keys() - words
            chex.assert_trees_all_close(
                {k: new[k] for k in numbers}, {k: old[k] for k in numbers}, rtol=1e-13
            )


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("case", GOLDEN["decomposition"], ids=lambda case: case["name"])
def test_parts_are_the_golden_values(case, precision):
    with jax.enable_x64(precision == "float64"):
        loc, log_scale, z = (jnp.asarray(case[k], float) for k in ("loc", "log_scale", "z"))
        q, prior = Gaussian(loc, log_scale), Gaussian.standard(DIM)
        if case["estimator"] == "exact":
            parts = decompose_exactly(q, z, prior, microbatch_size=3)
        else:
            names = ("num_data", "estimator")
            parts = decompose(q, z, prior, **{name: case[name] for name in names})
    for part, value, terms in zip(parts, case["values"], case["terms"], strict=True):
        assert (part.shape, part.dtype.name) == ((), precision)
        assert abs(float(part) - value) <= TOLERANCE[precision] * terms


# Law


def stratified_means(log_weights, size=5, batch_size=3):
    """Mean estimates of q(z_i) and q(z_ij) over all batches whose first example is i.

    With them, from all examples, the exact ones: [size, 1 + DIM] each.
    """
    q, z = posteriors(size)
    means = []
    for i in range(size):
        others = [n for n in range(size) if n != i]
        estimates = []
        for place, rest in enumerate(combinations(others, batch_size - 1)):
            row = place % batch_size
            batch = [*rest[:row], i, *rest[row:]]
            entries = per_latent(rows(q, batch), z[i : i + 1])[0]
            both = np.concatenate([entries.sum(1)[:, None], entries], 1)
            estimates.append(np.exp(both + log_weights[row][:, None]).sum(0))
        means.append(np.mean(estimates, axis=0))
    aggregate = from_all(q, z, microbatch_size=size)
    exact = np.concatenate([aggregate.joint[:, None], aggregate.marginals], 1)
    return np.array(means), np.exp(exact)


def test_the_stratified_estimate_is_right_on_average_over_all_batches():
    """Every batch of 3 of 5 examples that holds example i, at every row it may have."""
    with jax.enable_x64(True):
        q, z = posteriors(5)
        exact = from_all(q, z, microbatch_size=5)
        joint, marginals = np.zeros(5), np.zeros((5, DIM))
        batches = [list(batch) for batch in combinations(range(5), 3)]
        for batch in batches + [batch[::-1] for batch in batches]:
            estimate = from_batch(rows(q, batch), z[jnp.array(batch)], num_data=5)
            joint[batch] += np.exp(estimate.joint) / 12  # each example is in 6 of the 10 batches
            marginals[batch] += np.exp(estimate.marginals) / 12
        np.testing.assert_allclose(joint, np.exp(exact.joint), rtol=1e-12)
        np.testing.assert_allclose(marginals, np.exp(exact.marginals), rtol=1e-12)


def test_the_published_stratified_weights_are_wrong_on_average():
    """beta-tcvae, pythae, disvae and PyTorch-VAE put 1/N on the first example of the batch, and one
    row does not add up to 1."""
    log_weights = published_log_weights(3, 5)
    means, exact = stratified_means(log_weights)
    assert np.abs(means / exact - 1).max() > 0.1
    assert np.abs(np.exp(log_weights).sum(1) - 1).max() > 0.09


def test_weights_count_once_whatever_the_number_of_latents():
    """Equal posteriors are their own aggregate; not so in PyTorch-VAE, which adds the log weights
    for every latent before it sums them."""
    q, z = posteriors(6)
    q = rows(q, [0] * 6)
    estimate = from_batch(q, z, num_data=NUM_DATA)
    entries = np.asarray(per_latent(q, z))
    log_q = entries[:, 0]
    np.testing.assert_allclose(estimate.joint, log_q.sum(1), rtol=1e-5)
    np.testing.assert_allclose(estimate.marginals, log_q, rtol=1e-5, atol=1e-6)
    others = np.log((NUM_DATA - 1) / (NUM_DATA * 5))
    log_weights = np.where(np.eye(6, dtype=bool), -np.log(NUM_DATA), others)
    published = logsumexp((entries + log_weights[:, :, None]).sum(2), axis=1)
    assert np.abs(published - log_q.sum(1)).min() > 1


def test_a_batch_of_all_examples_is_exact():
    q, z = posteriors(7)
    exact = from_all(q, z, microbatch_size=7)
    chex.assert_trees_all_close(from_batch(q, z, num_data=7), exact, rtol=1e-5, atol=1e-5)
    weighted = from_batch(q, z, num_data=7, estimator="mws")
    lower = jax.tree.map(lambda leaf: leaf - np.log(7), exact)
    chex.assert_trees_all_close(weighted, lower, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("estimator", ["mss", "mws"])
def test_parts_add_up_to_the_sampled_kl(estimator):
    q, z = posteriors(8)
    parts = decompose(q, z, PRIOR, num_data=NUM_DATA, estimator=estimator)
    sampled = jax.vmap(lambda q, z: q.log_prob(z) - PRIOR.log_prob(z))(q, z).mean()
    np.testing.assert_allclose(sum(parts), sampled, rtol=1e-5)


@pytest.mark.parametrize("microbatch_size", [1, 3, 100])
def test_chunks_change_nothing(microbatch_size):
    q, z = posteriors(8)
    expected = logsumexp(per_latent(q, z).sum(2), axis=1) - np.log(8)
    result = from_all(q, z, microbatch_size=microbatch_size)
    np.testing.assert_allclose(result.joint, expected, rtol=1e-5)
    parts = decompose_exactly(q, z[:5], PRIOR, microbatch_size=microbatch_size)
    np.testing.assert_allclose(
        sum(parts),
        jax.vmap(lambda q, z: q.log_prob(z) - PRIOR.log_prob(z))(rows(q, range(5)), z[:5]).mean(),
        rtol=1e-5,
    )


def test_exact_memory_is_that_of_a_chunk():
    """4,000 examples in chunks of 32 take neither the 192 MB of all pairs nor a row of them."""
    q, z = posteriors(4_000)
    analysis = from_all.lower(q, z, microbatch_size=32).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 2_000_000


def test_total_correlation_of_a_known_aggregate():
    """z = loc_n + noise of variance 0.2, so z ~ N(0, C): TC = -1/2 log(1 - rho^2), 0.34 nats.

    Within 4 standard errors of the mean over the draws, 0.05. From a batch of 64 the weighted
    estimate is far off, by about (Z - 1) log N = 8 nats.
    """
    size, rho, variance = 4_000, 0.7, 0.2
    between = np.array([[1 - variance, rho], [rho, 1 - variance]])
    truth = -0.5 * np.log(1 - rho**2)
    loc, eps = np.random.default_rng(1).normal(size=(2, size, 2))
    loc = loc @ np.linalg.cholesky(between).T
    z = jnp.asarray(loc + np.sqrt(variance) * eps, float)
    q = Gaussian(jnp.asarray(loc, float), jnp.full((size, 2), 0.5 * np.log(variance)))
    aggregate = from_all(q, z, microbatch_size=256)
    each = np.asarray(aggregate.joint - aggregate.marginals.sum(1))
    assert abs(each.mean() - truth) < 4 * each.std() / np.sqrt(size)
    few = range(64)
    stratified, weighted = (
        decompose(rows(q, few), z[:64], Gaussian.standard(2), num_data=size, estimator=estimator)
        for estimator in ("mss", "mws")
    )
    assert abs(stratified.total_correlation - truth) < 0.5
    assert weighted.total_correlation > truth + 3


def test_the_regularizer_is_the_weighted_total_correlation():
    q, z = posteriors(6)
    for estimator in ("mss", "mws"):
        regularizer = total_correlation(2.5, num_data=NUM_DATA, estimator=estimator)
        assert regularizer.update is None
        penalty = jax.jit(regularizer.penalty)((), jax.random.key(0), q, z, PRIOR)
        parts = decompose(q, z, PRIOR, num_data=NUM_DATA, estimator=estimator)
        np.testing.assert_allclose(penalty, 2.5 * parts.total_correlation, rtol=1e-5)


# Transform


def test_gradients_are_finite_differences():
    """In float64, at central differences of 1e-5; of both estimates."""
    with jax.enable_x64(True):
        q, z = posteriors(4)
        direction = jax.tree.map(
            lambda leaf: jnp.asarray(np.random.default_rng(2).normal(size=leaf.shape)), (q, z)
        )
        for function, options in [
            (decompose, {"num_data": 9, "estimator": "mss"}),
            (decompose_exactly, {"microbatch_size": 3}),
        ]:

            def along(t, function=function, options=options):
                moved = jax.tree.map(lambda a, b: a + t * b, (q, z), direction)
                parts = function(*moved, Gaussian.standard(DIM), **options)
                return parts[0] + 2 * parts[1] - 3 * parts[2]

            slope = (along(1e-5) - along(-1e-5)) / 2e-5
            np.testing.assert_allclose(jax.jit(jax.grad(along))(0.0), slope, rtol=1e-7)


@pytest.mark.slow
def test_eager_is_jit():
    q, z = posteriors(4)
    eager = kl_decomposition(q, z, PRIOR, num_data=9)
    chex.assert_trees_all_close(decompose(q, z, PRIOR, num_data=9), eager, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_computed_in_float32():
    q, z = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), posteriors(4))
    wide_q, wide_z = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (q, z))
    for decomposition, options in [(decompose, {"num_data": 9}), (decompose_exactly, {})]:
        parts = decomposition(q, z, PRIOR, **options)
        assert {part.dtype.name for part in parts} == {"float32"}
        wide = decomposition(wide_q, wide_z, PRIOR, **options)
        chex.assert_trees_all_close(parts, wide, rtol=1e-5, atol=1e-5)


def test_values_and_gradients_are_finite_at_extremes():
    loc = jnp.array([[-100.0, 0.0, 100.0, 0.0], [100.0, 100.0, 0.0, 0.0]])
    q = Gaussian(loc, jnp.array([[-20.0, 20.0, -20.0, 20.0], [-20.0, 20.0, 20.0, -20.0]]))
    prior = Gaussian.standard(4)
    for function in (
        lambda q, z: kl_decomposition(q, z, prior, num_data=9).total_correlation,
        lambda q, z: exact_kl_decomposition(q, z, prior).total_correlation,
    ):
        both = jax.jit(jax.value_and_grad(function, argnums=(0, 1)))
        chex.assert_tree_all_finite(both(q, loc))


# Failure


def test_a_batch_of_one_is_rejected():
    q, z = posteriors(1)
    with pytest.raises(ValueError, match=r"B at least 2, got shape \(1, 3\).*batch size"):
        minibatch_log_prob(q, z, num_data=9)


def test_a_batch_larger_than_the_data_is_rejected():
    q, z = posteriors(4)
    with pytest.raises(ValueError, match=r"at least the global batch size, 4, got 3"):
        minibatch_log_prob(q, z, num_data=3)


def test_an_unknown_estimator_is_rejected():
    q, z = posteriors(4)
    with pytest.raises(ValueError, match=r"estimator must be mss or mws, got 'exact'"):
        minibatch_log_prob(q, z, num_data=9, estimator="exact")


def test_dependent_latents_are_rejected():
    _, z = posteriors(4)
    q = FullCovarianceGaussian(z, jnp.broadcast_to(jnp.eye(DIM), (4, DIM, DIM)))
    with pytest.raises(ValueError, match=r"FullCovarianceGaussian has no log_prob_per_entry"):
        minibatch_log_prob(q, z, num_data=9)
