"""One training step: the gradient it follows, what it reports, and when it changes nothing.

`jax.vmap` with an axis name stands in for the devices; `test_parallel` has the real ones.
"""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import jaxvae
from jaxvae import Bernoulli, Gaussian
from jaxvae.bounds import posterior_samples
from jaxvae.training import MIN_VARIANCE, active_units, init_state, make_train_step
from jaxvae.vae import VAE, mlp_vae

BATCH, DIM = 8, 5
OPTIMAL = {"likelihood": "gaussian", "sigma": "optimal"}
LEARNED = {"likelihood": "gaussian", "sigma": "learned"}


@cache
def drawn_params(**arguments):
    """Drawn by numpy: flax's own start takes seconds to compile."""
    vae = mlp_vae(data_shape=(DIM,), latent_dim=2, hidden=(6,), **arguments)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(vae.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(scale=0.4, size=leaf.shape), shapes)


def toy(**arguments):
    """A small network whose parameters have the default float type."""
    params = drawn_params(**arguments)
    return mlp_vae(data_shape=(DIM,), latent_dim=2, hidden=(6,), **arguments)._replace(
        init=lambda key: jax.tree.map(jnp.array, params)
    )


def batch(seed=0):
    """Keys [BATCH] and examples [BATCH, DIM] of zeros and ones."""
    rng = np.random.default_rng(seed)
    keys = jax.random.split(jax.random.key(seed), BATCH)
    return keys, jnp.asarray(rng.integers(0, 2, (BATCH, DIM)), float)


def parts(vae, params):
    return {
        "encode": partial(vae.encode, params),
        "decode": partial(vae.decode, params),
        "prior": vae.prior(params),
    }


def bounds(vae, params, keys, xs, objective=jaxvae.elbo):
    """The bound of each row, with the second of the two keys that its key is split into."""

    def of_one(key, x):
        return objective(jax.random.split(key)[1], x, **parts(vae, params))

    return jax.vmap(of_one)(keys, xs)


def squared_error(vae, params, keys, xs):
    """Mean squared error per dimension at the draws that the bounds make."""

    def of_one(key, x):
        z, _ = posterior_samples(jax.random.split(key)[1], vae.encode(params, x), 1)
        return jnp.square(x - vae.decode(params, z[0]).mean()).mean()

    return jax.vmap(of_one)(keys, xs).mean()


def starting(vae, optimizer, **options):
    """The jitted step and the first state."""
    step = jax.jit(make_train_step(vae, optimizer, **options))
    averaging = "average_decay" in options
    return step, init_state(vae, optimizer, jax.random.key(0), averaging=averaging)


def in_shards(step, state, keys, xs, num=4):
    """The step on `num` shards of the batch; the results of each, [num, ...]."""
    rows = (keys.reshape(num, -1), xs.reshape(num, -1, xs.shape[1]))
    return jax.jit(jax.vmap(step, (None, 0, 0), axis_name="devices"))(state, *rows)


def learned_part(state):
    """All that a skipped step must leave alone."""
    return state._replace(step=0, skipped=0, skipped_in_row=0)


def counters(state):
    return int(state.step), int(state.skipped), int(state.skipped_in_row)


# Golden


