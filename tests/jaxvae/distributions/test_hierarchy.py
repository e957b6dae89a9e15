"""Hierarchies: the product of their levels, in either order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import Gaussian, Hierarchy, Laplace, OneHotCategorical
from jaxvae.distributions import NoClosedForm, mean_of
from jaxvae.divergences import kl_per_level, same_order

PARAMS = {"weight": jnp.array([[1.0, 2.0], [0.5, -1.0], [0.3, 0.0]]), "loc": jnp.array([0.3, -0.2])}


def first(params, carry):
    assert carry is None
    return Gaussian(params["loc"], jnp.array(-0.5)), lambda z: z


def second(params, z):
    return Gaussian(params["weight"] @ z, jnp.array(0.2)), lambda z: z


def above(params, z):
    return Gaussian(params["weight"].T @ z, jnp.array(0.1)), lambda z: z


def lowest(params, carry):
    assert carry is None
    return Gaussian(jnp.ones(3), jnp.array(0.0)), lambda z: z


def one_hot(params, carry):
    return OneHotCategorical(jnp.zeros((2, 3))), lambda z: z


TOP_DOWN = Hierarchy(PARAMS, (first, second))
BOTTOM_UP = Hierarchy(PARAMS, (above, lowest), top_down=False)


@pytest.mark.parametrize("p", [TOP_DOWN, BOTTOM_UP], ids=["top down", "bottom up"])
def test_log_prob_of_a_draw_is_that_of_its_levels(p):
    z, log_prob = p.sample_and_log_prob(jax.random.key(0))
    assert [level.shape for level in z] == [(2,), (3,)]
    given = [first(PARAMS, None)[0], second(PARAMS, z[0])[0]]
    if not p.top_down:
        given = [above(PARAMS, z[1])[0], lowest(PARAMS, None)[0]]
    expected = sum(q.log_prob(level) for q, level in zip(given, z, strict=True))
    np.testing.assert_allclose(log_prob, expected, rtol=1e-6)
    np.testing.assert_allclose(p.log_prob(z), expected, rtol=1e-6)


def test_draws_have_the_moments_of_the_chain():
    """E z_2 = W loc, and its covariance is W W^T exp(-1) + exp(0.4) I: 4 standard errors."""
    draws = jax.vmap(TOP_DOWN.sample)(jax.random.split(jax.random.key(0), 100_000))
    z, weight = np.asarray(draws[1]), np.asarray(PARAMS["weight"])
    covariance = weight @ weight.T * np.exp(-1) + np.exp(0.4) * np.eye(3)
    error = np.sqrt(np.diag(covariance) / len(z))
    assert np.all(np.abs(z.mean(0) - weight @ PARAMS["loc"]) < 4 * error)
    spread = np.sqrt(np.diag(covariance)[:, None] * np.diag(covariance) * 2 / len(z))
    assert np.all(np.abs(np.cov(z.T) - covariance) < 4 * spread)


def test_a_hierarchy_has_no_mean_but_that_of_draws():
    with pytest.raises(NoClosedForm):
        TOP_DOWN.mean()
    means = mean_of(TOP_DOWN, jax.random.key(0), 20_000)
    np.testing.assert_allclose(means[0], PARAMS["loc"], atol=4 * np.exp(-0.5) / np.sqrt(20_000))


def test_a_step_that_encloses_arrays_is_rejected():
    weight = jnp.ones(2)
    for step in (
        lambda params, carry: (Gaussian(weight, jnp.array(0.0)), lambda z: z),
        functools.partial(lambda w, params, carry: (w, None), weight),
        lambda params, carry, w=weight: (w, None),
    ):
        with pytest.raises(
            ValueError, match=r"encloses arrays, whose gradient .* Pass them in par"
        ):
            Hierarchy((), (step,))


def test_a_step_may_use_a_function_that_is_defined_later():
    def step(params, carry):
        return later(params)

    chain = Hierarchy(PARAMS, (step,))

    def later(params):
        return first(params, None)

    assert chain.sample(jax.random.key(0))[0].shape == (2,)


def test_a_value_with_another_number_of_levels_is_rejected():
    with pytest.raises(ValueError, match="a tuple of the latents of 2 levels, got 1 entries"):
        TOP_DOWN.log_prob((jnp.zeros(2),))
    with pytest.raises(ValueError, match=r"got a .*Array"):
        TOP_DOWN.log_prob(jnp.zeros(2))


def test_draws_without_a_gradient_must_be_declared():
    with pytest.raises(ValueError, match="level 1, OneHotCategorical, carry no gradient"):
        Hierarchy((), (one_hot,)).sample(jax.random.key(0))
    z = Hierarchy((), (one_hot,), reparameterized=False).sample(jax.random.key(0))
    assert z[0].shape == (2, 3)


def test_kl_per_level_has_the_mean_of_the_sampled_kl_and_varies_less():
    p = Hierarchy(PARAMS | {"loc": jnp.zeros(2)}, (first, second))

    def both(key):
        z, log_q = TOP_DOWN.sample_and_log_prob(key)
        levels = kl_per_level(TOP_DOWN, p, z)
        return jnp.stack([sum(level.sum() for level in levels), log_q - p.log_prob(z)])

    found = np.asarray(jax.vmap(both)(jax.random.split(jax.random.key(1), 20_000)))
    error = np.hypot(*found.std(0)) / np.sqrt(len(found))
    assert abs(found[:, 0].mean() - found[:, 1].mean()) < 4 * error
    assert found[:, 0].std() < 0.1 * found[:, 1].std()
    assert same_order(TOP_DOWN, p)
    assert not same_order(BOTTOM_UP, p)


def test_a_level_without_a_closed_form_has_its_terms_at_the_draw():
    q = Hierarchy((), (one_hot,), reparameterized=False)
    assert kl_per_level(q, q, q.sample(jax.random.key(0)))[0].shape == (2,)

    def laplace(params, carry):
        return Laplace(jnp.zeros(2), jnp.array(0.0)), lambda z: z

    p = Hierarchy((), (laplace,))
    z = (jnp.array([0.3, 1.0]),)
    normal = Hierarchy(PARAMS, (first,))
    np.testing.assert_allclose(
        kl_per_level(normal, p, z)[0], normal.log_prob(z) - p.log_prob(z), rtol=1e-6
    )


def test_eager_jit_and_vmap_agree():
    keys = jax.random.split(jax.random.key(0), 3)
    mapped = jax.jit(jax.vmap(TOP_DOWN.sample_and_log_prob))(keys)
    eager = [TOP_DOWN.sample_and_log_prob(key) for key in keys]
    jax.tree.map(
        lambda many, *each: np.testing.assert_allclose(many, np.stack(each), rtol=1e-5),
        mapped, *eager,
    )  # fmt: skip
