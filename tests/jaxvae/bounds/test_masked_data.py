"""Bounds on the observed entries, against the model that has only these entries."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from jaxvae import Bernoulli, FullCovarianceGaussian, Gaussian, adapt, elbo
from jaxvae.testing import LinearGaussian
from tests.oracles import BOUNDS, means_and_errors, to_jax

DATA_DIM, LATENT_DIM, NUM_KEYS = 6, 2, 500
MASK = np.array([True, False, True, True, False, True])

SOME = ("elbo", "iwae", "piwae", "tvo")
"""One bound for each kind of gradient."""

bounds = pytest.mark.parametrize("name", BOUNDS)


def parameters():
    rng = np.random.default_rng(0)
    return to_jax({
        "encoder": 0.3 * rng.normal(size=(LATENT_DIM, DATA_DIM)),
        "model": LinearGaussian(
            rng.normal(size=(DATA_DIM, LATENT_DIM)),
            rng.normal(size=DATA_DIM),
            rng.normal(-0.3, 0.3, size=DATA_DIM),
        ),
    })  # fmt: skip


def data():
    return jnp.asarray(np.random.default_rng(1).normal(size=DATA_DIM), jnp.float32)


def some_bounds(params, x, key, mask, names=SOME):
    model = params["model"]
    encode = lambda x: Gaussian(params["encoder"] @ x, jnp.full(LATENT_DIM, -0.3))
    sides = {"encode": encode, "decode": model.decode, "prior": model.prior()}
    return {name: BOUNDS[name](key, x, **sides, num_samples=4, mask=mask) for name in names}


@jax.jit
def with_slopes(params, x, mask, keys):
    """Every bound, and the gradient of their sum by all parameters and data, for each key."""

    def total(params, x, key):
        results = some_bounds(params, x, key, mask)
        return sum(result.objective for result in results.values()), results

    slope = jax.grad(total, argnums=(0, 1), has_aux=True)
    return jax.lax.map(lambda key: slope(params, x, key), keys)


def restricted(params, x):
    """Parameters and data of the model that has only the observed entries."""
    encoder, model = params["encoder"][:, MASK], params["model"]
    model = LinearGaussian(model.weight[MASK], model.bias[MASK], model.log_scale[MASK])
    return {"encoder": encoder, "model": model}, x[MASK]


@cache
def masked():
    """(slopes, bounds) with NaN where x is missing."""
    keys = jax.random.split(jax.random.key(0), NUM_KEYS)
    x = jnp.where(MASK, data(), jnp.nan)
    return jax.device_get(with_slopes(parameters(), x, jnp.asarray(MASK), keys))


@cache
def unmasked():
    """(slopes, bounds) of the restricted model."""
    keys = jax.random.split(jax.random.key(0), NUM_KEYS)
    params, x = restricted(parameters(), data())
    return jax.device_get(with_slopes(params, x, jnp.ones(len(x), bool), keys))


def close(actual, expected):
    """Terms of both signs that add up to less than 100."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * 100)


# Law


@pytest.mark.parametrize("name", SOME)
def test_a_bound_is_that_of_the_model_of_the_observed_entries(name):
    jax.tree.map(close, masked()[1][name], unmasked()[1][name])


