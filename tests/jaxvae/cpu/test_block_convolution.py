"""4 x 4 convolutions with stride 2: flax's numbers and gradients, on the path of each backend."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.cpu.convolution import convolution, transposed_convolution
from jaxvae.networks.convolutions import Conv, ConvTranspose
from jaxvae.networks.decoders import ConvDecoder
from jaxvae.networks.encoders import ConvEncoder

SHAPES = [
    ((8, 8, 1), 4),
    ((9, 12, 3), 5),
    ((7, 5, 8), 3),
    ((2, 11, 12), 1),
    ((1, 1, 2), 2),
]
"""Image and outputs: odd and even sides, and transposes that gather (C <= 4 O) and scatter."""
BATCH = 6
FUNCTIONS = {"convolution": partial(convolution, stride=2), "transposed": transposed_convolution}

functions = pytest.mark.parametrize("name", FUNCTIONS)
every_shape = pytest.mark.parametrize(("shape", "outputs"), SHAPES, ids=str)


def by_flax(name, x, kernel):
    """Output of flax's own layer for one image."""
    sizes = {"features": kernel.shape[-1], "kernel_size": (4, 4), "strides": (2, 2)}
    if name == "convolution":
        padding = [(1, 1 + x.shape[0] % 2), (1, 1 + x.shape[1] % 2)]
        layer = nn.Conv(**sizes, padding=padding, use_bias=False)
    else:
        layer = nn.ConvTranspose(**sizes, use_bias=False)
    return layer.apply({"params": {"kernel": kernel}}, x)


def draws(shape, outputs, seed=0, batch=()):
    """An image, or a batch, and a kernel whose outputs have a variance of about 1."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(4, 4, shape[-1], outputs)) / np.sqrt(16 * shape[-1])
    x = rng.normal(size=(*batch, *shape))
    return jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)


def value_and_gradients(function, x, kernel):
    """Outputs of a batch, and the gradients of a weighted sum of them."""

    def total(x, kernel):
        y = jax.vmap(function, in_axes=(0, None))(x, kernel)
        weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return jnp.vdot(weights, y), y

    gradients, y = jax.grad(total, argnums=(0, 1), has_aux=True)(x, kernel)
    return {"y": y, "x": gradients[0], "kernel": gradients[1]}


def assert_close(actual, expected):
    for name, value in expected.items():
        scale = max(1.0, float(jnp.abs(value).max()))
        np.testing.assert_allclose(actual[name], value, rtol=0, atol=1e-5 * scale, err_msg=name)


# Golden


@pytest.mark.slow
@functions
@every_shape
def test_values_and_gradients_are_those_of_flax_layers(name, shape, outputs):
    x, kernel = draws(shape, outputs, batch=(BATCH,))
    actual = jax.jit(lambda x, kernel: value_and_gradients(FUNCTIONS[name], x, kernel))(x, kernel)
    by = lambda x, kernel: by_flax(name, x, kernel)
    assert_close(actual, jax.jit(lambda x, kernel: value_and_gradients(by, x, kernel))(x, kernel))


def test_a_pixel_alone_shows_the_kernel():
    """The formulas of the docstrings give the place of each tap, without a flip."""
    kernel = jnp.arange(16.0).reshape(4, 4, 1, 1)
    x = jnp.zeros((6, 6, 1)).at[3, 2, 0].set(1.0)
    y = convolution(x, kernel, stride=2)[..., 0]  # x[2i + t - 1, 2j + u - 1]
    assert y[1, 1] == kernel[2, 1, 0, 0]
    assert y[2, 0] == kernel[0, 3, 0, 0]
    y = transposed_convolution(x, kernel)[..., 0]  # y[2i + 2 - t, 2j + 2 - u]
    np.testing.assert_array_equal(y[5:9, 3:7], kernel[::-1, ::-1, 0, 0])
    assert jnp.count_nonzero(y) == 15


# Law


def test_the_transpose_moves_a_pixel_to_where_the_convolution_sees_it():
    """<conv(x), y> = <x, conv^T(y)>, with the kernel flipped and its channels exchanged."""
    x, kernel = draws((8, 6, 3), 5)
    y, _ = draws((4, 3, 5), 1, seed=1)
    back = transposed_convolution(y, kernel[::-1, ::-1].swapaxes(2, 3))
    forth = jnp.vdot(convolution(x, kernel, stride=2), y)
    np.testing.assert_allclose(forth, jnp.vdot(x, back), rtol=1e-5)


class OldEncoder(nn.Module):
    """The encoder of checkpoints from before this module: flax's own layers."""

    @nn.compact
    def __call__(self, x):
        for channels in (3, 4):
            padding = [(1, 1 + x.shape[0] % 2), (1, 1 + x.shape[1] % 2)]
            x = nn.relu(nn.Conv(channels, (4, 4), strides=(2, 2), padding=padding)(x))
        x = nn.relu(nn.Dense(5)(x.reshape(-1)))
        return nn.Dense(6)(x)


