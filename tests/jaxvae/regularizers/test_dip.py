"""The covariance of the aggregate posterior and its distance from the identity."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import Bernoulli, FullCovarianceGaussian, Gaussian
from jaxvae.regularizers.dip import dip, dip_penalty
from tests.files import golden

GOLDEN = golden("regularizers")
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
KINDS = ("i", "ii")
WEIGHTS = {"off_diagonal": 2.5, "diagonal": 7.0}

penalty = jax.jit(dip_penalty, static_argnums=1)


def golden_posterior(case):
    loc = jnp.asarray(case["loc"], float)
    if "scale_tril" in case:
        return FullCovarianceGaussian(loc, jnp.asarray(case["scale_tril"], float))
    return Gaussian(loc, jnp.asarray(case["log_scale"], float))


def whitened(size=6, dim=3):
    """Points [size, dim] of mean 0 and covariance exactly I."""
    points = np.random.default_rng(0).normal(size=(size, dim))
    orthonormal, _ = np.linalg.qr(points - points.mean(0))
    return jnp.asarray(orthonormal * np.sqrt(size), float)


# Golden


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("case", GOLDEN["dip"], ids=lambda case: case["name"])
def test_penalty_is_the_golden_value(case, precision):
    with jax.enable_x64(precision == "float64"):
        q = golden_posterior(case)
        weights = {name: case[name] for name in WEIGHTS}
        results = [penalty(q, kind, **weights) for kind in KINDS]
    for result, value, terms in zip(results, case["values"], case["terms"], strict=True):
        assert (result.shape, result.dtype.name) == ((), precision)
        assert abs(float(result) - value) <= TOLERANCE[precision] * terms


# Law


def test_nothing_is_penalised_where_the_covariance_is_the_identity():
    """For kind I the covariance of the means; for kind II the total, 0.25 from the posteriors."""
    means = whitened()
    rounding = 1e-5
    narrow = Gaussian(means, jnp.full(means.shape, -20.0))
    assert penalty(narrow, "i", **WEIGHTS) < rounding
    half = Gaussian(means * 0.75**0.5, jnp.full(means.shape, np.log(0.5)))
    assert penalty(half, "ii", **WEIGHTS) < rounding
    assert penalty(half, "i", **WEIGHTS) > 1
    prior = Gaussian(jnp.zeros((4, 3)), jnp.zeros((4, 3)))
    assert penalty(prior, "ii", **WEIGHTS) == 0
    assert penalty(prior, "i", **WEIGHTS) == 3 * WEIGHTS["diagonal"]


def test_each_weight_has_its_own_entries():
    case = GOLDEN["dip"][0]
    q = golden_posterior(case)
    covariance = np.cov(np.array(case["loc"]).T, bias=True)
    own = np.square(np.diag(covariance) - 1).sum()
    others = np.square(covariance).sum() - np.square(np.diag(covariance)).sum()
    np.testing.assert_allclose(penalty(q, "i", off_diagonal=0.0, diagonal=1.0), own, rtol=1e-5)
    np.testing.assert_allclose(penalty(q, "i", off_diagonal=1.0, diagonal=0.0), others, rtol=1e-5)


def test_a_published_formula_is_wrong():
    """PyTorch-VAE's DIP-VAE centres over the latents, does not divide by B, and squares the
    variances once more."""
    case = GOLDEN["dip"][0]
    loc, log_scale = np.array(case["loc"]), np.array(case["log_scale"])

    def published(loc, log_variance):
        centred = loc - loc.mean(1, keepdims=True)
        covariance = centred.T @ centred + np.exp(2 * log_variance).mean(0) * np.eye(3)
        own = np.diag(covariance)
        off_diagonal = np.square(covariance - np.diag(own)).sum()
        return case["off_diagonal"] * off_diagonal + case["diagonal"] * np.square(own - 1).sum()

    value = case["values"][1]
    assert abs(published(loc, 2 * log_scale) - value) > 0.5 * value
    shifted = [published(loc + shift, 2 * log_scale) for shift in (np.zeros(3), np.arange(3))]
    assert abs(shifted[0] - shifted[1]) > 0.05 * shifted[0]
    q = golden_posterior(case)
    moved = Gaussian(q.loc + jnp.arange(3.0)[None, :], q.log_scale)
    results = [penalty(q, "ii", **WEIGHTS) for q in (q, moved)]
    np.testing.assert_allclose(results, value, rtol=1e-5)


def test_one_scale_for_all_latents_is_one_for_each():
    loc, log_scale = whitened(), jnp.linspace(-1.0, 0.5, 6)
    each = Gaussian(loc, jnp.broadcast_to(log_scale[:, None], loc.shape))
    shared = Gaussian(loc, log_scale)
    np.testing.assert_allclose(
        penalty(shared, "ii", **WEIGHTS), penalty(each, "ii", **WEIGHTS), rtol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_regularizer_is_the_penalty(kind):
    q = golden_posterior(GOLDEN["dip"][0])
    regularizer = dip(kind, **WEIGHTS)
    result = jax.jit(regularizer.penalty)((), jax.random.key(0), q, q.loc + 1, Gaussian.standard(3))
    np.testing.assert_allclose(result, penalty(q, kind, **WEIGHTS), rtol=1e-6)
    assert regularizer.init(jax.random.key(0)) == ()
    assert regularizer.update is None


# Transform


@pytest.mark.parametrize("case", GOLDEN["dip"], ids=lambda case: case["name"])
def test_gradients_are_finite_differences(case):
    """In float64, at central differences of 1e-5."""
    with jax.enable_x64(True):
        q = golden_posterior(case)
        draw = np.random.default_rng(1).normal
        direction = jax.tree.map(lambda leaf: jnp.asarray(draw(size=leaf.shape)), q)

        def along(t):
            moved = jax.tree.map(lambda a, b: a + t * b, q, direction)
            return penalty(moved, "ii", **WEIGHTS)

        slope = (along(1e-5) - along(-1e-5)) / 2e-5
        np.testing.assert_allclose(jax.jit(jax.grad(along))(0.0), slope, rtol=1e-7)


@pytest.mark.slow
def test_eager_is_jit_and_bfloat16_is_computed_in_float32():
    q = golden_posterior(GOLDEN["dip"][0])
    result = penalty(q, "ii", **WEIGHTS)
    np.testing.assert_allclose(dip_penalty(q, "ii", **WEIGHTS), result, rtol=1e-6)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), q)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)
    result = penalty(narrow, "ii", **WEIGHTS)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, penalty(wide, "ii", **WEIGHTS), rtol=1e-6)


@pytest.mark.parametrize("log_scale", [-20.0, 20.0])
def test_values_and_gradients_are_finite_at_extremes(log_scale):
    loc = jnp.array([[-100.0, 0.0], [100.0, 100.0]])
    function = jax.jit(jax.value_and_grad(partial(dip_penalty, kind="ii", **WEIGHTS)))
    chex.assert_tree_all_finite(function(Gaussian(loc, jnp.full((2, 2), log_scale))))


# Failure


def test_a_batch_of_one_is_rejected():
    q = Gaussian(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"dip compares .* at least 2, got shape \(1, 2\)"):
        dip_penalty(q, "i", **WEIGHTS)


def test_an_unknown_kind_is_rejected():
    q = Gaussian(jnp.zeros((2, 2)), jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match="kind must be i or ii, got 'I'"):
        dip_penalty(q, "I", **WEIGHTS)


def test_a_posterior_without_a_covariance_is_rejected():
    q = Bernoulli(jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"which Bernoulli does not have.*Use kind 'i'"):
        dip_penalty(q, "ii", **WEIGHTS)