def test_gradients_are_those_of_the_model_of_the_observed_entries():
    """The gradients of missing entries are exactly 0, though these entries are NaN."""
    (of_params, of_x), _ = masked()
    (of_fewer, of_seen), _ = unmasked()
    whole = [of_params["encoder"], *(np.moveaxis(leaf, 1, -1) for leaf in of_params["model"]), of_x]
    fewer = [
        of_fewer["encoder"],
        *(np.moveaxis(leaf, 1, -1) for leaf in of_fewer["model"]),
        of_seen,
    ]
    for leaf, expected in zip(whole, fewer, strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(leaf[..., MASK], expected, rtol=0, atol=1e-5 * scale)
        np.testing.assert_array_equal(leaf[..., ~MASK], np.zeros_like(leaf[..., ~MASK]))
        assert scale > 0.01


def test_the_bound_is_on_the_density_of_the_observed_entries():
    """The bound is below log p(x_observed); with the true posterior it is equal in every draw."""
    params, x = restricted(parameters(), data())
    log_prob, posterior = jax.jit(lambda model: (model.log_prob(x), model.posterior(x)))(
        params["model"]
    )
    for name in ("elbo", "iwae"):
        ((mean, error),) = means_and_errors(masked()[1][name].objective)
        assert mean < log_prob - 4 * error
    model = parameters()["model"]
    sides = {"encode": lambda x: posterior, "decode": model.decode, "prior": model.prior()}
    run = partial(BOUNDS["iwae"], x=jnp.where(MASK, data(), jnp.nan), mask=MASK, num_samples=4)
    result = jax.jit(partial(run, **sides))(jax.random.key(2))
    close(result.log_weights, np.full(4, log_prob))
    close(result.objective, log_prob)


def test_a_mask_of_ones_changes_nothing_and_one_of_zeros_leaves_the_prior():
    params, x, key = parameters(), data(), jax.random.key(3)
    run = jax.jit(lambda x, mask: some_bounds(params, x, key, mask, ("elbo",)))
    every = run(x, jnp.ones(DATA_DIM, bool))
    jax.tree.map(close, every, jax.jit(lambda x: some_bounds(params, x, key, None, ("elbo",)))(x))
    nothing = run(jnp.full(DATA_DIM, jnp.nan), jnp.zeros(DATA_DIM, bool))
    assert nothing["elbo"].reconstruction == 0.0
    close(nothing["elbo"].elbo, -nothing["elbo"].kl)


# Transform


def test_each_row_may_have_its_own_mask():
    """Binary images with a NaN for each missing pixel."""
    rng = np.random.default_rng(2)
    masks, pixels = rng.integers(2, size=(2, 5, 2, 3)).astype(bool)
    x = jnp.where(masks, pixels, jnp.nan)
    weight = jnp.asarray(rng.normal(size=(2, 2, 3)))
    keys = jax.random.split(jax.random.key(4), 5)

    def objective(weight, key, x, mask):
        decode = lambda z: Bernoulli(jnp.tensordot(z, weight, 1))
        encode = lambda x: Gaussian(jnp.stack([x.sum(), x[0, 0]]), jnp.zeros(2))
        sides = {"encode": encode, "decode": decode, "prior": Gaussian.standard(2)}
        return elbo(key, x, **sides, mask=mask).reconstruction

    slope = jax.vmap(jax.value_and_grad(objective), in_axes=(None, 0, 0, 0))
    values, slopes = jax.jit(slope)(weight, keys, x, masks)
    assert np.isfinite(values).all()
    missing = np.broadcast_to(~masks[:, None], slopes.shape)
    np.testing.assert_array_equal(np.asarray(slopes)[missing], np.zeros(missing.sum()))
    assert (np.asarray(slopes)[~missing] != 0).all()


def test_a_mask_of_rows_is_the_mask_of_their_entries():
    """[T] for x [T, D], as sequences with padding have it."""
    x = jnp.asarray(np.random.default_rng(2).normal(size=(4, 3)), jnp.float32)
    rows = jnp.array([True, True, False, True])
    x = x.at[2].set(jnp.nan)
    for p in (Gaussian(jnp.ones((4, 3)), jnp.zeros(())), Bernoulli(jnp.ones((4, 3)))):
        sides = {"encode": lambda x: Gaussian(x[:, 0], jnp.zeros(4)), "decode": lambda z, p=p: p}
        run = partial(elbo, jax.random.key(0), x, **sides, prior=Gaussian.standard(4))
        by_mask = jax.jit(lambda mask, run=run: run(mask=mask).objective)
        by_rows, by_entries = by_mask(rows), by_mask(np.broadcast_to(rows[:, None], (4, 3)))
        assert by_rows == by_entries
        assert np.isfinite(by_rows)


def test_a_mask_of_rows_fits_a_likelihood_whose_entries_are_rows():
    """Independent vectors with a covariance each: a row counts as a whole, or not."""
    p = adapt(dist.MultivariateNormal(jnp.zeros((4, 3)), jnp.eye(3)).to_event(1))
    sides = {"encode": lambda x: Gaussian.standard(2), "decode": lambda z: p}
    run = partial(elbo, jax.random.key(0), jnp.ones((4, 3)), **sides, prior=Gaussian.standard(2))
    density = -0.5 * 3 - 1.5 * np.log(2 * np.pi)
    rows = jnp.array([True, False, False, True])
    by_mask = jax.jit(lambda mask: run(mask=mask).reconstruction)
    np.testing.assert_allclose(by_mask(rows), 2 * density, rtol=1e-6)
    with pytest.raises(ValueError, match=r"shape \(4,\), so a mask of shape \(4, 3\) cannot"):
        by_mask(jnp.ones((4, 3), bool))


def test_a_mask_of_an_adapted_independent_likelihood_is_that_of_ours():
    x, mask = jnp.array([1.0, jnp.nan, 0.0]), jnp.array([True, False, True])
    logits = jnp.array([0.3, 2.0, -1.0])
    sides = {"encode": lambda x: Gaussian.standard(2), "prior": Gaussian.standard(2), "mask": mask}
    ours, theirs = (
        jax.jit(lambda x, p=p: elbo(jax.random.key(0), x, **sides, decode=lambda z: p))(x)
        for p in (Bernoulli(logits), adapt(dist.Bernoulli(logits=logits).to_event(1)))
    )
    np.testing.assert_allclose(theirs.reconstruction, ours.reconstruction, rtol=1e-6)
    whole = adapt(dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3)))
    with pytest.raises(ValueError, match="Adapted has no log_prob_per_entry"):
        elbo(jax.random.key(0), x, **sides, decode=lambda z: whole)


# Failure


@bounds
def test_a_mask_of_another_shape_is_rejected(name):
    q = Gaussian.standard(3)
    sides = {"encode": lambda x: q, "decode": lambda z: q, "prior": q, "num_samples": 2}
    match = r"mask must have x's shape \(3,\), or its leading part, got \(2,\)\. Give one entry"
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(
            partial(BOUNDS[name], **sides, mask=np.ones(2, bool)), jax.random.key(0), np.zeros(3)
        )


@bounds
def test_a_likelihood_whose_entries_hang_together_is_rejected(name):
    """The density of some of its entries would be another integral."""
    q, p = Gaussian.standard(2), FullCovarianceGaussian(jnp.zeros(2), jnp.eye(2))
    sides = {"encode": lambda x: q, "decode": lambda z: p, "prior": q, "num_samples": 2}
    match = r"mask: FullCovarianceGaussian has no log_prob_per_entry, so its entries cannot be left"
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(
            partial(BOUNDS[name], **sides, mask=np.ones(2, bool)), jax.random.key(0), np.zeros(2)
        )
