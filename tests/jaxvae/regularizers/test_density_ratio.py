"""The discriminator of FactorVAE: its loss, and the total correlation that it learns."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvae.regularizers.density_ratio import (
    density_ratio,
    discriminator_loss,
    init_discriminator,
    log_ratio,
    permuted_latents,
)
from tests.files import golden

GOLDEN = golden("regularizers")
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
KEY = jax.random.key(0)

logits = jax.jit(jax.vmap(log_ratio, (None, 0)))
loss = jax.jit(discriminator_loss)
loss_and_gradient = jax.jit(jax.value_and_grad(discriminator_loss))
permuted = jax.jit(permuted_latents)


def golden_params(case):
    depth = sum(name.startswith("kernel") for name in case)
    layer = lambda i: {name: jnp.asarray(case[f"{name}_{i}"], float) for name in ("kernel", "bias")}
    return [layer(i) for i in range(depth)]


def latents(size=6, dim=3, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(size, dim)), float)


# Golden


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("case", GOLDEN["discriminator"], ids=lambda case: case["name"])
def test_logits_and_loss_are_the_golden_values(case, precision):
    """The loss errs by no more than its logits; there are two draws of either kind."""
    with jax.enable_x64(precision == "float64"):
        params, z = golden_params(case), jnp.asarray(case["z"], float)
        result, value = logits(params, z), loss(params, z[:2], z[2:])
    error = TOLERANCE[precision] * np.array(case["terms"])
    assert (result.dtype.name, value.dtype.name) == (precision, precision)
    assert (np.abs(np.asarray(result, np.float64) - case["logits"]) <= error).all()
    assert abs(float(value) - case["loss"]) <= error.max()


# Law


def test_every_latent_is_permuted_by_itself():
    """Values stay in their column, and the columns' permutations are independent."""
    z = jnp.arange(60.0).reshape(20, 3)
    first, again = permuted(KEY, z), permuted(jax.random.key(1), z)
    np.testing.assert_array_equal(np.sort(first, axis=0), z)
    orders = np.asarray(first - jnp.arange(3.0)[None, :])
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        assert (orders[:, i] != orders[:, j]).sum() > 10
    assert (first != again).sum() > 30


def test_permuted_latents_are_uncorrelated():
    """The original correlation is 1; within 4 standard errors, 1 / sqrt(size) each."""
    z = latents(4_000, 1)
    result = np.asarray(permuted(KEY, jnp.concatenate([z, z], 1)))
    assert abs(np.corrcoef(result.T)[0, 1]) < 4 / 4_000**0.5


def test_the_initial_discriminator_gives_no_penalty():
    regularizer = density_ratio(6.0, latent_dim=3, hidden=(8,))
    penalty = jax.jit(regularizer.penalty)
    state, z = jax.jit(regularizer.init)(KEY), latents()
    assert penalty(state, KEY, None, z, None) == 0
    new, metrics = jax.jit(regularizer.update)(state, KEY, None, z)
    np.testing.assert_allclose(metrics["discriminator_loss"], np.log(2), rtol=1e-6)
    assert penalty(new, KEY, None, z, None) != 0
    kernels = [layer["kernel"] for layer in state.params]
    assert [kernel.shape for kernel in kernels] == [(3, 8), (8, 1)]
    wide = np.std(jax.jit(lambda key: init_discriminator(key, 200, (300, 5)))(KEY)[0]["kernel"])
    np.testing.assert_allclose(wide, 0.1, rtol=4 / (2 * 60_000) ** 0.5)


