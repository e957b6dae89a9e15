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
from jaxvae.checkpoints import Checkpoints
from jaxvae.evaluation import count_active_units
from jaxvae.parallel import AXIS, make_chunk_step, make_mesh, replicate, shard
from jaxvae.regularizers import Regularizer, density_ratio, dip, mmd, no_state, total_correlation
from jaxvae.state import init_state
from jaxvae.training import MIN_VARIANCE, active_units, make_train_step
from jaxvae.vae import VAE, mlp_vae

BATCH, DIM, RATE, DECAY = 8, 5, 0.1, 0.9
SGD, ADAM = optax.sgd(RATE), optax.adam(1e-2)
REGULARIZERS = {
    "total correlation": total_correlation(0.5, num_data=40),
    "dip": dip("ii", off_diagonal=0.2, diagonal=0.1),
    "mmd": mmd(1.0),
    "density ratio": density_ratio(0.5, latent_dim=2, hidden=(4,), optimizer=SGD),
}
EACH = tuple(REGULARIZERS)
LIKELIHOODS = {
    "bernoulli": {},
    "learned sigma": {"likelihood": "gaussian", "sigma": "learned"},
    "optimal sigma": {"likelihood": "gaussian", "sigma": "optimal"},
}


@cache
def toy(likelihood="bernoulli"):
    """A small network whose start is drawn by numpy: flax's own takes seconds to compile."""
    vae = mlp_vae(data_shape=(DIM,), latent_dim=2, hidden=(6,), **LIKELIHOODS[likelihood])
    shapes = jax.eval_shape(vae.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(scale=0.4, size=leaf.shape), shapes)
    to_default_float = lambda leaf: jnp.asarray(leaf, float)
    return vae._replace(init=lambda key: jax.tree.map(to_default_float, params))


def linear(scales=1.0):
    """Without a network: q(z|x) = N(3 + scales * x, I), and p(x|z) with logits z + bias."""
    return VAE(
        init=lambda key: {"bias": jnp.zeros(DIM)},
        encode=lambda params, x: Gaussian(3.0 + x * scales, jnp.zeros(DIM)),
        decode=lambda params, z: Bernoulli(z + params["bias"]),
        prior=lambda params: Gaussian.standard(DIM),
    )


def batch(seed=0):
    """Keys [BATCH] and examples [BATCH, DIM] of zeros and ones."""
    xs = np.random.default_rng(seed).integers(0, 2, (BATCH, DIM))
    return jax.random.split(jax.random.key(seed), BATCH), jnp.asarray(xs, float)


def bad_batch():
    keys, xs = batch(1)
    return keys, xs.at[3, 1].set(jnp.nan)


@cache
def jitted(likelihood, optimizer, average_decay=None):
    """The steps that several tests share, since compiling is what takes their time."""
    return jax.jit(make_train_step(toy(likelihood), optimizer, average_decay=average_decay))


@cache
def jitted_shards():
    """The SGD step on shards [4, BATCH / 4] of a batch, and the results of each shard."""
    step = make_train_step(toy(), SGD, axis_name="devices")
    return jax.jit(jax.vmap(step, (None, 0, 0), axis_name="devices"))


def total_penalty(state, *batch):
    """Of all of them together, so that one compilation tests them all."""
    return sum(REGULARIZERS[name].penalty(state, *batch) for name in EACH)


REGULARIZERS["all"] = REGULARIZERS["density ratio"]._replace(penalty=total_penalty)


@cache
def regularized(name, axis_name=None):
    """The SGD step with a regularizer; with an axis, on shards as `jitted_shards` has them."""
    step = make_train_step(toy(), SGD, regularizer=REGULARIZERS[name], axis_name=axis_name)
    return jax.jit(jax.vmap(step, (None, 0, 0), axis_name=axis_name) if axis_name else step)


@cache
def regularized_state(name):
    """A start at which a discriminator has something to say."""
    state = init_state(toy(), SGD, jax.random.key(0), regularizer=REGULARIZERS[name])
    draw = np.random.default_rng(3).normal
    carried = jax.tree.map(
        lambda leaf: jnp.asarray(draw(size=leaf.shape), float), state.regularizer
    )
    return jax.device_get(state._replace(regularizer=carried))


def in_shards(keys, xs):
    return keys.reshape(4, -1), xs.reshape(4, -1, DIM)


def first_state(likelihood="bernoulli", optimizer=SGD, averaging=False):
    return init_state(toy(likelihood), optimizer, jax.random.key(0), averaging=averaging)


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


