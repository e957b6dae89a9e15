"""Steps that add gradients in a fixed order, bit for bit the same on any number of devices."""

import os
from functools import partial

import jax
import numpy as np
import optax
import pytest

from jaxvae.evaluation import make_score, map_dataset
from jaxvae.models.builders import conv_vae, mlp_vae
from jaxvae.regularizers import total_correlation
from jaxvae.training.devices import AXIS, make_chunk_step, make_map, make_mesh, replicate, shard
from jaxvae.training.state import init_state
from jaxvae.training.step import make_train_step

BATCH, STEPS, SHARDS = 32, 10, 8
AS_A_USER = {"xla_backend_optimization_level": 3}
"""Compiler options of these tests; those of all other tests are in `conftest`."""
if "xla_cpu_use_fusion_emitters" in os.environ.get("XLA_FLAGS", ""):
    AS_A_USER["xla_cpu_use_fusion_emitters"] = True
SMALL = {"latent_dim": 3}
MODELS = {
    "mlp": (partial(mlp_vae, data_shape=(8, 8, 1), hidden=(24,), **SMALL), (8, 8, 1)),
    "conv": (partial(conv_vae, data_shape=(9, 8, 1), hidden=(4,), width=8, **SMALL), (9, 8, 1)),
    "optimal sigma": (
        partial(
            mlp_vae,
            data_shape=(8, 8, 1),
            hidden=(24,),
            likelihood="gaussian",
            sigma="optimal",
            **SMALL,
        ),
        (8, 8, 1),
    ),
}


def _prepare(key, stored):
    return jax.random.bernoulli(key, stored.astype(np.float32) / 255).astype(np.float32)


def _train(model, num_devices, **options):
    """Parameters and metrics after ten steps of Adam."""
    make, shape = MODELS[model]
    vae, optimizer = make(), optax.adam(1e-2)
    mesh = make_mesh(jax.devices()[:num_devices])
    step = make_train_step(vae, optimizer, prepare=_prepare, axis_name=AXIS, **options)
    chunk_step = make_chunk_step(step, mesh, BATCH, STEPS)
    data = np.random.default_rng(0).integers(0, 256, (STEPS, BATCH, *shape), dtype=np.uint8)
    by_device = data.reshape(STEPS, num_devices, -1, *shape).swapaxes(0, 1)
    state = replicate(init_state(vae, optimizer, jax.random.key(1)), mesh)
    key, count = replicate(jax.random.key(2), mesh), replicate(np.int32(STEPS), mesh)
    arguments = (state, key, shard(np.ascontiguousarray(by_device), mesh), count)
    state, metrics = chunk_step.lower(*arguments).compile(AS_A_USER)(*arguments)
    return jax.device_get((state.params, metrics))


def _equal(one, other):
    same = jax.tree.map(lambda a, b: bool((a == b).all()), one, other)
    return all(jax.tree.leaves(same))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "num_devices"),
    [
        ("mlp", 8),
        ("conv", 2),
        *(pytest.param(model, n, marks=pytest.mark.long) for model in MODELS for n in (2, 4, 8)),
    ],
)
def test_every_device_count_takes_the_same_steps_bit_for_bit(model, num_devices):
    reference = _train(model, 1, virtual_shards=SHARDS)
    assert _equal(_train(model, num_devices, virtual_shards=SHARDS), reference)


@pytest.mark.slow
def test_steps_of_virtual_shards_are_those_of_the_whole_batch_to_rounding():
    params, metrics = _train("mlp", 1, virtual_shards=SHARDS)
    whole, of_whole = _train("mlp", 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), params, whole)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], of_whole[name], rtol=1e-4, err_msg=name)
    assert not _equal(whole, params)


@pytest.mark.slow
def test_without_virtual_shards_the_device_count_changes_the_last_bits():
    """So the test of equal bits can fail."""
    assert not _equal(_train("mlp", 8), _train("mlp", 1))


@pytest.mark.parametrize(
    ("options", "num_devices", "message"),
    [
        ({"virtual_shards": 5}, 1, "divide the batch of 32 examples, got 5"),
        ({"virtual_shards": 0}, 1, "got 0"),
        ({"virtual_shards": 4}, 8, "a multiple of the number of devices \\(8\\)"),
        ({"virtual_shards": 4, "microbatch_size": 4}, 1, "exclude each other"),
        ({"virtual_shards": 4, "regularizer": total_correlation(weight=1.0, num_data=9)}, 1,
         "a regularizer needs the whole batch at once, got virtual_shards=4"),
    ],
)  # fmt: skip
def test_invalid_numbers_of_shards_are_rejected(options, num_devices, message):
    with pytest.raises(ValueError, match=message):
        _train("mlp", num_devices, **options)


def _scores(num_devices, microbatch_size):
    """Scores of 300 examples, 100 at a time; sums over 28 x 28 pixels take several vectors."""
    vae = mlp_vae(data_shape=(28, 28, 1), hidden=(16,), **SMALL)
    examples = (np.random.default_rng(0).random((300, 28, 28, 1)) < 0.3).astype(np.float32)
    mesh = make_mesh(jax.devices()[:num_devices])
    mapped = make_map(make_score(vae, prepare=lambda key, x: x), mesh, microbatch_size)
    state = replicate((vae.init(jax.random.key(0)), jax.random.key(1)), mesh)

    def as_a_user(*arguments):
        return mapped.lower(*arguments).compile(AS_A_USER)(*arguments)

    options = {"mesh": mesh, "batch_size": 100, "microbatch_size": microbatch_size}
    return map_dataset(as_a_user, *state, examples, **options).reconstruction


@pytest.mark.slow
def test_scores_in_parts_are_the_same_bits_on_all_devices():
    one = _scores(1, 13)
    assert (_scores(8, 13) == one).all()
    assert not (_scores(8, None) == _scores(1, None)).all()  # or this would show nothing
