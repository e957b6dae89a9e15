"""Coupling layers: the half that stays, the half that moves, and its map."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.distributions import Gaussian
from jaxvae.flows import Coupling, coupling_flow, coupling_init
from tests.files import golden

CASES = golden("flows")["coupling"]
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiler options for programs that run for less time than they take to compile."""
every_kind = pytest.mark.parametrize("kind", ["affine", "spline"])


def network(kind, dim, context_dim=0):
    """Parameters of one layer, of order one."""
    init = lambda key: coupling_init(
        key, dim, context_dim=context_dim, hidden=(6,), num_layers=1, kind=kind
    )
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0))["flow_0"]
    return jax.tree.map(lambda leaf: jnp.asarray(0.7 * rng.normal(size=leaf.shape)), shapes)


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
        forward = quick(Coupling(params, context, case["kind"]).forward)
        moved, log_det = forward(jnp.asarray(case["z"], float))
    assert moved.dtype.name == log_det.dtype.name == precision
    error = np.abs(np.asarray(moved, np.float64) - case["forward"])
    assert (error <= TOLERANCE[precision] * np.array(case["terms"])).all()
    assert abs(float(log_det) - case["log_det"]) <= TOLERANCE[precision] * case["terms_log"]


# Law


@every_kind
def test_the_first_half_stays_and_determines_the_maps_of_the_others(kind):
    layer, z = Coupling(network(kind, 5), kind=kind), jnp.array([0.3, -0.5, 0.7, 0.1, -1.2])
    moves = lambda z: [layer.forward(z)[0], layer.inverse(z)[0]]
    pattern = np.eye(5, dtype=bool)
    pattern[2:, :2] = True
    for moved, jacobian in zip(*quick(lambda z: (moves(z), jax.jacfwd(moves)(z)))(z), strict=True):
        np.testing.assert_array_equal(moved[:2], z[:2])
        np.testing.assert_array_equal(jacobian != 0.0, pattern)


def test_two_layers_move_every_entry():
    """The second works from the other end; the middle one of five moves in both."""
    params = {"flow_0": network("affine", 5), "flow_1": network("affine", 5)}
    first, second = coupling_flow(params, Gaussian.standard(5)).transforms
    z = jnp.array([0.3, -0.5, 0.7, 0.1, -1.2])
    np.testing.assert_array_equal(first.forward(z)[0] == z, [True, True, False, False, False])
    np.testing.assert_array_equal(second.forward(z)[0] == z, [False, False, False, True, True])


@every_kind
def test_one_entry_moves_by_the_context_and_without_one_by_the_biases(kind):
    z = jnp.array([0.7])
    alone = Coupling(network(kind, 1), kind=kind)
    assert quick(alone.forward)(z)[0] != z
    by_context = lambda c: Coupling(network(kind, 1, 2), c, kind).forward(z)[0]
    assert (quick(jax.jacfwd(by_context))(jnp.array([0.2, -1.0])) != 0.0).all()
    # Arrays without entries could not be saved.
    assert all(leaf.size for leaf in jax.tree.leaves(network(kind, 1)))


@every_kind
def test_a_new_flow_is_near_the_identity(kind):
    """This holds for any number of layers; here one is reversed."""

    @quick
    def draw(key):
        params = coupling_init(jax.random.key(0), 5, hidden=(16,), kind=kind)
        q = coupling_flow(params, Gaussian.standard(5), kind=kind)
        z, log_q = q.sample_and_log_prob(key)
        return jnp.abs(z - q.base.sample(key)), jnp.abs(log_q - q.base.log_prob(z))

    for key in jax.random.split(jax.random.key(1), 3):
        shift, log_ratio = draw(key)
        # In each layer a parameter is a sum of 16 tanh units times weights of 0.01 / 4.
        assert 0.0 < shift.max() <= 4 * 2 * 0.01 * 3
        assert log_ratio <= 4 * 2 * 0.01 * 5 * 3


@every_kind
def test_extreme_parameters_lose_no_finite_value(kind):
    """A log scale is clamped to (-7, 7); a spline has bins and slopes of at least 0.001."""
    params, z = network(kind, 4), jnp.array([-100.0, 1.0, 0.5, 100.0])

    @quick
    def values_and_jacobian(bias):
        layer = Coupling(params | {"layer_1": params["layer_1"] | {"bias": bias}}, kind=kind)
        both = lambda z: [*layer.forward(z), *layer.inverse(z)]
        return both(z), jax.jacfwd(both)(z)

    for size in (-1e4, 1e4):
        result = values_and_jacobian(size * jnp.sign(params["layer_1"]["bias"]))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))
        if kind == "affine":
            assert abs(result[0][1]) <= 14.0


# Failure


def test_another_kind_is_rejected():
    with pytest.raises(ValueError, match="kind must be affine or spline, got 'cubic'"):
        coupling_init(jax.random.key(0), 3, kind="cubic")
    with pytest.raises(ValueError, match="kind must be affine or spline, got 'cubic'"):
        Coupling(network("affine", 3), kind="cubic").forward(jnp.zeros(3))


def test_parameters_of_another_kind_are_rejected():
    with pytest.raises(ValueError, match=r"kind 'spline' must have 23 outputs for each.*has 4 in"):
        Coupling(network("affine", 3), kind="spline").forward(jnp.zeros(3))
    with pytest.raises(ValueError, match=r"kind 'affine' must have 2 outputs for each.*has 46 in"):
        Coupling(network("spline", 3), kind="affine").inverse(jnp.zeros(3))