class OldDecoder(nn.Module):
    """The decoder of checkpoints from before this module: flax's own layers."""

    @nn.compact
    def __call__(self, z):
        h = nn.relu(nn.Dense(5)(z))
        h = nn.relu(nn.Dense(36)(h)).reshape(3, 3, 4)
        h = nn.relu(nn.ConvTranspose(3, (4, 4), strides=(2, 2))(h)[:5, :6])
        h = nn.ConvTranspose(3, (4, 4), strides=(2, 2), use_bias=False)(h)[:9]
        return h + self.param("output_bias", nn.initializers.zeros, (9, 12, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "size"),
    [
        (OldEncoder(), ConvEncoder(6, (3, 4), 5), (9, 12, 3)),
        (OldDecoder(), ConvDecoder((9, 12, 3), (3, 4), 5), (2,)),
    ],
    ids=["encoder", "decoder"],
)
def test_parameters_of_flax_layers_load_and_start_the_same(old, new, size):
    values = jnp.asarray(np.random.default_rng(0).normal(size=size), jnp.float32)
    expected, params = jax.jit(old.init_with_output)(jax.random.key(0), values)
    started = jax.jit(new.init)(jax.random.key(0), values)
    assert jax.tree.structure(params) == jax.tree.structure(started)
    same = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8)
    jax.tree.map(same, params, started)
    np.testing.assert_allclose(jax.jit(new.apply)(params, values), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", [Conv, ConvTranspose])
def test_a_layer_computes_in_its_dtype_from_parameters_in_float32(layer):
    x, _ = draws((4, 4, 2), 1)
    init = jax.jit(layer(3, 4, stride=2, dtype=jnp.bfloat16).init_with_output)
    y, variables = init(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}


# Transform


@pytest.mark.slow
@functions
def test_eager_jit_vmap_and_pmap_agree(name):
    function = FUNCTIONS[name]
    x, kernel = draws((5, 6, 3), 2, batch=(2, 2))
    one = jnp.stack([jnp.stack([function(x, kernel) for x in row]) for row in x])
    twice = jax.vmap(jax.vmap(function, (0, None)), (0, None))
    np.testing.assert_allclose(jax.jit(twice)(x, kernel), one, rtol=0, atol=1e-5)
    devices = jax.pmap(jax.vmap(function, (0, None)), in_axes=(0, None))
    np.testing.assert_allclose(devices(x, kernel), one, rtol=0, atol=1e-5)


@functions
def test_kernels_of_a_batch_of_their_own_and_forward_mode_work_too(name):
    """An ensemble needs the first, and the Jacobian of a decoder the second."""
    function = FUNCTIONS[name]
    x, kernel = draws((4, 3, 2), 2)
    kernels = jnp.stack([kernel, -2 * kernel])
    both = jax.jit(jax.vmap(function, in_axes=(None, 0)))(x, kernels)
    np.testing.assert_allclose(both[1], -2 * both[0], rtol=0, atol=1e-5)
    forward, reverse = (jax.jit(jac(function))(x, kernel) for jac in (jax.jacfwd, jax.jacrev))
    np.testing.assert_allclose(forward, reverse, rtol=0, atol=1e-5)


@functions
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_the_path_of_the_backend_is_compiled(name, platform):
    """This holds for value and gradients."""
    x, kernel = draws((6, 7, 2), 3, batch=(BATCH,))
    step = jax.jit(lambda x, kernel: value_and_gradients(FUNCTIONS[name], x, kernel))
    text = jax.export.export(step, platforms=[platform])(x, kernel).mlir_module()
    native = platform != "cpu"
    assert text.count("stablehlo.convolution") == (3 if native else 0)
    assert text.count("stablehlo.dot_general") == (1 if native else 4)  # one is the test's vdot


@functions
def test_a_whole_batch_is_one_product_without_conditionals(name):
    """A product for each image, or a conditional, would make a CPU slow."""
    x, kernel = draws((8, 8, 3), 4, batch=(BATCH,))
    step = jax.jit(lambda x, kernel: value_and_gradients(FUNCTIONS[name], x, kernel))
    lowered = step.lower(x, kernel)
    assert "batching_dims" not in lowered.as_text()
    assert " conditional(" not in lowered.compile().as_text()


# Failure


@functions
@pytest.mark.parametrize(
    ("image", "kernel", "message"),
    [
        ((2, 8, 8, 1), (4, 4, 1, 2), r"one image \[H, W, C\], got shape \(2, 8, 8, 1\). jax.v"),
        ((8, 8, 3), (4, 4, 1, 2), r"shape \(A, B, 3, O\) for .* got \(4, 4, 1, 2\). Give a kernel"),
    ],
)
def test_other_shapes_are_rejected(name, image, kernel, message):
    with pytest.raises(ValueError, match=message):
        FUNCTIONS[name](jnp.zeros(image), jnp.zeros(kernel))