@pytest.mark.parametrize(
    ("arguments", "objective", "beta"),
    [
        ({}, jaxvae.elbo, None),
        ({}, partial(jaxvae.elbo, num_samples=3), 0.5),
        (LEARNED, partial(jaxvae.iwae, num_samples=3), None),
    ],
    ids=["elbo", "beta", "iwae"],
)
def test_sgd_follows_the_finite_differences_of_the_objective(arguments, objective, beta):
    """In float64, where central differences of 1e-5 are good for 1e-9 of values of order one."""
    with jax.enable_x64(True):
        vae, (keys, xs) = toy(**arguments), batch()
        schedule = beta and optax.constant_schedule(beta)
        options = {"objective": objective, "beta": schedule}
        step, state = starting(vae, optax.sgd(0.1), **options)
        new, metrics = step(state, keys, xs)
        flat, unravel = ravel_pytree(state.params)
        bound = partial(objective, beta=beta) if beta else objective

        def mean_objective(flat):
            return bounds(vae, unravel(flat), keys, xs, bound).objective.mean()

        shifts = 1e-5 * jnp.eye(flat.size)
        values = jax.jit(jax.vmap(mean_objective))(
            jnp.concatenate([flat[None] + shifts, flat[None] - shifts])
        )
        slope = (values[: flat.size] - values[flat.size :]) / 2e-5
        moved = ravel_pytree(new.params)[0] - flat
    np.testing.assert_allclose(moved, 0.1 * slope, rtol=0, atol=1e-8)
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(slope), rtol=1e-6)


def test_the_average_is_that_of_numpy():
    """Its decay is (1 + t) / (10 + t) for t = 0 and 1, then 0.2."""
    step, state = starting(toy(), optax.sgd(0.1), average_decay=0.2)
    expected = jax.tree.map(np.asarray, state.params)
    for t in range(4):
        state, _ = step(state, *batch(t))
        decay = min(0.2, (1 + t) / (10 + t))
        expected = jax.tree.map(
            lambda old, new, decay=decay: decay * old + (1 - decay) * np.asarray(new),
            *(expected, state.params),
        )
        chex.assert_trees_all_close(state.average, expected, rtol=1e-5, atol=1e-6)
    assert state.evaluation_params() is state.average
    assert state._replace(average=None).evaluation_params() is state.params


def test_active_units_are_those_of_numpy():
    """Means x_z * scale_z, scales such that the variances lie around 0.01."""
    scales = jnp.array([0.0, 0.1, 0.19, 0.21, 1.0])
    vae = VAE(
        init=lambda key: {"bias": jnp.zeros(DIM)},
        encode=lambda params, x: Gaussian(3.0 + x * scales, jnp.zeros(DIM)),
        decode=lambda params, z: Bernoulli(z + params["bias"]),
        prior=lambda params: Gaussian.standard(DIM),
    )
    keys, xs = batch()
    variances = np.var(3 + np.asarray(xs, np.float64) * scales, axis=0)
    expected = (variances > 0.01).sum()
    assert 0 < expected < DIM
    assert np.abs(variances / 0.01 - 1).min() > 0.05
    step, state = starting(vae, optax.sgd(0.1))
    assert step(state, keys, xs)[1]["active_units"] == expected
    step = make_train_step(vae, optax.sgd(0.1), axis_name="devices")
    _, metrics = in_shards(step, state, keys, xs)
    np.testing.assert_array_equal(metrics["active_units"], [expected] * 4)


def test_active_units_of_moments():
    assert active_units(jnp.array([1.0, 1.0, 0.0]), jnp.array([1.009, 1.02, 0.011])) == 2


# Law


@pytest.mark.parametrize("arguments", [{}, LEARNED, OPTIMAL], ids=["bernoulli", *"lo"])
def test_training_raises_the_elbo(arguments):
    """On 8 fixed examples, new draws every step: by more than 4 standard errors."""
    step, state = starting(toy(**arguments), optax.adam(1e-2))
    _, xs = batch()
    keys = jax.random.split(jax.random.key(1), (200, BATCH))
    _, metrics = jax.lax.scan(lambda state, keys: step(state, keys, xs), state, keys)
    first, last = np.asarray(metrics["elbo"][:20]), np.asarray(metrics["elbo"][-20:])
    error = np.sqrt((first.var() + last.var()) / 20)
    assert last.mean() - first.mean() > max(0.5, 4 * error)


