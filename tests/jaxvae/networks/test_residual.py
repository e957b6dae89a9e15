"""Layers and networks of residual models: values by flax or by hand, sizes, and types."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.models.builders import resnet_vae
from jaxvae.networks import residual
from jaxvae.networks.convolutions import Conv, Upsample
from jaxvae.networks.residual import GroupNorm, Levels, ResidualBlock, SelfAttention
from jaxvae.networks.resnet import ResNetEncoder

KEY = jax.random.key(0)


def image(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def randomized(module, x):
    """Generic parameters of a module, since those that start at zero hide what follows them."""
    shapes = jax.eval_shape(module.init, KEY, x)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape)), shapes)


def randomized_params(vae):
    """Generic parameters, so that no block is the identity."""
    rng = np.random.default_rng(1)

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
        return jnp.asarray(rng.normal(scale=fan_in**-0.5, size=leaf.shape), jnp.float32)

    return jax.tree.map(draw, jax.eval_shape(vae.init, KEY))


# Golden


def test_group_norm_is_flaxs_and_keeps_a_large_mean_apart():
    with jax.enable_x64(True):
        x = image(5, 6, 64)
        params = randomized(GroupNorm(), x)
        theirs = nn.GroupNorm(num_groups=32, epsilon=1e-6, use_fast_variance=False)
        expected = theirs.apply(params, x[None])[0]
        np.testing.assert_allclose(GroupNorm().apply(params, x), expected, rtol=0, atol=1e-12)
    far = jnp.asarray(100 + np.asarray(x), jnp.float32)
    plain = {"params": {"scale": jnp.ones(64), "bias": jnp.zeros(64)}}
    groups = np.asarray(far, np.float64).reshape(30, 32, 2)
    by_hand = (groups - groups.mean((0, 2), keepdims=True)) / groups.std((0, 2), keepdims=True)
    np.testing.assert_allclose(
        GroupNorm().apply(plain, far), by_hand.reshape(5, 6, 64), rtol=0, atol=5e-4
    )


def test_a_group_never_has_a_single_value():
    """The normalized value of one would always be 0, and the network blind."""
    vae = SMALL(data_shape=(8, 8, 1), channels=(4, 8, 16, 32))
    params = randomized_params(vae)
    encode = jax.jit(lambda x: vae.encode(params, x).loc)
    one, other = (jnp.asarray(image(8, 8, 1, seed=seed), jnp.float32) for seed in (0, 1))
    assert jnp.abs(encode(one) - encode(other)).max() > 0.01


def test_groups_divide_the_channels():
    x = image(4, 4, 6)
    y = GroupNorm().apply({"params": {"scale": jnp.ones(6), "bias": jnp.zeros(6)}}, x)
    pairs = np.asarray(y).reshape(16, 2, 3)  # 2 groups of 3 channels
    np.testing.assert_allclose(pairs.mean((0, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(pairs.std((0, 2)), 1, atol=1e-5)


def test_upsampling_is_equal_pixels_and_a_convolution():
    with jax.enable_x64(True):
        x = image(3, 4, 5)
        layer = Upsample(6, 3)
        params = randomized(layer, x)
        larger = jnp.repeat(jnp.repeat(x, 2, axis=0), 2, axis=1)
        expected = Conv(6, 3).apply(params, larger)
        np.testing.assert_allclose(layer.apply(params, x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("at_once", [4, 64])
def test_attention_is_the_formula_and_its_chunks_change_nothing(monkeypatch, at_once):
    monkeypatch.setattr(residual, "QUERIES_AT_ONCE", at_once)
    with jax.enable_x64(True):
        x = image(3, 7, 4)
        params = randomized(SelfAttention(), x)
        layers = params["params"]
        norm = GroupNorm().apply({"params": layers["GroupNorm_0"]}, x).reshape(21, 4)
        q, k, v = (
            norm @ layers[f"Conv_{i}"]["kernel"][0, 0] + layers[f"Conv_{i}"]["bias"][None]
            for i in range(3)
        )
        weights = jax.nn.softmax(q @ k.T / math.sqrt(4), axis=-1)
        mixed = weights @ v @ layers["Conv_3"]["kernel"][0, 0] + layers["Conv_3"]["bias"][None]
        expected = x + mixed.reshape(x.shape)
        value = jax.jit(SelfAttention().apply)(params, x)
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12)
        loss = lambda x: jnp.sum(jnp.sin(SelfAttention().apply(params, x)))
        slope = jax.jit(jax.grad(loss))(x)
        step = 1e-6 * image(3, 7, 4, seed=2)
        numeric = (loss(x + step) - loss(x - step)) / 2
        np.testing.assert_allclose(jnp.vdot(slope, step), numeric, rtol=1e-6)


@pytest.mark.parametrize("layer", [ResidualBlock(4), SelfAttention()])
def test_a_block_starts_as_the_identity(layer):
    x = jnp.asarray(image(4, 4, 4), jnp.float32)
    y, _ = jax.jit(layer.init_with_output)(KEY, x)
    np.testing.assert_array_equal(y, x)


# Networks


SMALL = partial(resnet_vae, channels=(4, 8), latent_dim=3)


@pytest.mark.parametrize(
    ("shape", "channels", "latent_channels", "latent_shape"),
    [
        ((9, 12, 3), (4, 8), 2, (5, 6, 2)),
        ((8, 8, 1), (4,), 1, (8, 8, 1)),
        ((11, 8, 5), (2, 2, 2, 2), 3, (2, 1, 3)),
        ((9, 12, 3), (4, 8), None, (3,)),
    ],
)
def test_latents_have_the_sides_of_the_smallest_level(
    shape, channels, latent_channels, latent_shape
):
    vae = SMALL(data_shape=shape, channels=channels, latent_channels=latent_channels)
    params = jax.eval_shape(vae.init, KEY)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    q = jax.eval_shape(vae.encode, params, x)
    assert q.loc.shape == latent_shape
    z = jax.eval_shape(lambda params: vae.prior(params).sample(KEY), params)
    assert z.shape == latent_shape
    assert jax.eval_shape(lambda p, z: vae.decode(p, z).mean(), params, z).shape == shape


@pytest.mark.slow
def test_a_latent_of_a_map_depends_on_the_pixels_of_its_place():
    """The encoder's last layer is a convolution, whose outputs stay at their place."""
    vae = SMALL(data_shape=(64, 8, 1), latent_channels=2)
    x = jnp.zeros((64, 8, 1))
    params = jax.jit(vae.init)(KEY)
    loc = lambda x: vae.encode(params, x).loc
    slope = jax.jit(jax.jacrev(lambda x: loc(x)[0].sum()))(x)
    near, far = jnp.abs(slope[:16]).mean(), jnp.abs(slope[-16:]).mean()
    assert near > 10 * far


