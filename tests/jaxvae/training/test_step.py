"""One training step: its gradient, its metrics, and the steps that it skips."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import jaxvae
from jaxvae.evaluation import count_active_units
from jaxvae.training.state import init_state
from jaxvae.training.step import active_units, make_train_step
from tests.steps import (
    ADAM,
    BATCH,
    DECAY,
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
    jitted_bounds,
    jitted_shards,
    learned,
    linear,
    movement,
    row,
    toy,
)

# Golden


@pytest.mark.parametrize(
    ("likelihood", "objective", "beta"),
    [
        ("bernoulli", partial(jaxvae.elbo, num_samples=3), 0.5),
        ("learned sigma", partial(jaxvae.iwae, num_samples=3), None),
    ],
    ids=["elbo", "iwae"],
)
def test_sgd_follows_the_finite_differences_of_the_objective(likelihood, objective, beta):
    """In float64, central differences of 1e-5 are accurate to 1e-9 for values of order one."""
    with jax.enable_x64(True):
        vae, state, (keys, xs) = toy(likelihood), first_state(likelihood), batch()
        schedules = {"beta": optax.constant_schedule(beta)} if beta else {}
        step = jax.jit(make_train_step(vae, SGD, objective=objective, schedules=schedules))
        new, metrics = step(state, keys, xs)
        start, unravel = ravel_pytree(state.params)
        bound = partial(objective, beta=beta) if beta else objective

        def means(params):
            terms = bounds(vae, unravel(params), keys, xs, bound)
            return terms.objective.mean(), terms.elbo.mean()

        shifts = 1e-5 * np.concatenate([0 * np.eye(1, start.size), np.eye(start.size)])
        both_ways = start[None] + np.concatenate([shifts, -shifts])
        values, elbos = jax.device_get(jax.jit(jax.vmap(means))(both_ways))
    above, below = np.split(values, 2)
    slope = (above - below)[1:] / 2e-5
    np.testing.assert_allclose(movement(new, state), RATE * slope, rtol=0, atol=1e-8)
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(slope), rtol=1e-6)
    np.testing.assert_allclose(metrics["objective"], above[0], rtol=1e-12)
    np.testing.assert_allclose(metrics["elbo"], elbos[0], rtol=1e-12)


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (40, 0.82), (200, DECAY)])
def test_the_average_is_that_of_numpy(step, decay):
    """Its decay is (1 + step) / (10 + step) until that exceeds the given decay."""
    state = first_state(optimizer=ADAM, averaging=True)
    average = jax.tree.map(lambda leaf: leaf + 1, state.params)
    state = state._replace(average=average, step=jnp.int32(step))
    new, _ = jitted("bernoulli", ADAM, DECAY)(state, *batch())
    expected = decay * flat(average) + (1 - decay) * flat(new.params)
    np.testing.assert_allclose(flat(new.average), expected, rtol=1e-5, atol=1e-6)


def test_active_units_are_those_of_numpy():
    """Over all devices' rows: variances are around 0.01, and differ between shards and batch."""
    keys, xs = batch()
    vae = linear(jnp.array([0.0, 0.1, 0.19, 0.22, 1.0]))
    step = make_train_step(vae, SGD, axis_name="devices")
    sharded = jax.jit(jax.vmap(step, (None, 0, 0), axis_name="devices"))
    _, metrics = sharded(init_state(vae, SGD, jax.random.key(0)), *in_shards(keys, xs))
    means = np.asarray(jax.vmap(partial(vae.encode, {}))(xs).mean(), np.float64)
    expected = count_active_units(means)
    assert 0 < expected < DIM
    assert np.abs(means.var(0) / 0.01 - 1).min() > 0.05
    assert [count_active_units(shard) for shard in np.split(means, 4)] != [expected] * 4
    np.testing.assert_array_equal(metrics["active_units"], [expected] * 4)


def test_active_units_of_moments():
    assert active_units(jnp.array([1.0, 1.0, 0.0]), jnp.array([1.009, 1.02, 0.011])) == 2


# Law


@pytest.mark.parametrize("likelihood", ["bernoulli", "optimal sigma"])
def test_training_raises_the_elbo(likelihood):
    """It rises by more than 4 standard errors on 8 fixed examples with new draws every step."""
    step, state = jitted(likelihood, ADAM, DECAY), first_state(likelihood, ADAM, averaging=True)
    _, xs = batch()
    elbos = []
    for keys in jax.random.split(jax.random.key(1), (200, BATCH)):
        state, metrics = step(state, keys, xs)
        elbos.append(float(metrics["elbo"]))
    first, last = np.array(elbos[:20]), np.array(elbos[-20:])
    error = np.sqrt((first.var() + last.var()) / 20)
    assert last.mean() - first.mean() > max(0.5, 4 * error)