def test_metrics_are_means_over_the_batch():
    vae, (keys, xs) = toy(), batch()
    step, state = starting(vae, optax.sgd(0.1))
    _, metrics = step(state, keys, xs)
    means = {"objective", "elbo", "log_likelihood", "kl"}
    counts = {"active_units", "skipped", "skipped_in_row"}
    assert set(metrics) == means | counts | {"gradient_norm"}
    assert {leaf.shape for leaf in metrics.values()} == {()}
    expected = jax.jit(partial(bounds, vae))(state.params, keys, xs)
    for name in means:
        np.testing.assert_allclose(metrics[name], getattr(expected, name).mean(), rtol=1e-5)
    rounding = 1e-6 * (abs(metrics["log_likelihood"]) + metrics["kl"])
    assert abs(metrics["elbo"] - (metrics["log_likelihood"] - metrics["kl"])) <= rounding
    assert (metrics["skipped"], metrics["skipped_in_row"]) == (0, 0)


@pytest.mark.parametrize("arguments", [{}, OPTIMAL], ids=["bernoulli", "optimal sigma"])
def test_four_shards_are_one_batch(arguments):
    """SGD, so that a gradient summed instead of averaged shows."""
    vae, (keys, xs) = toy(**arguments), batch()
    step, state = starting(vae, optax.sgd(0.1))
    whole = step(state, keys, xs)
    sharded = in_shards(make_train_step(vae, optax.sgd(0.1), axis_name="devices"), state, keys, xs)
    for i in range(4):
        shard = jax.tree.map(lambda leaf, i=i: leaf[i], sharded)
        chex.assert_trees_all_close(shard, whole, rtol=1e-5, atol=1e-6)


def test_beta_follows_its_schedule_and_leaves_the_elbo_alone():
    betas = [0.0, 0.25, 2.0]
    step, state = starting(toy(), optax.sgd(0.1), beta=lambda step: jnp.array(betas)[step])
    for beta in betas:
        expected = bounds(toy(), state.params, *batch()).elbo.mean()
        state, metrics = step(state, *batch())
        assert metrics["beta"] == beta
        np.testing.assert_allclose(metrics["elbo"], expected, rtol=1e-5)
        np.testing.assert_allclose(
            metrics["objective"], metrics["log_likelihood"] - beta * metrics["kl"], rtol=1e-5
        )


