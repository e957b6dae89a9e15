"""Training on several devices: the results are those of one device."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxvae
from jaxvae.models.builders import conv_vae, mlp_vae, resnet_vae
from jaxvae.training.devices import (
    AXIS,
    check_divisible,
    make_chunk_step,
    make_map,
    make_mesh,
    replicate,
    row_keys,
    shard,
)
from jaxvae.training.state import init_state
from jaxvae.training.step import make_train_step

BATCH, CHUNK = 16, 10
SGD, ADAM = optax.sgd(1e-2), optax.adam(1e-3)
MLP = partial(mlp_vae, data_shape=(8, 8, 1), latent_dim=3, hidden=(24,))
RESNET = partial(resnet_vae, data_shape=(9, 8, 1), latent_channels=2, channels=(4, 4))
CONV = partial(conv_vae, data_shape=(9, 8, 1), latent_dim=3, hidden=(4,), width=8)


def _data(shape, num_steps, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num_steps, BATCH, *shape), dtype=np.uint8)


def _prepare(key, stored):
    return jax.random.bernoulli(key, stored.astype(jnp.float32) / 255).astype(jnp.float32)


@cache
def _program(model, optimizer, num_devices, axis_name):
    """The chunk step, its mesh and first state, and a list that grows with each trace of a step.

    All tests of the same model, optimizer and devices share it, so that it is compiled once.
    """
    vae, mesh = model(), make_mesh(jax.devices()[:num_devices])
    step = make_train_step(vae, optimizer, prepare=_prepare, axis_name=axis_name)
    traces = []

    def traced(*arguments):
        traces.append(1)
        return step(*arguments)

    state = jax.device_get(init_state(vae, optimizer, jax.random.key(1)))
    return make_chunk_step(traced, mesh, BATCH, CHUNK), mesh, state, traces


def _train(model, optimizer, data, num_devices, axis_name=AXIS, counts=None):
    """The state and metrics after all of `data` [steps, BATCH, ...], and the traces of the step."""
    chunk_step, mesh, state, traces = _program(model, optimizer, num_devices, axis_name)
    state = replicate(state, mesh)
    key = replicate(jax.random.key(2), mesh)
    rows, done = [], 0
    for count in counts or [CHUNK] * (len(data) // CHUNK):
        chunk = np.zeros((CHUNK, *data.shape[1:]), data.dtype)
        chunk[:count] = data[done : done + count]
        by_device = chunk.reshape(CHUNK, num_devices, -1, *data.shape[2:]).swapaxes(0, 1)
        placed = shard(np.ascontiguousarray(by_device), mesh)
        state, metrics = chunk_step(state, key, placed, replicate(np.int32(count), mesh))
        rows.append(jax.tree.map(lambda leaf, count=count: leaf[:count], jax.device_get(metrics)))
        done += count
    metrics = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
    return jax.device_get(state), metrics, len(traces)


def _largest_difference(one, other):
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), one.params, other.params)
    return max(jax.tree.leaves(differences))


@pytest.mark.parametrize(
    ("model", "shape", "optimizer", "device_counts"),
    [
        (MLP, (8, 8, 1), SGD, (2, 8)),
        (MLP, (8, 8, 1), ADAM, (4,)),
        (CONV, (9, 8, 1), SGD, (8,)),
        pytest.param(RESNET, (9, 8, 1), optax.sgd(1e-3), (8,), marks=pytest.mark.slow),
        pytest.param(CONV, (9, 8, 1), ADAM, (2, 4, 8), marks=pytest.mark.long),
    ],
    ids=["mlp, sgd", "mlp, adam", "conv, sgd", "resnet, sgd", "conv, adam"],
)
def test_every_device_count_trains_the_same_model(model, shape, optimizer, device_counts):
    data = _data(shape, 50)
    reference, metrics, _ = _train(model, optimizer, data, 1)
    assert metrics["elbo"][-5:].mean() > metrics["elbo"][:5].mean()
    for num_devices in device_counts:
        state, others, _ = _train(model, optimizer, data, num_devices)
        assert _largest_difference(reference, state) < 1e-5
        np.testing.assert_allclose(others["elbo"], metrics["elbo"], rtol=1e-5)
        np.testing.assert_array_equal(others["active_units"], metrics["active_units"])


def test_without_pmean_the_devices_differ():
    """A step without averaging trains another model, so that the test above can fail."""
    data = _data((8, 8, 1), 50)
    reference, _, _ = _train(MLP, SGD, data, 1)
    state, _, _ = _train(MLP, SGD, data, 4, axis_name=None)
    assert _largest_difference(reference, state) > 1e-3


def test_gradients_are_averaged_once():
    """SGD reveals a factor of the device count, which Adam would hide."""
    data = _data((8, 8, 1), 10)
    steps = [_train(MLP, SGD, data, n, counts=[1])[1]["gradient_norm"] for n in (1, 8)]
    np.testing.assert_allclose(steps[0], steps[1], rtol=1e-5)


@pytest.mark.parametrize("num_devices", [1, 4])
def test_a_resumed_run_equals_an_uninterrupted_run(num_devices):
    data = _data((8, 8, 1), 20)
    whole, metrics, traces = _train(MLP, ADAM, data, num_devices)
    parts, again, more_traces = _train(MLP, ADAM, data, num_devices, counts=[1, 7, 2, 10])
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    jax.tree.map(np.testing.assert_array_equal, metrics, again)
    assert traces == more_traces == 1


@pytest.mark.slow
def test_optimal_sigma_is_that_of_the_global_batch():
    shape = {"data_shape": (8,), "latent_dim": 2, "hidden": (8,)}
    model, sgd = partial(mlp_vae, **shape, likelihood="gaussian", sigma="optimal"), optax.sgd(1e-3)
    data = _data((8,), 10)
    one, metrics, _ = _train(model, sgd, data, 1)
    four, others, _ = _train(model, sgd, data, 4)
    np.testing.assert_allclose(others["elbo"], metrics["elbo"], rtol=1e-5)
    np.testing.assert_allclose(four.squared_error, one.squared_error, rtol=1e-5)


def test_rows_get_the_same_keys_on_any_number_of_devices():
    key, step = jax.random.key(3), jnp.int32(5)
    expected = jax.random.key_data(jax.random.split(jax.random.fold_in(key, 5), BATCH))
    for n in (1, 2, 8):
        keys = jax.pmap(
            lambda _, n=n: jax.random.key_data(row_keys(key, step, BATCH, n)), axis_name=AXIS
        )(np.zeros(n))
        np.testing.assert_array_equal(np.asarray(keys).reshape(BATCH, -1), expected)


def test_elbo_under_pmap_is_elbo_under_vmap():
    vae = MLP()
    params = vae.init(jax.random.key(0))

    def score(params, key, x):
        parts = {"encode": partial(vae.encode, params), "decode": partial(vae.decode, params)}
        return jaxvae.elbo(key, x, prior=vae.prior(params), **parts).elbo

    xs = np.random.default_rng(0).random((8, 8, 8, 1), dtype=np.float32)
    key = jax.random.key(4)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(8))
    expected = jax.jit(jax.vmap(score, (None, 0, 0)))(params, keys, xs)
    mesh = make_mesh(jax.devices()[:4])
    indices = np.arange(8, dtype=np.int32).reshape(4, 2)
    mapped = make_map(score, mesh)(
        replicate(params, mesh),
        replicate(key, mesh),
        *shard((indices, xs.reshape(4, 2, 8, 8, 1)), mesh),
    )
    np.testing.assert_allclose(np.asarray(mapped).ravel(), expected, rtol=1e-6)


@pytest.mark.long
def test_three_thousand_steps_on_eight_simulated_devices_terminate():
    data = _data((8, 8, 1), 3000)
    state, _, _ = _train(MLP, optax.sgd(1e-3), data, 8)
    assert state.step == 3000


def test_a_batch_that_devices_cannot_share_is_rejected():
    with pytest.raises(ValueError, match=r"batch_size=10 .* 4 devices.*: 8 or 12"):
        check_divisible(10, 4)
    with pytest.raises(ValueError, match=r"can: 4"):
        check_divisible(0, 4)