def test_metrics_are_means_over_the_batch():
    state, (keys, xs) = first_state(), batch()
    _, metrics = jitted("bernoulli", SGD)(state, keys, xs)
    means = {"objective", "elbo", "reconstruction", "kl"}
    counts = {"active_units", "skipped", "skipped_in_row"}
    assert set(metrics) == means | counts | {"gradient_norm"}
    assert {leaf.shape for leaf in metrics.values()} == {()}
    expected = jitted_bounds(toy(), state.params, keys, xs)
    for name in means:
        np.testing.assert_allclose(metrics[name], getattr(expected, name).mean(), rtol=1e-5)
    rounding = 1e-6 * (abs(metrics["reconstruction"]) + metrics["kl"])
    assert abs(metrics["elbo"] - (metrics["reconstruction"] - metrics["kl"])) <= rounding
    assert (metrics["skipped"], metrics["skipped_in_row"]) == (0, 0)


def test_four_shards_are_one_batch():
    """SGD reveals a gradient that is summed instead of averaged."""
    state, (keys, xs) = first_state(), batch()
    whole = jitted("bernoulli", SGD)(state, keys, xs)
    sharded = jitted_shards()(state, *in_shards(keys, xs))
    for i in range(4):
        chex.assert_trees_all_close(row(sharded, i), whole, rtol=1e-5, atol=1e-6)


def test_beta_follows_its_schedule_and_leaves_the_elbo_alone():
    betas, state = [0.0, 0.25, 2.0], first_state()
    schedules = {"beta": lambda step: jnp.array(betas)[step]}
    step = jax.jit(make_train_step(toy(), SGD, schedules=schedules))
    for beta in betas:
        expected = jitted_bounds(toy(), state.params, *batch()).elbo.mean()
        state, metrics = step(state, *batch())
        assert metrics["beta"] == beta
        np.testing.assert_allclose(metrics["elbo"], expected, rtol=1e-5)
        objective = metrics["reconstruction"] - beta * metrics["kl"]
        np.testing.assert_allclose(metrics["objective"], objective, rtol=1e-5)


def test_prepare_and_bound_get_keys_of_their_own():
    """Each adds a uniform number of its key to what it is given: here the stored example.

    The sum comes out as the metric elbo, the bound's own number as the objective.
    """
    keys, _ = batch()
    stored = np.full((1, DIM), 51, np.uint8)

    def objective(key, x, **parts):
        bound = jaxvae.elbo(key, x, **parts)
        return bound._replace(objective=jax.random.uniform(key) + 0 * bound.elbo, elbo=x[0])

    prepare = lambda key, x: x / 255.0 + jax.random.uniform(key)
    step = jax.jit(make_train_step(linear(), SGD, objective=objective, prepare=prepare))
    state, values = init_state(linear(), SGD, jax.random.key(0)), []
    for i in range(2):
        _, metrics = step(state, keys[i : i + 1], stored)
        key_data, key_bound = jax.random.split(keys[i])
        np.testing.assert_allclose(metrics["elbo"], 0.2 + jax.random.uniform(key_data), rtol=1e-6)
        np.testing.assert_allclose(metrics["objective"], jax.random.uniform(key_bound), rtol=1e-6)
        values += [metrics["elbo"] - 0.2, metrics["objective"], jax.random.uniform(keys[i])]
    assert np.diff(np.sort(values)).min() > 1e-3


@pytest.mark.parametrize("likelihood", ["bernoulli", "optimal sigma"])
def test_a_batch_that_is_not_finite_changes_only_the_counters(likelihood):
    """Good, bad, bad, good: the result is that of only the good batches, at steps 0 and 3."""
    step, state = jitted(likelihood, ADAM, DECAY), first_state(likelihood, ADAM, averaging=True)
    first, _ = step(state, *batch())
    assert counters(first) == (1, 0, 0)
    second, metrics = step(first, *bad_batch())
    assert counters(second) == (2, 1, 1)
    assert (metrics["skipped"], metrics["skipped_in_row"]) == (1, 1)
    third, metrics = step(second, *bad_batch())
    assert counters(third) == (3, 2, 2)
    assert (metrics["skipped"], metrics["skipped_in_row"]) == (2, 2)
    chex.assert_trees_all_equal(learned(second), learned(first))
    chex.assert_trees_all_equal(learned(third), learned(first))
    fourth, metrics = step(third, *batch(2))
    assert counters(fourth) == (4, 2, 0)
    assert (metrics["skipped"], metrics["skipped_in_row"]) == (2, 0)
    assert np.abs(movement(fourth, first)).max() > 1e-3
    alone, _ = step(first._replace(step=jnp.int32(3)), *batch(2))
    for part in ("encoder", "decoder"):
        chex.assert_trees_all_equal(fourth.params[part], alone.params[part])
    chex.assert_trees_all_equal(fourth.opt_state, alone.opt_state)