def test_the_loss_is_smallest_at_the_log_ratio():
    """Two points under q = (3/4, 1/4) and its product (1/2, 1/2): D = log 3/2 and log 1/2."""
    points = jnp.array([[0.0], [1.0]])
    joint, product = points[jnp.array([0, 0, 0, 1])], points
    ratio = jnp.log(jnp.array([1.5, 0.5]))
    params = [{"kernel": (ratio[1] - ratio[0]).reshape(1, 1), "bias": ratio[:1]}]
    _, gradients = loss_and_gradient(params, joint, product)
    for leaf in jax.tree.leaves(gradients):
        np.testing.assert_allclose(leaf, 0, atol=1e-6)
    away = jax.tree.map(lambda leaf: leaf + 0.3, params)
    assert loss(away, joint, product) > loss(params, joint, product) + 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_the_discriminator_learns_the_total_correlation(rho):
    """-1/2 log(1 - rho^2) of a Gaussian in two latents, on new draws every step.

    Within 0.05 nats, a tenth: at 600 steps the discriminator is still short of the ratio. The
    standard error of the mean over the 20,000 draws that it is measured on is 0.006.
    """
    regularizer = density_ratio(2.0, latent_dim=2, hidden=(32, 32), optimizer=optax.adam(3e-3))
    tril = jnp.array([[1.0, 0.0], [rho, (1 - rho**2) ** 0.5]])

    def draws(key, size):
        return jax.random.normal(key, (size, 2)) @ tril.T

    def step(state, key):
        key_draw, key_update = jax.random.split(key)
        return regularizer.update(state, key_update, None, draws(key_draw, 512))

    key_train, key_test = jax.random.split(jax.random.key(5))
    state, metrics = jax.jit(lambda keys: jax.lax.scan(step, regularizer.init(KEY), keys))(
        jax.random.split(key_train, 600)
    )
    penalty = jax.jit(regularizer.penalty)(state, KEY, None, draws(key_test, 20_000), None)
    assert abs(penalty / 2 + 0.5 * np.log(1 - rho**2)) < 0.05
    assert (metrics["discriminator_loss"][-50:].mean() < 0.6) == (rho > 0)


def test_the_update_is_the_optimizers_on_permuted_latents():
    regularizer = density_ratio(1.0, latent_dim=3, hidden=(4,), optimizer=optax.sgd(0.1))
    state, z = jax.jit(regularizer.init)(KEY), latents()
    state = state._replace(params=jax.tree.map(lambda leaf: leaf + 0.5, state.params))
    new, metrics = jax.jit(regularizer.update)(state, jax.random.key(3), None, z)
    product = permuted(jax.random.key(3), z)
    value, gradients = loss_and_gradient(state.params, z, product)
    expected = jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, state.params, gradients)
    chex.assert_trees_all_close(new.params, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["discriminator_loss"], value, rtol=1e-6)


# Transform


def test_gradients_flow_to_the_latents_and_not_to_the_discriminator():
    """In float64, the latents' gradient is that of central differences; the state's is zero."""
    with jax.enable_x64(True):
        case = GOLDEN["discriminator"][1]
        regularizer = density_ratio(3.0, latent_dim=3, hidden=(5, 4))
        state = jax.jit(regularizer.init)(KEY)._replace(params=golden_params(case))
        z, direction = jnp.asarray(case["z"]), latents(4, seed=9)
        penalty = jax.jit(lambda params, z: regularizer.penalty(
            state._replace(params=params), KEY, None, z, None
        ))  # fmt: skip
        to_params, to_z = jax.jit(jax.grad(penalty, argnums=(0, 1)))(state.params, z)
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(to_params)) == 0
        ends = [penalty(state.params, z + t * direction) for t in (1e-5, -1e-5)]
        slope = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(jnp.sum(to_z * direction), slope, rtol=1e-7)
        value = 3 * np.mean(case["logits"])
        np.testing.assert_allclose(penalty(state.params, z), value, rtol=1e-12)


def test_bfloat16_latents_are_computed_in_float32():
    case = GOLDEN["discriminator"][0]
    params, z = golden_params(case), jnp.asarray(case["z"], jnp.bfloat16)
    result = logits(params, z)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, logits(params, z.astype(jnp.float32)), rtol=1e-6)


def test_the_loss_and_its_gradient_are_finite_at_extremes():
    params = [{"kernel": jnp.full((2, 1), 1e4), "bias": jnp.zeros(1)}]
    z = jnp.array([[1.0, 1.0], [-1.0, -1.0]])
    chex.assert_tree_all_finite(loss_and_gradient(params, z, -z))


# Failure


def test_a_batch_of_one_is_rejected():
    regularizer = density_ratio(1.0, latent_dim=3, hidden=(4,))
    with pytest.raises(ValueError, match=r"density_ratio compares .* got shape \(1, 3\)"):
        jax.eval_shape(
            lambda z: regularizer.penalty(regularizer.init(KEY), KEY, None, z, None), latents(1)
        )


def test_sizes_below_one_are_rejected():
    with pytest.raises(ValueError, match=r"must be positive, got 3 and \(4, 0\)"):
        density_ratio(1.0, latent_dim=3, hidden=(4, 0)).init(KEY)