jitted_bounds = jax.jit(bounds, static_argnums=0)


def squared_error(params, keys, xs):
    """Mean squared error per dimension of the optimal-sigma model, at the bounds' draws."""
    vae = toy("optimal sigma")

    def of_one(key, x):
        z, _ = posterior_samples(jax.random.split(key)[1], vae.encode(params, x), 1)
        return jnp.square(x - vae.decode(params, z[0]).mean()).mean()

    return jax.vmap(of_one)(keys, xs).mean()


jitted_error = jax.jit(squared_error)


def row(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def movement(new, old):
    return flat(new.params) - flat(old.params)


def learned(state):
    """All that a skipped step must leave alone."""
    return state._replace(step=0, skipped=0, skipped_in_row=0)


def counters(state):
    return int(state.step), int(state.skipped), int(state.skipped_in_row)


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
    """In float64, where central differences of 1e-5 are good for 1e-9 of values of order one."""
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
    """Its decay is (1 + step) / (10 + step) until that is more than the one asked for."""
    state = first_state(optimizer=ADAM, averaging=True)
    average = jax.tree.map(lambda leaf: leaf + 1, state.params)
    state = state._replace(average=average, step=jnp.int32(step))
    new, _ = jitted("bernoulli", ADAM, DECAY)(state, *batch())
    expected = decay * flat(average) + (1 - decay) * flat(new.params)
    np.testing.assert_allclose(flat(new.average), expected, rtol=1e-5, atol=1e-6)


def test_active_units_are_those_of_numpy():
    """Of all devices' rows: the variances lie around 0.01, and no shard has those of the whole."""
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
    """On 8 fixed examples with new draws every step: by more than 4 standard errors."""
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
    means = {"objective", "elbo", "log_likelihood", "kl"}
    counts = {"active_units", "skipped", "skipped_in_row"}
    assert set(metrics) == means | counts | {"gradient_norm"}
    assert {leaf.shape for leaf in metrics.values()} == {()}
    expected = jitted_bounds(toy(), state.params, keys, xs)
    for name in means:
        np.testing.assert_allclose(metrics[name], getattr(expected, name).mean(), rtol=1e-5)
    rounding = 1e-6 * (abs(metrics["log_likelihood"]) + metrics["kl"])
    assert abs(metrics["elbo"] - (metrics["log_likelihood"] - metrics["kl"])) <= rounding
    assert (metrics["skipped"], metrics["skipped_in_row"]) == (0, 0)


def test_four_shards_are_one_batch():
    """SGD, so that a gradient summed instead of averaged shows."""
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
        objective = metrics["log_likelihood"] - beta * metrics["kl"]
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
def test_a_batch_that_is_not_finite_leaves_nothing_but_its_count(likelihood):
    """Good, bad, bad, good: as if only the good ones had been, at steps 0 and 3."""
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
        return bound._replace(objective=bound.objective + add(0 * bound.log_likelihood))

    hiding = optax.chain(optax.zero_nans(), SGD)
    step = jax.jit(make_train_step(linear(), hiding, objective=objective))
    state = init_state(linear(), hiding, jax.random.key(0))
    new, metrics = step(state, *batch())
    finite = {name for name in ("objective", "gradient_norm") if np.isfinite(metrics[name])}
    assert finite == {"objective", "gradient_norm"} - {which}
    assert counters(new) == (1, 1, 1)
    chex.assert_trees_all_equal(learned(new), learned(state))


def test_an_update_that_overflows_is_noticed_by_the_next_step():
    """From a finite gradient, by a momentum that is nearly infinite: a caller must not save it."""
    state = first_state(optimizer=ADAM, averaging=True)
    moments = state.opt_state[0]
    huge = moments._replace(mu=jax.tree.map(lambda leaf: jnp.full_like(leaf, 3e38), moments.mu))
    state = state._replace(opt_state=(huge, *state.opt_state[1:]))
    overflown, metrics = jitted("bernoulli", ADAM, DECAY)(state, *batch())
    assert np.isfinite([metrics["objective"], metrics["gradient_norm"]]).all()
    new, _ = jitted("bernoulli", ADAM, DECAY)(overflown, *batch())
    assert counters(new) == (2, 1, 1)
    chex.assert_trees_all_equal(learned(new), learned(overflown))


def test_one_bad_shard_stops_them_all():
    state = first_state()
    new, metrics = jitted_shards()(state, *in_shards(*bad_batch()))
    np.testing.assert_array_equal(metrics["skipped"], [1] * 4)
    for i in range(4):
        assert counters(row(new, i)) == (1, 1, 1)
        chex.assert_trees_all_equal(learned(row(new, i)), learned(state))


def test_clipping_and_micro_batches_are_optaxs():
    """A step of 0.1 times the unit gradient; two halves make it, also with a bad one between."""
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


def test_an_optimal_sigma_is_that_of_the_batch():
    """There a log-likelihood is -D/2 log(2 pi e MSE), whatever the network does."""
    state = first_state("optimal sigma")
    _, metrics = jitted("optimal sigma", SGD)(state, *batch())
    error = jitted_error(state.params, *batch())
    expected = -0.5 * DIM * np.log(2 * np.pi * np.e * error)
    np.testing.assert_allclose(metrics["log_likelihood"], expected, rtol=1e-5)


def test_evaluation_has_the_running_sigma():
    """The mean of all steps so far at first, an exponential average of 0.99 from step 100 on."""
    step, state, errors = jitted("optimal sigma", SGD), first_state("optimal sigma"), []
    for t in range(3):
        errors.append(jitted_error(state.params, *batch(t)))
        state, _ = step(state, *batch(t))
        np.testing.assert_allclose(state.squared_error, np.mean(errors), rtol=1e-5)
        log_scale = state.evaluation_params()["likelihood"]["log_scale"]
        np.testing.assert_allclose(log_scale, 0.5 * np.log(np.mean(errors)), rtol=1e-5)
    state = state._replace(step=jnp.int32(500), squared_error=jnp.float32(2.0))
    expected = 0.99 * 2.0 + 0.01 * jitted_error(state.params, *batch())
    np.testing.assert_allclose(step(state, *batch())[0].squared_error, expected, rtol=1e-5)


def test_a_skipped_first_step_is_no_observation_of_sigma():
    step = jitted("optimal sigma", SGD)
    state, _ = step(first_state("optimal sigma"), *bad_batch())
    new, _ = step(state, *batch())
    error = jitted_error(state.params, *batch())
    np.testing.assert_allclose(new.squared_error, error, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["all", *(pytest.param(name, marks=pytest.mark.long) for name in EACH)]
)
def test_a_penalty_of_four_shards_is_that_of_the_batch(name):
    """Value, gradient and what is carried along; by itself each shard has other penalties."""
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


@pytest.mark.parametrize(
    "name", ["all", *(pytest.param(name, marks=pytest.mark.long) for name in EACH)]
)
def test_a_penalty_on_four_devices_is_that_on_one(name):
    """Of pmap, with the keys that `row_keys` gives it: a step of SGD."""
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


def test_sgd_follows_the_objective_less_the_penalty():
    """On the batch's posteriors and draws, with a key that no row has; and the ELBO is the ELBO."""
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
    """Of four shards as of one: its gradient does not pass through what is gathered."""
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


def test_what_a_regularizer_carries_is_saved_with_the_state(tmp_path):
    for name in ("mmd", "density ratio"):
        items = {"training": regularized_state(name)}
        checkpoints = Checkpoints(tmp_path / name)
        checkpoints.save(1, items, {}, None)
        checkpoints.wait()
        restored = checkpoints.restore(1, jax.eval_shape(lambda items=items: items))
        checkpoints.close()
        chex.assert_trees_all_equal(restored, jax.device_get(items))


def test_evaluation_params_are_the_average_where_there_is_one():
    state = first_state(averaging=True)
    chex.assert_trees_all_equal(state.average, state.params)
    assert state.evaluation_params() is state.average
    assert state._replace(average=None).evaluation_params() is state.params
    assert first_state().average is None


def test_other_likelihoods_have_no_running_error():
    assert jitted("bernoulli", SGD)(first_state(), *batch())[0].squared_error == 0


def test_gradient_at_an_optimal_sigma_is_the_total_derivative():
    """The envelope theorem: that sigma depends on the network too adds nothing at its optimum."""
    vae, state, (keys, xs) = toy("optimal sigma"), first_state("optimal sigma"), batch()
    new, _ = jitted("optimal sigma", SGD)(state, keys, xs)

    def mean_elbo(params):
        log_scale = 0.5 * jnp.log(squared_error(params, keys, xs))

        def of_one(key, x):
            decode = lambda z: Gaussian(vae.decode(params, z).mean(), log_scale)
            functions = parts(vae, params) | {"decode": decode}
            return jaxvae.elbo(jax.random.split(key)[1], x, **functions).elbo

        return jax.vmap(of_one)(keys, xs).mean()

    total = jax.jit(jax.grad(mean_elbo))(state.params)
    for part in ("encoder", "decoder"):
        slope = flat(total[part])
        moved = flat(new.params[part]) - flat(state.params[part])
        tolerance = 1e-5 * np.abs(slope).max()
        np.testing.assert_allclose(moved / RATE, slope, rtol=0, atol=tolerance)


def test_an_optimal_sigma_has_a_floor():
    """A decoder without any error would have sigma = 0."""
    vae = linear()._replace(
        init=lambda key: {"bias": jnp.zeros(DIM), "log_scale": jnp.zeros(())},
        decode=lambda params, z: Gaussian(params["bias"], params["log_scale"]),
        with_log_scale=lambda params, log_scale: params | {"log_scale": log_scale},
    )
    state = init_state(vae, SGD, jax.random.key(0))
    step = jax.jit(make_train_step(vae, SGD))
    new, metrics = step(state, batch()[0], jnp.zeros((BATCH, DIM)))
    assert counters(new) == (1, 0, 0)
    np.testing.assert_allclose(new.params["log_scale"], 0.5 * np.log(MIN_VARIANCE), rtol=1e-6)
    expected = -0.5 * DIM * np.log(2 * np.pi * MIN_VARIANCE)
    np.testing.assert_allclose(metrics["log_likelihood"], expected, rtol=1e-5)


# Transform


def test_every_step_is_the_same_program():
    """One trace, whether skipped or not, early or late."""
    chex.clear_trace_counter()
    step, state = make_train_step(linear(), ADAM), init_state(linear(), ADAM, jax.random.key(0))
    step = jax.jit(chex.assert_max_traces(step, 1))
    for examples in (batch(), bad_batch(), batch(2)):
        state, _ = step(state, *examples)
    assert counters(step(state._replace(step=jnp.int32(10_000)), *batch())[0]) == (10_001, 1, 0)


def test_an_optimal_sigma_costs_no_second_forward_pass():
    """XLA merges it with that of the bound: by its own count of operations, to 2 %."""

    def operations(likelihood):
        vae = mlp_vae(data_shape=(20,), latent_dim=2, hidden=(20,), **LIKELIHOODS[likelihood])

        def inputs(key):
            return init_state(vae, SGD, key), jax.random.split(key, BATCH), jnp.zeros((BATCH, 20))

        shapes = jax.eval_shape(inputs, jax.random.key(0))
        compiled = jax.jit(make_train_step(vae, SGD)).lower(*shapes).compile()
        return compiled.cost_analysis()["flops"]

    assert operations("optimal sigma") < 1.02 * operations("learned sigma")


# Failure


@pytest.mark.parametrize("averaging", [False, True])
def test_a_step_and_a_state_that_differ_about_the_average_are_refused(averaging):
    """Else evaluation would read an average that no step moves."""
    step = make_train_step(toy(), SGD, average_decay=None if averaging else 0.9)
    with pytest.raises(ValueError, match="average"):
        jax.eval_shape(step, first_state(averaging=averaging), *batch())


@pytest.mark.parametrize("carried", [False, True])
def test_a_step_and_a_state_that_differ_about_the_regularizer_are_refused(carried):
    regularizer = None if carried else REGULARIZERS["density ratio"]
    step = make_train_step(toy(), SGD, regularizer=regularizer)
    state = regularized_state("density ratio") if carried else first_state()
    with pytest.raises(ValueError, match=r"regularizer carries along.*got.*the same regularizer"):
        jax.eval_shape(step, state, *batch())


def test_an_empty_batch_is_refused():
    """Else the mean over it is NaN, and every step is skipped."""
    keys, xs = batch()
    step = make_train_step(toy(), SGD)
    with pytest.raises(ValueError, match="at least one example, got none"):
        jax.eval_shape(step, first_state(), keys[:0], xs[:0])


def test_a_regularizer_is_refused_a_batch_of_one():
    keys, xs = batch()
    for name, regularizer in REGULARIZERS.items():
        step = make_train_step(toy(), SGD, regularizer=regularizer)
        with pytest.raises(ValueError, match="B at least 2"):
            jax.eval_shape(step, regularized_state(name), keys[:1], xs[:1])