def test_another_objective_is_reported_beside_the_elbo():
    vae, (keys, xs) = toy(), batch()
    iwae = partial(jaxvae.iwae, num_samples=5)
    step, state = starting(vae, optax.sgd(0.1), objective=iwae)
    _, metrics = step(state, keys, xs)
    expected = jax.jit(partial(bounds, vae, objective=iwae))(state.params, keys, xs)
    weights = np.asarray(expected.log_weights, np.float64)
    np.testing.assert_allclose(
        metrics["objective"], np.log(np.exp(weights).mean(1)).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(metrics["elbo"], expected.elbo.mean(), rtol=1e-5)


def test_data_and_bound_get_keys_of_their_own():
    """Uniform numbers of `prepare`'s key come out as the elbo, those of the bound's as objective."""
    keys, xs = batch()

    def objective(key, x, *, encode, decode, prior):
        bound = jaxvae.elbo(key, x, encode=encode, decode=decode, prior=prior)
        return bound._replace(objective=jax.random.uniform(key) + 0 * bound.elbo, elbo=x[0])

    prepare = lambda key, x: jnp.full(DIM, jax.random.uniform(key))
    step, state = starting(toy(), optax.sgd(0.1), objective=objective, prepare=prepare)
    values = []
    for row in range(2):
        _, metrics = step(state, keys[row : row + 1], xs[row : row + 1])
        of_data, of_bound = jax.random.split(keys[row])
        assert metrics["elbo"] == jax.random.uniform(of_data)
        assert metrics["objective"] == jax.random.uniform(of_bound)
        values += [metrics["elbo"], metrics["objective"], jax.random.uniform(keys[row])]
    assert len({float(value) for value in values}) == 6


def test_prepare_sees_the_example_as_it_is_stored():
    keys, xs = batch()
    stored = np.asarray(255 * xs, np.uint8)
    scaled, state = starting(toy(), optax.sgd(0.1), prepare=lambda key, x: x / 255.0)
    plain, _ = starting(toy(), optax.sgd(0.1))
    chex.assert_trees_all_close(scaled(state, keys, stored), plain(state, keys, xs), rtol=1e-6)


def spoiled(reason):
    """Options of a step and a batch with which it must be skipped."""
    keys, xs = batch(1)

    def no_gradient(key, x, **parts):
        """Finite itself, with a gradient 0 * inf."""
        bound = jaxvae.elbo(key, x, **parts)
        return bound._replace(objective=bound.objective + jnp.sqrt(0 * bound.kl))

    return {
        "data": ({}, keys, xs.at[3, 1].set(jnp.nan)),
        "objective": ({}, keys, xs.at[3, 1].set(jnp.inf)),
        "gradient": ({"objective": no_gradient}, keys, xs),
    }[reason]


@pytest.mark.parametrize("arguments", [{}, OPTIMAL], ids=["bernoulli", "optimal sigma"])
def test_a_batch_that_is_not_finite_leaves_nothing_but_its_count(arguments):
    """Good, bad, bad, good: as if only the good ones had been, at steps 0 and 3."""
    step, state = starting(toy(**arguments), optax.adam(1e-2), average_decay=0.9)
    bad = spoiled("data")[1:]
    first, _ = step(state, *batch())
    assert counters(first) == (1, 0, 0)
    second, metrics = step(first, *bad)
    assert counters(second) == (2, 1, 1)
    assert (metrics["skipped"], metrics["skipped_in_row"]) == (1, 1)
    third, metrics = step(second, *bad)
    assert counters(third) == (3, 2, 2)
    assert (metrics["skipped"], metrics["skipped_in_row"]) == (2, 2)
    chex.assert_trees_all_equal(learned_part(second), learned_part(first))
    chex.assert_trees_all_equal(learned_part(third), learned_part(first))
    fourth, metrics = step(third, *batch(2))
    assert counters(fourth) == (4, 2, 0)
    assert (metrics["skipped"], metrics["skipped_in_row"]) == (2, 0)
    assert np.isfinite(ravel_pytree(learned_part(fourth))[0]).all()
    assert np.abs(ravel_pytree(fourth.params)[0] - ravel_pytree(first.params)[0]).max() > 1e-3
    if not arguments:
        alone, _ = step(first._replace(step=jnp.int32(3)), *batch(2))
        chex.assert_trees_all_equal(learned_part(fourth), learned_part(alone))


@pytest.mark.parametrize("reason", ["data", "objective", "gradient"])
def test_what_is_not_finite_anywhere_skips_the_step(reason):
    options, keys, xs = spoiled(reason)
    step, state = starting(toy(), optax.sgd(0.1), **options)
    new, metrics = step(state, keys, xs)
    assert np.isfinite(metrics["objective"]) == (reason == "gradient")
    assert counters(new) == (1, 1, 1)
    chex.assert_trees_all_equal(learned_part(new), learned_part(state))


def test_an_update_that_overflows_skips_the_step():
    step, state = starting(toy(), optax.sgd(3e38, momentum=0.9), average_decay=0.9)
    new, metrics = step(state, *batch())
    assert np.isfinite([metrics["objective"], metrics["gradient_norm"]]).all()
    assert counters(new) == (1, 1, 1)
    chex.assert_trees_all_equal(learned_part(new), learned_part(state))


def test_one_bad_shard_stops_them_all():
    step = make_train_step(toy(), optax.adam(1e-2), axis_name="devices")
    state = init_state(toy(), optax.adam(1e-2), jax.random.key(0))
    _, keys, xs = spoiled("data")
    new, metrics = in_shards(step, state, keys, xs)
    np.testing.assert_array_equal(metrics["skipped"], [1] * 4)
    for i in range(4):
        shard = jax.tree.map(lambda leaf, i=i: leaf[i], new)
        assert counters(shard) == (1, 1, 1)
        chex.assert_trees_all_equal(learned_part(shard), learned_part(state))


@pytest.mark.parametrize("clip", [None, 0.1])
def test_micro_batches_make_one_step_of_all_their_rows(clip):
    """Also if one that is not finite comes between; the clipping is of their mean gradient."""
    sgd = optax.sgd(1.0)
    inner = sgd if clip is None else optax.chain(optax.clip_by_global_norm(clip), sgd)
    keys, xs = batch()
    one, state = starting(toy(), inner)
    expected, _ = one(state, keys, xs)
    step, state = starting(toy(), optax.MultiSteps(inner, 2).gradient_transformation())
    half, _ = step(state, keys[:4], xs[:4])
    chex.assert_trees_all_equal(half.params, state.params)
    spoilt, _ = step(half, keys[4:], xs[4:] * jnp.nan)
    assert counters(spoilt) == (2, 1, 1)
    full, _ = step(spoilt, keys[4:], xs[4:])
    chex.assert_trees_all_close(full.params, expected.params, rtol=1e-5, atol=1e-6)


def test_a_clipped_gradient_moves_by_the_clip_and_is_reported_whole():
    plain, state = starting(toy(), optax.sgd(1.0))
    clipped, _ = starting(toy(), optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(1.0)))
    free, metrics = plain(state, *batch())
    held, others = clipped(state, *batch())
    move = lambda new: ravel_pytree(new.params)[0] - ravel_pytree(state.params)[0]
    assert metrics["gradient_norm"] > 0.2
    np.testing.assert_allclose(others["gradient_norm"], metrics["gradient_norm"], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(move(held)), 0.1, rtol=1e-4)
    np.testing.assert_allclose(move(held) * metrics["gradient_norm"] / 0.1, move(free), atol=1e-5)