class Blocks(nn.Module):
    """The blocks of one level."""

    rematerialize: bool

    @nn.compact
    def __call__(self, x):
        return Levels((4,), 1, self.rematerialize, None).apply_blocks(x, 0)


def test_rematerialized_gradients_are_those_of_the_same_parameters():
    x = jnp.asarray(image(4, 4, 4), jnp.float32)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), randomized(Blocks(False), x))

    def gradient(rematerialize):
        loss = lambda params: jnp.sum(jnp.sin(Blocks(rematerialize).apply(params, x)))
        text = str(jax.make_jaxpr(jax.grad(loss))(params))
        return jax.jit(jax.grad(loss))(params), "checkpoint" in text or "remat" in text

    (kept, no), (again, yes) = gradient(False), gradient(True)
    assert (no, yes) == (False, True)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), kept, again)


def test_the_mean_of_the_data_over_the_pixels_is_the_first_mean_of_each_channel():
    mean = np.random.default_rng(0).uniform(0.05, 0.95, (8, 8, 2))
    vae = SMALL(data_shape=(8, 8, 2), data_mean=jnp.asarray(mean, jnp.float32))
    first = jax.jit(lambda key: vae.decode(vae.init(key), jnp.ones(3)).mean())(KEY)
    np.testing.assert_allclose(first, np.broadcast_to(mean.mean((0, 1)), (8, 8, 2)), atol=1e-6)


@pytest.mark.slow
def test_bfloat16_gives_the_bound_to_its_rounding():
    x = jnp.asarray(np.random.default_rng(0).random((9, 8, 3)) > 0.5, jnp.float32)

    def bound(precision):
        vae = SMALL(data_shape=(9, 8, 3), latent_channels=2, precision=precision)
        params = randomized_params(vae)
        return jax.jit(lambda params: vae.decode(params, vae.encode(params, x).loc).log_prob(x))(
            params
        )

    wide, narrow = bound("float32"), bound("bfloat16")
    assert narrow.dtype == jnp.float32
    assert wide != narrow
    np.testing.assert_allclose(narrow, wide, rtol=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data_shape": (8, 8)}, r"needs images \(H, W, C\) with H and W from 8 to 1,024"),
        ({"data_shape": (2000, 8, 1)}, "from 8 to 1,024"),
        ({"data_shape": (8, 8, 1), "channels": (2,) * 6}, r"allow from 1 to 4"),
        ({"data_shape": (8, 8, 1), "channels": ()}, r"allow from 1 to 4"),
        ({"data_shape": (8, 8, 1), "channels": (0,)}, "every entry of channels must be positive"),
        ({"data_shape": (8, 8, 1), "blocks": 65}, "blocks must be from 1 to 64"),
        ({"data_shape": (8, 8, 1), "latent_channels": 0}, "latent_channels must be positive"),
    ],
)
def test_resnet_vae_rejects_other_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        SMALL(**arguments)


@pytest.mark.parametrize(("height", "attends"), [(64, True), (65, False)])
def test_attention_is_between_at_most_4096_places(height, attends):
    encoder = ResNetEncoder(2, Levels((2,), 1, False, None), False)
    shapes = jax.eval_shape(encoder.init, KEY, jax.ShapeDtypeStruct((height, 64, 1), "float32"))
    assert ("SelfAttention_0" in shapes["params"]) == attends
