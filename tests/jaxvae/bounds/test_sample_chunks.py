"""Draws computed in chunks: the same values and gradients, and memory that does not grow."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxvae
from jaxvae.training.state import init_state
from jaxvae.training.step import make_train_step

VAE = jaxvae.mlp_vae(data_shape=(40,), latent_dim=2, hidden=(16,), activation="tanh")
BOUNDS = {
    "elbo": (jaxvae.elbo, {}),
    "elbo, stl": (jaxvae.elbo, {"estimator": "stl"}),
    "iwae": (jaxvae.iwae, {}),
    "iwae, dreg": (jaxvae.iwae, {"estimator": "dreg"}),
    "miwae": (jaxvae.miwae, {"num_groups": 5}),
    "piwae": (jaxvae.piwae, {"num_groups": 5}),
    "ciwae": (jaxvae.ciwae, {}),
    "renyi": (jaxvae.renyi, {"alpha": 0.5}),
    "tvo": (jaxvae.tvo, {"num_intervals": 2}),
}
X = (jax.random.uniform(jax.random.key(2), (40,)) < 0.5).astype(jnp.float32)


@cache
def params():
    """Numbers of the size of Flax's initial ones, which compile for seconds."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.normal(scale=leaf.shape[0] ** -0.5, size=leaf.shape)
    shapes = jax.eval_shape(VAE.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(draw(leaf), jnp.float32), shapes)


def value_and_gradient(bound, params, **options):
    def objective(params):
        result = bound(
            jax.random.key(1), X, encode=partial(VAE.encode, params),
            decode=partial(VAE.decode, params), prior=VAE.prior(params), **options,
        )  # fmt: skip
        return result.objective, result.log_weights

    return jax.value_and_grad(objective, has_aux=True)(params)


@pytest.mark.long
@pytest.mark.parametrize("name", BOUNDS)
def test_a_chunk_size_changes_nothing_but_memory(name):
    bound, options = BOUNDS[name]
    run = partial(value_and_gradient, bound, num_samples=10, **options)
    both = jax.jit(lambda params: (run(params), run(params, sample_chunk_size=4)))
    whole, chunked = both(params())
    compare = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: compare(a, b), chunked, whole)


def temporary_bytes(num_samples, sample_chunk_size):
    step = partial(
        value_and_gradient,
        jaxvae.iwae,
        num_samples=num_samples,
        sample_chunk_size=sample_chunk_size,
    )
    return jax.jit(step).lower(params()).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_does_not_grow_with_the_draws_but_by_their_keys_and_weights():
    """A draw's intermediate values take over 400 bytes, its key and its weights 40."""
    small, large = temporary_bytes(1_000, 50), temporary_bytes(10_000, 50)
    assert large - small < 9_000 * 64
    assert temporary_bytes(10_000, None) > 9_000 * 400


def test_a_chunk_of_less_than_one_draw_is_rejected():
    with pytest.raises(ValueError, match="sample_chunk_size must be at least 1, or None, got 0"):
        value_and_gradient(jaxvae.iwae, params(), num_samples=4, sample_chunk_size=0)


# Blocks of examples in a step

BATCH = 8


@cache
def after_two_steps(microbatch_size, axis_name=None):
    optimizer = optax.sgd(0.1)
    step = make_train_step(
        VAE, optimizer, objective=partial(jaxvae.iwae, num_samples=3), average_decay=0.9,
        microbatch_size=microbatch_size, axis_name=axis_name,
    )  # fmt: skip
    vae = VAE._replace(init=lambda key: params())
    state = init_state(vae, optimizer, jax.random.key(0), averaging=True)
    xs = (jax.random.uniform(jax.random.key(3), (2, BATCH, 40)) < 0.5).astype(jnp.float32)
    keys = jax.random.split(jax.random.key(4), (2, BATCH))
    if axis_name is None:
        run = jax.jit(step)
    else:
        shards = jax.vmap(step, (None, 0, 0), axis_name=axis_name, out_axes=None)
        run = jax.jit(
            lambda state, keys, xs: shards(state, keys.reshape(2, -1), xs.reshape(2, -1, 40))
        )
    for i in range(2):
        state, metrics = run(state, keys[i], xs[i])
    return jax.device_get((state.params, state.average, metrics))


@pytest.mark.slow
@pytest.mark.parametrize("microbatch_size", [1, 4, 8])
def test_blocks_take_the_step_of_the_whole_batch(microbatch_size):
    compare = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(compare, after_two_steps(microbatch_size), after_two_steps(None))


def test_blocks_of_each_device():
    compare = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(compare, after_two_steps(2, "devices"), after_two_steps(None))


def test_blocks_that_do_not_make_up_a_batch_are_rejected():
    with pytest.raises(ValueError, match=r"microbatch_size must divide the batch of 8 .* got 3"):
        after_two_steps(3)
    with pytest.raises(ValueError, match="a regularizer needs the whole batch"):
        make_train_step(
            VAE, optax.sgd(0.1), microbatch_size=2, regularizer=jaxvae.regularizers.mmd(1.0)
        )