def test_an_optimal_sigma_is_that_of_the_batch():
    """There a log-likelihood is -D/2 log(2 pi e MSE), whatever the network does."""
    vae, (keys, xs) = toy(**OPTIMAL), batch()
    step, state = starting(vae, optax.sgd(0.1))
    _, metrics = step(state, keys, xs)
    error = jax.jit(partial(squared_error, vae))(state.params, keys, xs)
    expected = -0.5 * DIM * np.log(2 * np.pi * np.e * error)
    np.testing.assert_allclose(metrics["log_likelihood"], expected, rtol=1e-5)


def test_evaluation_has_the_running_sigma():
    """The mean of all steps so far at first, an exponential average of 0.99 from step 100 on."""
    vae = toy(**OPTIMAL)
    step, state = starting(vae, optax.sgd(0.1))
    error_of = jax.jit(partial(squared_error, vae))
    errors = []
    for t in range(3):
        errors.append(error_of(state.params, *batch(t)))
        state, _ = step(state, *batch(t))
        np.testing.assert_allclose(state.squared_error, np.mean(errors), rtol=1e-5)
        log_scale = state.evaluation_params()["likelihood"]["log_scale"]
        np.testing.assert_allclose(log_scale, 0.5 * np.log(np.mean(errors)), rtol=1e-5)
    state = state._replace(step=jnp.int32(500), squared_error=jnp.float32(2.0))
    expected = 0.99 * 2.0 + 0.01 * error_of(state.params, *batch())
    np.testing.assert_allclose(step(state, *batch())[0].squared_error, expected, rtol=1e-5)


def test_other_likelihoods_have_no_running_error():
    step, state = starting(toy(**LEARNED), optax.sgd(0.1))
    assert step(state, *batch())[0].squared_error == 0


