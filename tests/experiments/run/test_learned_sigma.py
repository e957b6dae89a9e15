"""Learned sigma: its own learning rate, and advice if it causes numbers that are not finite."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.flags.config import TrainConfig
from experiments.flags.saved_flags import from_json, to_json
from experiments.record.display import rounded
from experiments.run.advice import Steps, not_finite
from experiments.run.optimization import SIGMA_RATE, make_optimizer
from jaxvae import mlp_vae

ADAMS = ("adam", "adamw", "adamax")
GAUSSIAN = {"likelihood": "gaussian"}


@cache
def params(sigma="learned"):
    vae = mlp_vae(
        data_shape=(3,), latent_dim=2, hidden=(4,), sigma=sigma, prior="mixture", **GAUSSIAN
    )
    return vae.init(jax.random.key(0))


def first_updates(sigma="learned", **flags):
    config = TrainConfig(sigma=sigma, **GAUSSIAN | flags)
    optimizer, start = make_optimizer(config, num_steps=10), params(sigma)
    gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.5), start)
    return optimizer.update(gradients, optimizer.init(start), start)


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAMS)
@pytest.mark.parametrize("sigma", ["learned", "per_channel"])
def test_only_sigma_moves_by_the_rate_of_sigma(name, sigma):
    own, state = first_updates(sigma, optimizer=name)
    plain, plain_state = first_updates(sigma, optimizer=name, sigma_rate=1.0)
    assert jax.tree.structure(state) == jax.tree.structure(plain_state)  # old checkpoints resume
    jax.tree.map(np.testing.assert_array_equal, state, plain_state)
    faster = own["likelihood"].pop("log_scale") / plain["likelihood"].pop("log_scale")
    np.testing.assert_allclose(faster, SIGMA_RATE, rtol=1e-6)
    assert "log_scale" in own["prior"]  # a mixture's scales are not sigma
    jax.tree.map(np.testing.assert_array_equal, own, plain)


@pytest.mark.parametrize(
    "flags",
    [
        {"likelihood": "bernoulli"},
        {"sigma": "per_pixel"},
        {"sigma": "optimal"},
        {"sigma": 0.1},
        {"optimizer": "sgd"},
        {"sigma_rate": 1.0},
    ],
)
def test_optimizers_to_which_sigma_rate_does_not_apply_are_unchanged(flags):
    config = TrainConfig(**GAUSSIAN | flags)
    optimizer = make_optimizer(config, num_steps=10)
    reference = optax.sgd(1e-3) if config.optimizer == "sgd" else optax.adam(1e-3)
    start = {"likelihood": {"log_scale": jnp.ones(())}, "w": jnp.ones(2)}
    expected, _ = reference.update(start, reference.init(start), start)
    updates, _ = optimizer.update(start, optimizer.init(start), start)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)


def test_sigma_rate_applies_after_clipping_and_accumulation():
    flags = {"gradient_clip": 1.0, "accumulate_steps": 1}
    own, plain = first_updates(**flags)[0], first_updates(**flags, sigma_rate=1.0)[0]
    ratio = own["likelihood"]["log_scale"] / plain["likelihood"]["log_scale"]
    np.testing.assert_allclose(ratio, SIGMA_RATE, rtol=1e-6)


def test_a_sigma_far_below_its_start_is_found_within_1500_steps():
    """For data N(0, 0.01^2), Adam with rate 0.001 has only moved sigma from 1 to 0.22 by then."""
    errors = 0.01 * np.random.default_rng(0).normal(size=1000).astype(np.float32)
    square = jnp.float32(np.square(errors, dtype=np.float64).mean())
    found = {}
    for rate in (1.0, SIGMA_RATE):
        optimizer = make_optimizer(TrainConfig(sigma_rate=rate, **GAUSSIAN), num_steps=1500)
        start = {"likelihood": {"log_scale": jnp.zeros(())}}

        def loss(tree):
            log_scale = tree["likelihood"]["log_scale"]
            return log_scale + 0.5 * square * jnp.exp(-2 * log_scale)

        def step(carry, _, optimizer=optimizer, loss=loss):
            tree, state = carry
            updates, state = optimizer.update(jax.grad(loss)(tree), state, tree)
            return (optax.apply_updates(tree, updates), state), None

        run = jax.jit(lambda start, step=step: jax.lax.scan(step, start, None, 1500)[0])
        tree, _ = run((start, optimizer.init(start)))
        found[rate] = float(jnp.exp(tree["likelihood"]["log_scale"]))
    assert found[1.0] > 0.2
    np.testing.assert_allclose(found[SIGMA_RATE], np.sqrt(square), rtol=0.05)


def test_sigma_rate_is_saved_with_the_run():
    values = to_json(TrainConfig(sigma_rate=10.0, **GAUSSIAN))
    assert from_json(values).sigma_rate == 10.0
    del values["sigma_rate"]  # a release before it
    assert from_json(json.loads(json.dumps(values))).sigma_rate == 1.0


@pytest.mark.parametrize(
    "flags",
    [
        {"sigma_rate": 3.0, "likelihood": "bernoulli"},
        {"sigma_rate": 3.0, "sigma": 0.1, **GAUSSIAN},
        {"sigma_rate": 3.0, "optimizer": "sgd", **GAUSSIAN},
    ],
)
def test_sigma_rate_without_effect_is_rejected(flags):
    with pytest.raises(ValueError, match="--sigma-rate has no effect except with --sigma=learned"):
        TrainConfig(**flags).check()


def test_a_single_sigma_is_shown_with_five_digits():
    assert rounded(0.173284, 0.0) == ("0.17328", "0")


# Advice


@pytest.mark.parametrize(
    ("flags", "skipped", "says", "says_not"),
    [
        ({"sigma": 1e-30, **GAUSSIAN}, 50, "Raise --sigma (now 1e-30, ", "learning-rate"),
        ({"beta": 1e38}, 50, "Lower --beta (now 1e+38)", "learning-rate"),
        ({"learning_rate": 1e20}, 49, "Lower --learning-rate (now 1e+20), or set --grad", "sigma"),
        ({"gradient_clip": 1.0}, 0, "Lower --learning-rate (now 0.001). ", "gradient-clip"),
        (
            {"optimizer": "adamw", "weight_decay": 1e30},
            49,
            "Lower --weight-decay (now 1e+30); lower --learning-rate",
            "sigma",
        ),
        ({"sigma_rate": 1e9, **GAUSSIAN}, 40, "Lower --sigma-rate (now 1e+09); lower", "beta"),
        ({"model": "my.models:make"}, 50, "the cause is in the data or in the model", "learning"),
        ({}, 50, "the cause is in the data, not in the updates", "learning-rate"),
    ],
)
def test_advice_names_the_cause(flags, skipped, says, says_not):
    steps = Steps(done=50, skipped=skipped, skipped_in_row=min(skipped, 20))
    line = not_finite(TrainConfig(**flags), steps, last_saved=0, spread=0.3)
    assert says in line
    assert says_not not in line
    assert "\n" not in line


def test_advice_on_data_far_from_unit_scale_is_to_standardize():
    steps = Steps(done=50, skipped=50, skipped_in_row=50)
    config = TrainConfig(standardize="none", **GAUSSIAN)
    line = not_finite(config, steps, last_saved=0, spread=1e20)
    assert "Use --standardize=columns, as the data's standard deviation is 1e+20" in line
