"""Schedules, objectives, optimizers and initial models built from flags."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.flags.config import ObjectiveName, TrainConfig
from experiments.run.model import initial_vae, recipe
from experiments.run.optimization import (
    make_objective,
    make_optimizer,
    make_schedules,
    microbatch_size,
    rows_at_once,
)
from jaxvae import mlp_vae
from jaxvae.bounds import Bound
from jaxvae.preprocessing import Conversion, Preprocessing
from tests.oracles import LARGE, functions, log_mean_exp, oracle, to_jax

STORED = np.random.default_rng(0).integers(0, 256, (30, 4), np.uint8)
NOISELESS = Preprocessing(
    Conversion("scaled", 255),
    name="scaled",
    offset_bits=0.0,
    unit="the grey level",
    mean=np.full(4, 0.5, np.float32),
)
NOISY = NOISELESS._replace(conversion=Conversion("dequantized", 256))
FILLED = {"likelihood": "bernoulli", "sigma": "learned"}
VAMP = TrainConfig(**FILLED, hidden=(3,), latent_dim=2, prior="vamp", num_components=30)


def values(schedule, steps):
    """Values of a schedule at traced steps, as in the training step."""
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.array(steps)))


def beta(shape):
    return make_schedules(TrainConfig(beta=2.0, beta_warmup_steps=10, beta_schedule=shape))["beta"]


def pseudo_inputs(preprocessing, seed):
    """Initial pseudo-inputs of a model with these flags."""
    config = dataclasses.replace(VAMP, seed=seed)
    vae = initial_vae(recipe(config, (4,)), config, preprocessing, STORED)
    return np.asarray(vae.init(jax.random.key(9))["prior"]["pseudo_inputs"])


def in_order(rows):
    """Distinct rows, rounded to three decimals and sorted."""
    return np.unique(np.round(rows, 3), axis=0)


# Golden


def test_linear_beta_rises_and_stays():
    result = values(beta("linear"), [0, 2, 5, 10, 1000])
    np.testing.assert_allclose(result, [0, 0.4, 1, 2, 2], rtol=1e-6)


def test_cosine_beta_rises_and_stays():
    """beta = 2 (1 - cos(pi t / 10)) / 2: below the linear rise before half-way, equal there."""
    steps = np.array([0, 2, 5, 7, 10])
    result = values(beta("cosine"), [*steps, 1000])
    np.testing.assert_allclose(result, [*(1 - np.cos(np.pi * steps / 10)), 2], rtol=1e-6, atol=1e-6)
    assert abs(result[1] - 0.4) > 0.1


def test_cyclical_beta_rises_four_times_and_stays():
    """Four times 10 steps up and 10 steps constant, then constant forever."""
    result = values(beta("cyclical"), range(200))
    period = np.concatenate([2 * np.arange(10) / 10, np.full(10, 2.0)])
    np.testing.assert_allclose(result[:80], np.tile(period, 4), rtol=1e-6)
    np.testing.assert_array_equal(result[70:], np.full(130, 2.0))


def test_capacity_rises_and_stays():
    rising = make_schedules(TrainConfig(capacity=3.0, capacity_steps=6))["capacity"]
    np.testing.assert_allclose(values(rising, [0, 3, 6, 100]), [0, 1.5, 3, 3], rtol=1e-6)
    constant = make_schedules(TrainConfig(capacity=3.0))["capacity"]
    assert constant(0) == constant(100) == 3


def test_default_flags_give_no_schedules():
    assert make_schedules(TrainConfig()) == {}
    assert make_schedules(TrainConfig(beta=0.5))["beta"](7) == 0.5


# Law


def test_every_objective_is_the_bound_of_its_name_with_its_flags():
    """References are computed in numpy from the log weights; no flag has its default."""
    options = {"num_samples": 4, "num_groups": 2, "elbo_weight": 0.3, "alpha": 0.25}
    options |= {"num_intervals": 1, "free_bits": 0.5}
    names = get_args(ObjectiveName)
    model, q, x = to_jax(oracle(LARGE))

    @jax.jit
    def run(key):
        of = lambda name: make_objective(TrainConfig(objective=name, **options))
        return {name: of(name)(key, x, **functions(model, q)) for name in names}

    results = jax.device_get(run(jax.random.key(0)))
    assert all(isinstance(result, Bound) for result in results.values())
    result = results["elbo"]
    logs = result.log_weights.astype(np.float64)
    in_groups = log_mean_exp(logs.reshape(2, 2)).mean()
    expected = {
        "elbo": result.reconstruction - np.maximum(result.kl_per_latent, 0.5).sum(),
        "iwae": log_mean_exp(logs),
        "miwae": in_groups,
        "piwae": in_groups,
        "ciwae": 0.3 * logs.mean() + 0.7 * log_mean_exp(logs),
        "renyi": log_mean_exp(0.75 * logs) / 0.75,
        "tvo": logs.mean(),
    }
    assert results.keys() == expected.keys()
    assert (result.kl_per_latent < 0.5).any()
    for name, value in expected.items():
        np.testing.assert_allclose(results[name].objective, value, rtol=1e-5, err_msg=name)


def test_a_vamp_prior_starts_at_prepared_training_examples_each_once():
    start = pseudo_inputs(NOISELESS, seed=0)
    assert (start.shape, start.dtype) == ((30, 4), np.float32)
    np.testing.assert_array_equal(in_order(255 * start), in_order(STORED))


def test_a_vamp_prior_starts_with_independent_noise_per_example():
    start = 256 * pseudo_inputs(NOISY, seed=0)
    rows = np.floor(start[:, None]) == STORED[None]
    assert rows.all(2).any(1).all()
    noise = start % 1
    assert len(np.unique(noise, axis=0)) == len(noise)


def test_the_start_of_a_vamp_prior_depends_on_the_seed():
    one, again, other = (256 * pseudo_inputs(NOISY, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(np.floor(one), np.floor(other))
    assert not np.array_equal(in_order(one % 1), in_order(other % 1))


def test_learning_rate_schedules_count_steps_also_when_accumulating():
    """The rate falls from 1 to 0 in 8 steps with gradient 1: two updates of four steps each."""
    config = TrainConfig(
        optimizer="sgd", learning_rate=1.0, schedule="linear", accumulate_steps=4, decay_steps=8
    )
    optimizer = make_optimizer(config, num_steps=8)
    weight = jnp.zeros(())
    state, moves = optimizer.init(weight), []
    for _ in range(12):
        update, state = optimizer.update(jnp.ones(()), state, weight)
        moves.append(float(update))
    assert moves == [0, 0, 0, -1, 0, 0, 0, -0.5, 0, 0, 0, 0]


@pytest.mark.slow
def test_weight_decay_changes_only_kernels():
    vae = mlp_vae(data_shape=(3,), latent_dim=2, hidden=(4,), prior="mixture", num_components=2)
    params = jax.tree.map(lambda leaf: leaf + 1.0, vae.init(jax.random.key(0)))
    optimizer = make_optimizer(TrainConfig(optimizer="adamw", weight_decay=0.1), num_steps=8)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    moved = jax.tree_util.tree_map_with_path(
        lambda path, leaf: bool((leaf != 0).any()) == (path[-1].key == "kernel"), updates
    )
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    ("flags", "platform", "num_devices", "expected"),
    [
        ({}, "cpu", 1, None),  # 128 rows
        ({"objective": "iwae", "num_samples": 50}, "cpu", 1, 16),  # of 128, 20 at most
        ({"objective": "iwae", "num_samples": 50, "batch_size": 100}, "cpu", 1, 20),
        ({"objective": "iwae", "num_samples": 50}, "gpu", 1, None),
        ({"objective": "iwae", "num_samples": 50, "rows_at_once": 100}, "gpu", 4, 2),
        ({"objective": "iwae", "num_samples": 5000}, "cpu", 1, 1),
        ({"objective": "iwae", "num_samples": 50, "batch_size": 127}, "cpu", 1, None),  # a prime
        ({"rows_at_once": 50, "batch_size": 127}, "cpu", 1, 1),
        ({"model": "conv"}, "cpu", 1, 64),
        ({"model": "conv"}, "cpu", 2, None),
        ({"model": "conv", "regularizer": "mmd"}, "cpu", 1, None),
        ({"likelihood": "gaussian", "sigma": "optimal", "batch_size": 4000}, "cpu", 1, None),
    ],
)
def test_microbatches_fit_the_cache_of_a_cpu(flags, platform, num_devices, expected):
    config = TrainConfig(**FILLED | flags)
    config.check()
    sigma = {"likelihood": config.likelihood, "sigma": config.sigma}
    vae = mlp_vae(data_shape=(4,), hidden=(), **sigma)
    rows = rows_at_once(config, platform, (28, 28, 1))
    assert microbatch_size(config, vae, num_devices, rows) == expected


def test_more_samples_than_rows_are_computed_in_chunks():
    config = TrainConfig(**FILLED, objective="iwae", num_samples=5000)
    assert make_objective(config, 1000).keywords["sample_chunk_size"] == 1000
    assert make_objective(config).keywords["sample_chunk_size"] is None
    few = dataclasses.replace(config, num_samples=1000)
    assert make_objective(few, 1000).keywords["sample_chunk_size"] is None
