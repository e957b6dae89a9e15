"""Inverse autoregressive flow: dependence between entries, inverse and gradients."""

from functools import partial, reduce
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.distributions import Gaussian
from jaxvae.flows import InverseAutoregressive, autoregressive_flow, autoregressive_init
from jaxvae.flows.autoregressive import GATE_BIAS, autoregressive_masks
from tests.files import golden

CASES = golden("flows")["autoregressive"]
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiler options for programs that run for less time than they take to compile."""


def network(dim, hidden=(9, 8), context_dim=0):
    """Parameters of one layer, of order one, which inputs of order one do not saturate."""
    init = lambda key: autoregressive_init(
        key, dim, context_dim=context_dim, hidden=hidden, num_layers=1
    )
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0))["flow_0"]
    return jax.tree.map(lambda leaf: jnp.asarray(0.7 * rng.normal(size=leaf.shape)), shapes)


def example(dim, hidden, context_dim):
    """(params, context, z') in float64."""
    rng = np.random.default_rng(dim)
    context = jnp.asarray(rng.normal(size=context_dim)) if context_dim else None
    return network(dim, hidden, context_dim), context, jnp.asarray(rng.normal(size=dim))


def by_layer(params, context, moved):
    return InverseAutoregressive(params, context).inverse(moved)


def by_iteration(params, context, moved):
    """The inverse as Z repetitions of z <- G(z), differentiated by plain autodiff."""
    layer = InverseAutoregressive(params, context)

    def improve(z, _):
        m, a = layer._target_and_gate(z)
        return moved + jnp.exp(-a) * (moved - m), None

    z, _ = jax.lax.scan(improve, moved, length=len(moved))
    return z, -layer.forward(z)[1]


def weighted(invert, *example):
    """Sum of all results of an inverse, each with another weight."""
    z, log_det = invert(*example)
    return jnp.sum(jnp.cos(jnp.arange(len(z))) * z) + 0.3 * log_det, (z, log_det)


def value_and_gradients(invert, *example):
    return jax.value_and_grad(partial(weighted, invert), (0, 1, 2), has_aux=True)(*example)


BOTH = (by_layer, by_iteration)


def assert_same(got, expected, rtol=1e-9):
    """Compare every array, relative to its largest entry."""

    def check(got, expected):
        size = np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=0, atol=rtol * size)

    jax.tree.map(check, jax.device_get(got), jax.device_get(expected))


# Golden


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_a_layer_makes_the_golden_values(case, precision):
    with jax.enable_x64(precision == "float64"):
        params = {
            f"layer_{i}": {name: jnp.asarray(array, float) for name, array in layer.items()}
            for i, layer in enumerate(case["layers"])
        }
        context = jnp.asarray(case["context"], float) if case["context"] else None
        forward = quick(InverseAutoregressive(params, context).forward)
        moved, log_det = forward(jnp.asarray(case["z"], float))
    assert moved.dtype.name == log_det.dtype.name == precision
    error = np.abs(np.asarray(moved, np.float64) - case["forward"])
    assert (error <= TOLERANCE[precision] * np.array(case["terms"])).all()
    assert abs(float(log_det) - case["log_det"]) <= TOLERANCE[precision] * case["terms_log"]


# Law


def test_every_entry_is_moved_by_all_those_before_it_and_no_other():
    """The Jacobian is lower triangular, without zeros below its diagonal; that of the next layer
    is upper triangular."""
    params = {"flow_0": network(4), "flow_1": network(4)}
    both = autoregressive_flow(params, Gaussian.standard(4)).transforms
    moves = lambda z: [move(z)[0] for layer in both for move in (layer.forward, layer.inverse)]
    forward, inverse, *reversed_layer = quick(jax.jacfwd(moves))(jnp.linspace(-0.5, 0.7, 4))
    for jacobian in (forward, inverse):
        np.testing.assert_array_equal(jacobian != 0.0, np.tril(np.ones((4, 4), bool)))
    for jacobian in reversed_layer:
        np.testing.assert_array_equal(jacobian != 0.0, np.triu(np.ones((4, 4), bool)))


@pytest.mark.parametrize("hidden", [(3,), (8,), (7, 5, 6)])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_masks_let_through_what_comes_before_only(dim, hidden):
    """Paths from inputs to outputs are counted by the product of the masks (Germain et al.)."""
    sizes = (dim, *hidden, 2 * dim)
    masks = autoregressive_masks(sizes)
    assert [mask.shape for mask in masks] == list(pairwise(sizes))
    paths = reduce(np.matmul, [mask.astype(int) for mask in masks])
    later = np.arange(dim)[:, None] >= np.tile(np.arange(dim), 2)
    assert not paths[later].any()
    if min(hidden) >= dim:
        assert paths[~later].all()


def test_every_entry_depends_on_the_context():
    context = jnp.array([0.2, -1.0])
    params = network(4, context_dim=2)
    move = lambda context: InverseAutoregressive(params, context).forward(jnp.ones(4))[0]
    assert (quick(jax.jacfwd(move))(context) != 0.0).all()


def test_a_new_flow_is_near_a_contraction_by_its_gates():
    """Each layer contracts by 0.875, up to 0.01 of the output of a network of normal weights."""
    gate = 1 / (1 + np.exp(-7 * np.tanh(GATE_BIAS / 7)))

    @quick
    def draw(key):
        params = autoregressive_init(jax.random.key(0), 5, hidden=(16,))
        q = autoregressive_flow(params, Gaussian.standard(5))
        return q.sample(key), gate**2 * q.base.sample(key)

    moved, contracted = draw(jax.random.key(1))
    # In each layer m and a are sums of 16 tanh units times weights of 0.01 / 4.
    assert np.abs(moved - contracted).max() <= 4 * 2 * 0.01
    assert np.abs(moved - contracted).max() > 0.0