def test_gradient_at_an_optimal_sigma_is_the_total_derivative():
    """The envelope theorem: that sigma itself depends on the network adds nothing at its optimum."""
    vae, (keys, xs) = toy(**OPTIMAL), batch()
    step, state = starting(vae, optax.sgd(1.0))
    new, _ = step(state, keys, xs)

    def loss(params):
        log_scale = 0.5 * jnp.log(squared_error(vae, params, keys, xs))

        def of_one(key, x):
            decode = lambda z: Gaussian(vae.decode(params, z).mean(), log_scale)
            functions = parts(vae, params) | {"decode": decode}
            return jaxvae.elbo(jax.random.split(key)[1], x, **functions).elbo

        return -jax.vmap(of_one)(keys, xs).mean()

    total = jax.jit(jax.grad(loss))(state.params)
    for part in ("encoder", "decoder"):
        slope = ravel_pytree(total[part])[0]
        moved = ravel_pytree(new.params[part])[0] - ravel_pytree(state.params[part])[0]
        np.testing.assert_allclose(-moved, slope, rtol=0, atol=1e-5 * np.abs(slope).max())


def test_an_optimal_sigma_has_a_floor():
    """A decoder without any error would have sigma = 0."""
    vae = VAE(
        init=lambda key: {"bias": jnp.zeros(DIM), "log_scale": jnp.zeros(())},
        encode=lambda params, x: Gaussian(x, jnp.zeros(DIM)),
        decode=lambda params, z: Gaussian(params["bias"], params["log_scale"]),
        prior=lambda params: Gaussian.standard(DIM),
        with_log_scale=lambda params, log_scale: params | {"log_scale": log_scale},
    )
    step, state = starting(vae, optax.sgd(0.1))
    new, metrics = step(state, batch()[0], jnp.zeros((BATCH, DIM)))
    assert counters(new) == (1, 0, 0)
    np.testing.assert_allclose(new.params["log_scale"], 0.5 * np.log(MIN_VARIANCE), rtol=1e-6)
    expected = -0.5 * DIM * np.log(2 * np.pi * MIN_VARIANCE)
    np.testing.assert_allclose(metrics["log_likelihood"], expected, rtol=1e-5)


def test_a_skipped_first_step_is_no_observation_of_sigma():
    vae = toy(**OPTIMAL)
    step, state = starting(vae, optax.sgd(0.1))
    state, _ = step(state, *spoiled("data")[1:])
    new, _ = step(state, *batch())
    error = squared_error(vae, state.params, *batch())
    np.testing.assert_allclose(new.squared_error, error, rtol=1e-5)


# Transform


def test_eager_is_jit_in_one_trace():
    chex.clear_trace_counter()
    step = make_train_step(toy(), optax.adam(1e-2))
    jitted = jax.jit(chex.assert_max_traces(step, 1))
    state = init_state(toy(), optax.adam(1e-2), jax.random.key(0))
    once = jitted(state, *batch())
    with jax.disable_jit():
        chex.assert_trees_all_close(step(state, *batch()), once, rtol=1e-4, atol=1e-5)
    jitted(once[0], *batch(1))


def test_an_optimal_sigma_costs_no_second_forward_pass():
    """XLA merges it with that of the bound: by its own count of operations, to 2 %."""

    def flops(arguments):
        vae = mlp_vae(data_shape=(64,), latent_dim=8, hidden=(64, 32), **arguments)
        step, optimizer = make_train_step(vae, optax.sgd(0.1)), optax.sgd(0.1)
        inputs = jax.eval_shape(
            lambda key: (
                *(init_state(vae, optimizer, key), jax.random.split(key, 32)),
                jnp.zeros((32, 64)),
            ),
            jax.random.key(0),
        )
        return jax.jit(step).lower(*inputs).compile().cost_analysis()["flops"]

    assert flops(OPTIMAL) < 1.02 * flops(LEARNED)


# Failure


@pytest.mark.parametrize("averaging", [False, True])
def test_a_state_without_the_steps_average_is_refused(averaging):
    """Else evaluation would read an average that nothing moves."""
    optimizer = optax.sgd(0.1)
    step = make_train_step(toy(), optimizer, average_decay=None if averaging else 0.9)
    state = init_state(toy(), optimizer, jax.random.key(0), averaging=averaging)
    with pytest.raises(ValueError, match="average"):
        jax.eval_shape(step, state, *batch())
