"""One training step with a penalty of the whole batch, and the state of a regularizer."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvae
from jaxvae import Gaussian
from jaxvae.bounds import posterior_samples
from jaxvae.checkpoints import Checkpoints
from jaxvae.models.builders import mlp_vae
from jaxvae.regularizers import Regularizer, density_ratio, dip, mmd, no_state, total_correlation
from jaxvae.training.devices import AXIS, make_chunk_step, make_mesh, replicate, shard
from jaxvae.training.state import init_state
from jaxvae.training.step import make_train_step
from tests.steps import (
    BATCH,
    DIM,
    RATE,
    SGD,
    bad_batch,
    batch,
    bounds,
    counters,
    first_state,
    flat,
    in_shards,
    jitted,
    learned,
    linear,
    movement,
    row,
    toy,
)

REGULARIZERS = {
    "total correlation": total_correlation(0.5, num_data=40),
    "dip": dip("ii", off_diagonal=0.2, diagonal=0.1),
    "mmd": mmd(1.0),
    "density ratio": density_ratio(0.5, latent_dim=2, hidden=(4,), optimizer=SGD),
}
EACH = tuple(REGULARIZERS)


def total_penalty(state, *batch):
    """Penalty and update of all regularizers together, so that one compilation tests them all."""
    return sum(REGULARIZERS[name].penalty(state, *batch) for name in EACH)


REGULARIZERS["all"] = REGULARIZERS["density ratio"]._replace(penalty=total_penalty)


@cache
def regularized(name, axis_name=None):
    """The SGD step with a regularizer; with an axis, on shards as `jitted_shards` has them."""
    step = make_train_step(toy(), SGD, regularizer=REGULARIZERS[name], axis_name=axis_name)
    return jax.jit(jax.vmap(step, (None, 0, 0), axis_name=axis_name) if axis_name else step)


@cache
def regularized_state(name):
    """An initial state with a nonzero discriminator."""
    state = init_state(toy(), SGD, jax.random.key(0), regularizer=REGULARIZERS[name])
    draw = np.random.default_rng(3).normal
    carried = jax.tree.map(
        lambda leaf: jnp.asarray(draw(size=leaf.shape), float), state.regularizer
    )
    return jax.device_get(state._replace(regularizer=carried))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["all", *(pytest.param(name, marks=pytest.mark.long) for name in EACH)]
)
def test_a_penalty_of_four_shards_is_that_of_the_batch(name):
    """Value, gradient and state are equal; each shard alone would have another penalty."""
    state, (keys, xs) = regularized_state(name), batch()
    whole, metrics = regularized(name)(state, keys, xs)
    sharded, others = regularized(name, "devices")(state, *in_shards(keys, xs))
    for i in range(4):
        chex.assert_trees_all_close(row(others, i), metrics, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(row(sharded, i), whole, rtol=1e-5, atol=1e-6)
    plain, _ = jitted("bernoulli", SGD)(first_state(), keys, xs)
    assert np.abs(movement(whole, state) - movement(plain, first_state())).max() > 1e-3
    if jax.tree.leaves(state.regularizer):
        assert np.abs(flat(whole.regularizer) - flat(state.regularizer)).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["all", *(pytest.param(name, marks=pytest.mark.long) for name in EACH)]
)
def test_a_penalty_on_four_devices_is_that_on_one(name):
    """A step of SGD under pmap, with the keys of `row_keys`."""
    results = []
    for num_devices in (1, 4):
        mesh = make_mesh(jax.devices()[:num_devices])
        step = make_train_step(toy(), SGD, regularizer=REGULARIZERS[name], axis_name=AXIS)
        chunk_step = make_chunk_step(step, mesh, BATCH, 1)
        chunk = shard(np.asarray(batch()[1]).reshape(num_devices, 1, -1, DIM), mesh)
        state, key = replicate((regularized_state(name), jax.random.key(2)), mesh)
        results.append(jax.device_get(chunk_step(state, key, chunk, replicate(np.int32(1), mesh))))
    (one, metrics), (four, others) = results
    chex.assert_trees_all_close(four, one, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(others, metrics, rtol=1e-5, atol=1e-6)
    assert np.abs(movement(one, regularized_state(name))).max() > 1e-3


@pytest.mark.slow
def test_sgd_follows_the_objective_less_the_penalty():
    """The penalty has the batch's posteriors and draws and its own key; `elbo` is the ELBO."""
    state, (keys, xs), prior = regularized_state("all"), batch(), Gaussian.standard(2)
    new, metrics = regularized("all")(state, keys, xs)
    key = jax.random.split(jax.random.split(keys[0], 3)[2])[0]

    def parts_of(params):
        qs = jax.vmap(partial(toy().encode, params))(xs)
        draw = lambda key, q: posterior_samples(jax.random.split(key)[1], q, 1)[0][0]
        penalty = total_penalty(state.regularizer, key, qs, jax.vmap(draw)(keys, qs), prior)
        return bounds(toy(), params, keys, xs).elbo.mean(), penalty

    def objective(params):
        elbo, penalty = parts_of(params)
        return elbo - penalty, (elbo, penalty)

    both = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (value, (elbo, penalty)), slope = both(state.params)
    np.testing.assert_allclose(movement(new, state), RATE * flat(slope), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["objective"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["regularizer"], penalty, rtol=1e-5)
    np.testing.assert_allclose(metrics["elbo"], elbo, rtol=1e-5)


def test_the_prior_learns_from_a_penalty_too():
    """The prior's gradient is that of one shard, though it does not pass through the gather."""
    vae = linear()._replace(
        init=lambda key: {"bias": jnp.zeros(DIM), "prior": jnp.ones(DIM)},
        prior=lambda params: Gaussian(params["prior"], jnp.zeros(DIM)),
    )
    distance = lambda state, key, q, z, p: 2 * jnp.square(z - p.mean()[None, :]).mean()
    regularizer = Regularizer(no_state, distance)
    silent = lambda key, x, **parts: jaxvae.elbo(key, x, **parts)._replace(objective=jnp.zeros(()))
    options = {"objective": silent, "regularizer": regularizer, "axis_name": "devices"}
    step = make_train_step(vae, SGD, **options)
    state, (keys, xs) = init_state(vae, SGD, jax.random.key(0)), batch()
    sharded = jax.jit(jax.vmap(step, (None, 0, 0), axis_name="devices"))
    new, _ = sharded(state, *in_shards(keys, xs))
    draw = lambda key, x: posterior_samples(jax.random.split(key)[1], vae.encode({}, x), 1)[0][0]
    z = jax.jit(jax.vmap(draw))(keys, xs)
    expected = 1 - RATE * 2 * 2 * (1 - z.mean(0)) / DIM
    for i in range(4):
        np.testing.assert_allclose(new.params["prior"][i], expected, rtol=1e-5)


def test_a_discriminator_is_reported_and_carried_and_skipped_with_the_step():
    name = "all"
    state = regularized_state(name)
    new, metrics = regularized(name)(state, *batch())
    assert {"regularizer", "discriminator_loss"} <= set(metrics)
    assert {leaf.shape for leaf in metrics.values()} == {()}
    assert np.abs(flat(new.regularizer) - flat(state.regularizer)).max() > 1e-3
    again, metrics = regularized(name)(new, *bad_batch())
    assert counters(again) == (2, 1, 1)
    chex.assert_trees_all_equal(learned(again), learned(new))


def test_an_update_of_the_regularizer_that_is_not_finite_skips_the_step():
    regularizer = Regularizer(
        init=lambda key: jnp.ones(()),
        penalty=lambda state, key, q, z, prior: jnp.zeros(()),
        update=lambda state, key, q, z: (state * jnp.inf, {}),
    )
    step = jax.jit(make_train_step(linear(), SGD, regularizer=regularizer))
    state = init_state(linear(), SGD, jax.random.key(0), regularizer=regularizer)
    new, metrics = step(state, *batch())
    assert np.isfinite(metrics["objective"])
    assert counters(new) == (1, 1, 1)
    chex.assert_trees_all_equal(learned(new), learned(state))


def test_a_vae_starts_alike_with_a_regularizer_or_not():
    vae = mlp_vae(data_shape=(2,), latent_dim=1, hidden=())
    regularizer = density_ratio(1.0, latent_dim=1, hidden=(2,))
    start = partial(init_state, vae, SGD, jax.random.key(4))
    with_one = start(regularizer=regularizer)
    chex.assert_trees_all_equal(start().params, with_one.params)
    assert start().regularizer == start(regularizer=mmd(1.0)).regularizer == ()


def test_the_state_of_a_regularizer_is_saved_with_the_train_state(tmp_path):
    for name in ("mmd", "density ratio"):
        items = {"training": regularized_state(name)}
        checkpoints = Checkpoints(tmp_path / name)
        checkpoints.save(1, items, {}, None)
        checkpoints.wait()
        restored = checkpoints.restore(1, jax.eval_shape(lambda items=items: items))
        checkpoints.close()
        chex.assert_trees_all_equal(restored, jax.device_get(items))


@pytest.mark.parametrize("carried", [False, True])
def test_a_step_and_a_state_that_differ_about_the_regularizer_are_rejected(carried):
    regularizer = None if carried else REGULARIZERS["density ratio"]
    step = make_train_step(toy(), SGD, regularizer=regularizer)
    state = regularized_state("density ratio") if carried else first_state()
    with pytest.raises(ValueError, match=r"must have the structure.*got.*the same regularizer"):
        jax.eval_shape(step, state, *batch())


def test_a_regularizer_rejects_a_batch_of_one():
    keys, xs = batch()
    for name, regularizer in REGULARIZERS.items():
        step = make_train_step(toy(), SGD, regularizer=regularizer)
        with pytest.raises(ValueError, match="B at least 2"):
            jax.eval_shape(step, regularized_state(name), keys[:1], xs[:1])