@pytest.mark.parametrize(
    ("add", "which"),
    [(lambda value: jnp.inf, "objective"), (jnp.sqrt, "gradient_norm")],
    ids=["objective", "gradient"],
)
def test_an_objective_or_gradient_that_is_not_finite_skips_the_step(add, which):
    """Each alone: an infinite constant, and sqrt at 0 with its slope of 0 * inf.

    The update is finite: this optimizer makes zeros of what is not a number.
    """

    def objective(key, x, **parts):
        bound = jaxvae.elbo(key, x, **parts)
        return bound._replace(objective=bound.objective + add(0 * bound.reconstruction))

    hiding = optax.chain(optax.zero_nans(), SGD)
    step = jax.jit(make_train_step(linear(), hiding, objective=objective))
    state = init_state(linear(), hiding, jax.random.key(0))
    new, metrics = step(state, *batch())
    finite = {name for name in ("objective", "gradient_norm") if np.isfinite(metrics[name])}
    assert finite == {"objective", "gradient_norm"} - {which}
    assert counters(new) == (1, 1, 1)
    chex.assert_trees_all_equal(learned(new), learned(state))


def test_an_update_that_overflows_is_noticed_by_the_next_step():
    """A nearly infinite momentum overflows with a finite gradient; callers must not save that."""
    state = first_state(optimizer=ADAM, averaging=True)
    moments = state.opt_state[0]
    huge = moments._replace(mu=jax.tree.map(lambda leaf: jnp.full_like(leaf, 3e38), moments.mu))
    state = state._replace(opt_state=(huge, *state.opt_state[1:]))
    overflown, metrics = jitted("bernoulli", ADAM, DECAY)(state, *batch())
    assert np.isfinite([metrics["objective"], metrics["gradient_norm"]]).all()
    new, _ = jitted("bernoulli", ADAM, DECAY)(overflown, *batch())
    assert counters(new) == (2, 1, 1)
    chex.assert_trees_all_equal(learned(new), learned(overflown))


def test_one_bad_shard_skips_the_step_of_all():
    state = first_state()
    new, metrics = jitted_shards()(state, *in_shards(*bad_batch()))
    np.testing.assert_array_equal(metrics["skipped"], [1] * 4)
    for i in range(4):
        assert counters(row(new, i)) == (1, 1, 1)
        chex.assert_trees_all_equal(learned(row(new, i)), learned(state))


def test_clipping_and_micro_batches_are_optaxs():
    """The step is 0.1 times the unit gradient; two halves give it, even with a bad one between."""
    keys, xs = batch()
    free, metrics = jitted("bernoulli", SGD)(first_state(), keys, xs)
    clip = optax.chain(optax.clip_by_global_norm(1.0), SGD)
    state = first_state(optimizer=clip)
    clipped, others = jitted("bernoulli", clip)(state, keys, xs)
    assert metrics["gradient_norm"] > 2
    np.testing.assert_allclose(others["gradient_norm"], metrics["gradient_norm"], rtol=1e-6)
    expected = movement(free, state) / metrics["gradient_norm"]
    np.testing.assert_allclose(movement(clipped, state), expected, rtol=0, atol=1e-6)
    halves = optax.MultiSteps(clip, 2).gradient_transformation()
    step, state = jitted("bernoulli", halves), first_state(optimizer=halves)
    half, _ = step(state, keys[:4], xs[:4])
    chex.assert_trees_all_equal(half.params, state.params)
    spoilt, _ = step(half, keys[4:], xs[4:] * jnp.nan)
    assert counters(spoilt) == (2, 1, 1)
    full, _ = step(spoilt, keys[4:], xs[4:])
    np.testing.assert_allclose(movement(full, state), expected, rtol=0, atol=1e-6)


def test_evaluation_params_are_the_average_where_there_is_one():
    state = first_state(averaging=True)
    chex.assert_trees_all_equal(state.average, state.params)
    assert state.evaluation_params() is state.average
    assert state._replace(average=None).evaluation_params() is state.params
    assert first_state().average is None


# Transform


def test_every_step_is_the_same_program():
    """There is one trace for all steps, skipped or not."""
    chex.clear_trace_counter()
    step, state = make_train_step(linear(), ADAM), init_state(linear(), ADAM, jax.random.key(0))
    step = jax.jit(chex.assert_max_traces(step, 1))
    for examples in (batch(), bad_batch(), batch(2)):
        state, _ = step(state, *examples)
    assert counters(step(state._replace(step=jnp.int32(10_000)), *batch())[0]) == (10_001, 1, 0)


# Failure


@pytest.mark.parametrize("averaging", [False, True])
def test_a_step_and_a_state_that_differ_about_the_average_are_rejected(averaging):
    """Otherwise evaluation would use an average that no step updates."""
    step = make_train_step(toy(), SGD, average_decay=None if averaging else 0.9)
    with pytest.raises(ValueError, match="average"):
        jax.eval_shape(step, first_state(averaging=averaging), *batch())


def test_an_empty_batch_is_rejected():
    """Otherwise its mean would be NaN, and every step would be skipped."""
    keys, xs = batch()
    step = make_train_step(toy(), SGD)
    with pytest.raises(ValueError, match="at least one example, got none"):
        jax.eval_shape(step, first_state(), keys[:0], xs[:0])
