"""Convolutions of any window: XLA's numbers and gradients in float64, in every form and mode."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.cpu.convolution import convolution, transposed_convolution

WINDOWS = [
    # image, outputs, kernel, stride, dilation, padding
    ((7, 8, 3), 5, (3, 3), 1, 1, None),
    ((7, 8, 24), 24, (3, 3), 1, 1, None),
    ((9, 6, 24), 24, (3, 5), 1, 2, None),
    ((9, 6, 24), 2, (3, 3), 1, 1, None),
    ((5, 5, 24), 24, (3, 3), 1, 1, ((1, 2), (0, 3))),
    ((5, 7, 24), 24, (2, 3), 1, 1, ((-1, 3), (2, -2))),
    ((8, 9, 4), 6, (3, 3), 2, 1, None),
    ((9, 8, 4), 6, (4, 4), 2, 1, None),
    ((11, 9, 2), 3, (3, 2), 3, 2, ((1, 0), (2, 1))),
    ((6, 5, 4), 3, (1, 1), 1, 1, None),
    ((6, 5, 4), 3, (1, 1), 2, 1, None),
    ((1, 1, 2), 2, (3, 3), 1, 1, None),
]
"""All forms: few channels, few outputs, many of both; odd sides, dilations, pixels cut off."""
USUAL = {
    ((7, 8), (3, 3), 1, 1): ((1, 1), (1, 1)),
    ((9, 6), (3, 5), 1, 2): ((2, 2), (4, 4)),
    ((9, 6), (3, 3), 1, 1): ((1, 1), (1, 1)),
    ((8, 9), (3, 3), 2, 1): ((0, 1), (0, 2)),
    ((9, 8), (4, 4), 2, 1): ((1, 2), (1, 1)),
    ((6, 5), (1, 1), 1, 1): ((0, 0), (0, 0)),
    ((6, 5), (1, 1), 2, 1): ((0, -1), (0, 0)),
    ((1, 1), (3, 3), 1, 1): ((1, 1), (1, 1)),
}
"""(Sides, kernel, stride, dilation) -> the padding that stands for None."""
TRANSPOSED = [
    ((4, 3, 5), 2, (4, 4), 2, None),
    ((3, 4, 2), 5, (3, 3), 2, None),
    ((3, 2, 3), 2, (3, 5), 3, ((2, 1), (0, 3))),
    ((4, 4, 24), 24, (3, 3), 1, None),
    ((4, 3, 3), 3, (2, 2), 3, ((-1, 2), (1, 0))),
]
TOLERANCE = 1e-12

windows = pytest.mark.parametrize(
    ("shape", "outputs", "taps", "stride", "dilation", "padding"), WINDOWS, ids=str
)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def draws(shape, outputs, taps, batch=2):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(*taps, shape[-1], outputs)) / np.sqrt(shape[-1])
    return jnp.asarray(rng.normal(size=(batch, *shape))), jnp.asarray(kernel)


def value_and_gradients(function, x, kernel):
    def total(x, kernel):
        y = jax.vmap(function, in_axes=(0, None))(x, kernel)
        return jnp.vdot(jnp.cos(jnp.arange(y.size, dtype=y.dtype)), y.ravel()), y

    gradients, y = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(x, kernel)
    return y, *gradients


def by_xla(x, kernel, stride, dilation, padding, spread=1):
    return jax.lax.conv_general_dilated(
        x[None],
        kernel,
        (stride, stride),
        padding,
        lhs_dilation=(spread, spread),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )[0]


def assert_equal(actual, expected):
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * 100)


# Golden


@windows
def test_value_and_gradients_are_xlas(shape, outputs, taps, stride, dilation, padding):
    x, kernel = draws(shape, outputs, taps)
    ours = partial(convolution, stride=stride, dilation=dilation, padding=padding)
    padding = padding or USUAL[shape[:2], taps, stride, dilation]
    theirs = partial(by_xla, stride=stride, dilation=dilation, padding=padding)
    assert_equal(value_and_gradients(ours, x, kernel), value_and_gradients(theirs, x, kernel))


@pytest.mark.parametrize(("shape", "outputs", "taps", "stride", "padding"), TRANSPOSED, ids=str)
def test_transposed_value_and_gradients_are_xlas(shape, outputs, taps, stride, padding):
    x, kernel = draws(shape, outputs, taps)
    ours = partial(transposed_convolution, stride=stride, padding=padding)
    if padding is None:
        theirs = lambda x, kernel: jax.lax.conv_transpose(
            x[None], kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )[0]
    else:
        theirs = partial(by_xla, stride=1, dilation=1, padding=padding, spread=stride)
    assert_equal(value_and_gradients(ours, x, kernel), value_and_gradients(theirs, x, kernel))


# Transform


@pytest.mark.slow
@pytest.mark.parametrize("channels", [2, 24])
def test_forward_mode_and_second_derivatives_are_those_of_reverse_mode(channels):
    x, kernel = draws((3, 4, channels), channels, (3, 3), batch=1)
    point, along = (x[0], kernel), (jnp.cos(x[0]), jnp.sin(kernel))
    function = lambda point: jnp.sum(jnp.sin(convolution(*point)))
    inner = lambda one, other: sum(map(jnp.vdot, one, other))
    _, tangent = jax.jvp(function, (point,), (along,))
    np.testing.assert_allclose(tangent, inner(jax.grad(function)(point), along), rtol=1e-10)
    moved = lambda t: jax.tree.map(lambda value, step: value + t * step, point, along)
    slope = lambda t: inner(jax.grad(function)(moved(t)), along)
    second = jax.jvp(jax.grad(function), (point,), (along,))[1]
    numeric = (slope(1e-5) - slope(-1e-5)) / 2e-5
    np.testing.assert_allclose(inner(second, along), numeric, rtol=1e-6)


@pytest.mark.parametrize("channels", [2, 24])
def test_vmap_pmap_and_a_sharded_batch_agree(channels):
    x, kernel = draws((4, 3, channels), channels, (3, 3), batch=8)
    one = jnp.stack([convolution(image, kernel) for image in x])
    every = jax.vmap(convolution, in_axes=(0, None))
    twice = jax.vmap(every, in_axes=(0, None))(x.reshape(4, 2, *x.shape[1:]), kernel)
    np.testing.assert_allclose(twice.reshape(one.shape), one, rtol=0, atol=TOLERANCE)
    devices = jax.pmap(every, in_axes=(0, None))(x.reshape(8, 1, *x.shape[1:]), kernel)
    np.testing.assert_allclose(devices.reshape(one.shape), one, rtol=0, atol=TOLERANCE)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), "devices")
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
    np.testing.assert_allclose(
        jax.jit(every)(jax.device_put(x, rows), kernel), one, rtol=0, atol=TOLERANCE
    )
    kernels = jnp.stack([kernel, -kernel])  # an ensemble
    both = jax.vmap(convolution, in_axes=(None, 0))(x[0], kernels)
    np.testing.assert_allclose(both[1], -both[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_gradients_of_a_cpu_are_usual_convolutions(platform):
    """Others are slow inside loops there; GPUs and TPUs run jax's own gradients."""
    x, kernel = draws((6, 6, 24), 24, (3, 3))
    step = jax.jit(lambda x, kernel: value_and_gradients(convolution, x, kernel))
    text = jax.export.export(step, platforms=[platform])(x, kernel).mlir_module()
    layouts = [line for line in text.split("\n") if "stablehlo.convolution" in line]
    usual = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
    assert len(layouts) == (2 if platform == "cpu" else 3)
    assert all(usual in line for line in layouts) == (platform == "cpu")


# Failure


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": (2, 8, 8, 1), "kernel": (3, 3, 1, 2)}, r"one image \[H, W, C\], got shape"),
        ({"x": (8, 8, 3), "kernel": (3, 3, 1, 2)}, r"shape \(A, B, 3, O\) for an image"),
        ({"x": (8, 8, 1), "kernel": (3, 3, 1, 2), "stride": 0}, "must be at least 1, got 0"),
        (
            {"x": (2, 8, 1), "kernel": (5, 3, 1, 2), "padding": ((0, 0), (0, 0))},
            r"leaves -2 x 6 positions\. Pad more",
        ),
        (
            {"x": (2, 8, 1), "kernel": (1, 1, 1, 2), "padding": ((-2, 1), (0, 0))},
            r"cuts off all of an image of shape \(2, 8, 1\)\. Cut off less",
        ),
    ],
)
def test_other_shapes_are_rejected(arguments, message):
    x, kernel = jnp.zeros(arguments.pop("x")), jnp.zeros(arguments.pop("kernel"))
    with pytest.raises(ValueError, match=message):
        convolution(x, kernel, **arguments)