def test_gates_that_are_shut_or_open_lose_no_finite_value():
    """Their logit is clamped to (-7, 7), so that log g is between -7.001 and -0.0009."""
    params, z = network(4), jnp.array([-100.0, 0.0, 1.0, 100.0])

    @quick
    def values_and_jacobian(bias):
        layer = InverseAutoregressive(params | {"layer_2": params["layer_2"] | {"bias": bias}})
        both = lambda z: [*layer.forward(z), *layer.inverse(z)]
        return both(z), jax.jacfwd(both)(z)

    for sign in (-1.0, 1.0):
        result = values_and_jacobian(jnp.full(8, sign * 1e4))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))
        expected = 4 * np.log1p(np.exp(-7.0 * sign))
        np.testing.assert_allclose([-result[0][1], result[0][3]], expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dim", "hidden", "context_dim"),
    [
        (1, (4,), 2),
        (3, (2,), 0),
        pytest.param(5, (7, 4), 3, marks=pytest.mark.slow),
        pytest.param(8, (16,), 2, marks=pytest.mark.slow),
        (4, (3, 9, 5), 1),
    ],
)
def test_the_inverse_and_its_gradients_are_those_of_iterating_z_times(dim, hidden, context_dim):
    """Gradients by every parameter, the context and z', for any number of units per degree."""
    with jax.enable_x64(True):
        inputs = example(dim, hidden, context_dim)

        @quick
        def both(*inputs):
            got, expected = (value_and_gradients(f, *inputs) for f in BOTH)
            return got, expected, InverseAutoregressive(*inputs[:2]).forward(got[0][1][0])

        got, expected, (moved, log_det) = jax.device_get(both(*inputs))
    assert_same(got, expected)
    np.testing.assert_allclose(moved, inputs[2], rtol=0, atol=1e-10)
    np.testing.assert_allclose(got[0][1][1], -log_det, rtol=0, atol=1e-10)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(got[1][1:]))


@pytest.mark.slow
def test_second_derivatives_are_those_of_iterating_z_times():
    """Along one direction in everything at once, of the gradient by everything."""
    with jax.enable_x64(True):
        inputs = example(3, (4,), 2)
        direction = jax.tree.map(jnp.sin, inputs)

        def turn(invert):
            gradient = lambda *inputs: value_and_gradients(invert, *inputs)[1]
            return jax.jvp(gradient, inputs, direction)[1]

        got, expected = quick(lambda: [turn(invert) for invert in BOTH])()
    assert_same(got, expected)


def test_memory_of_a_gradient_grows_with_the_number_of_units():
    """It does not grow with Z times the units, by the shapes of the backward pass's inputs."""

    def kept(dim):
        params, _, _ = example(dim, (4 * dim,), 0)
        invert = jax.vmap(lambda params, z: by_layer(params, None, z), (None, 0))
        backward = lambda zs: jax.vjp(invert, params, zs)[1]
        several = lambda n: jax.tree.leaves(jax.eval_shape(backward, jnp.zeros((n, dim))))
        return sum(leaf.size for leaf in several(101)) - sum(leaf.size for leaf in several(100))

    assert kept(8) <= 12 * 4 * 8
    assert kept(16) <= 2 * kept(8)


# Transform


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_under_vmap_the_gradients_stay_those_of_iterating(shared):
    """Parameters are shared by all examples, or each example has its own."""
    with jax.enable_x64(True):
        params, context, moved = example(4, (6, 3), 2)
        several = lambda array: jnp.stack([array + tilt for tilt in (-0.5, 0.0, 1.0)])
        inputs = (
            params if shared else jax.tree.map(several, params),
            several(context),
            several(moved),
        )

        def total(invert, params, contexts, moved):
            run = jax.vmap(partial(weighted, invert), (None if shared else 0, 0, 0))
            value, both = run(params, contexts, moved)
            return jnp.sum(value), both

        gradients = lambda invert: jax.value_and_grad(
            partial(total, invert), (0, 1, 2), has_aux=True
        )
        got, expected = quick(lambda *inputs: [gradients(f)(*inputs) for f in BOTH])(*inputs)
        assert_same(got, expected)


def test_bfloat16_parameters_are_inverted_as_the_numbers_they_are():
    cast = lambda dtype, inputs: jax.tree.map(lambda leaf: leaf.astype(dtype), inputs)
    rounded = cast(jnp.bfloat16, example(3, (4,), 2))
    both = quick(lambda inputs: [by_layer(*inputs), by_layer(*cast(jnp.float32, inputs))])
    got, expected = both(rounded)
    assert got[0].dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    _, gradient = jax.eval_shape(partial(value_and_gradients, by_layer), *rounded)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {rounded[1].dtype}


def test_a_float32_value_is_inverted_by_float64_parameters():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), network(3))
        z = jnp.array([0.5, -1.0, 2.0], jnp.float32)
        layer = InverseAutoregressive(params)
        back, _ = quick(layer.inverse)(z)
        assert back.dtype == jnp.float64
        np.testing.assert_allclose(quick(layer.forward)(back)[0], z, rtol=0, atol=1e-13)
