"""The rational-quadratic spline of one number."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.flows import Spline
from jaxvae.flows.spline import BOUND, MIN_SLOPE, NUM_BINS
from tests.files import golden
from tests.golden import make_flows

GOLDEN = golden("flows")
CASES = GOLDEN["spline"]
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiler options for programs that run for less time than they take to compile."""
EPS = float(np.finfo(np.float32).eps)
SIZE = 3 * NUM_BINS - 1


@quick
def both_ways(raw, values):
    """y, log dy/dx, x and log dx/dy of some values, each with its derivative by the value."""
    spline = Spline.from_raw(raw)
    ways = lambda value: [*spline.forward(value), *spline.inverse(value)]
    return [jax.vmap(ways)(values), jax.vmap(jax.jacfwd(ways))(values)]


def outputs(raw, values, derivatives=False):
    """`both_ways` in one program for up to 128 values."""
    padded = jnp.pad(values, (0, 128 - len(values)))
    results = both_ways(raw, padded)[int(derivatives)]
    return [result[: len(values)] for result in results]


def forward(raw, x):
    return outputs(raw, x)[:2]


def inverse(raw, y):
    return outputs(raw, y)[2:]


@quick
def gradients(raw, values):
    """Gradient of a function of every output, by all parameters."""

    def total(raw, value):
        spline = Spline.from_raw(raw)
        (y, log_slope), (x, log_slope_back) = spline.forward(value), spline.inverse(value)
        return y + 2.0 * log_slope + 3.0 * x + 5.0 * log_slope_back

    return jax.vmap(jax.grad(total), (None, 0))(raw, values)


def raw_of(seed, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=SIZE))


# Golden


@pytest.mark.slow
def test_golden_file_is_what_its_script_makes():
    made = make_flows.make_flows()
    assert made.keys() == GOLDEN.keys()
    for group in made:
        for new, old in zip(made[group], GOLDEN[group], strict=True):
            names = ("name", "kind")
            assert [new.get(name) for name in names] == [old.get(name) for name in names]
            new, old = ({k: v for k, v in one.items() if k not in names} for one in (new, old))
            chex.assert_trees_all_close(new, old, rtol=1e-13)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_value_and_log_slope_are_the_golden_values_in_both_directions(case, precision):
    with jax.enable_x64(precision == "float64"):
        raw, x = jnp.asarray(case["raw"], float), jnp.asarray(case["x"], float)
        results = outputs(raw, x)
    names = ("", "_log"), ("_inverse", "_log_inverse")
    values = "y", "log_slope", "inverse", "log_slope_inverse"
    terms = [f"terms{name}" for pair in names for name in pair]
    for result, value, allowed in zip(results, values, terms, strict=True):
        assert result.dtype.name == precision
        error = np.abs(np.asarray(result, np.float64) - case[value])
        assert (error <= TOLERANCE[precision] * np.array(case[allowed])).all(), value


# Law


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_inverse_undoes_forward(scale):
    """The tolerance of x is that of y times the slope dx/dy."""
    for seed in range(5):
        with jax.enable_x64(True):
            raw, x = raw_of(seed, scale), jnp.linspace(-6.0, 6.0, 121)
            y, log_slope = forward(raw, x)
            back, log_slope_back = inverse(raw, y)
            again, _ = forward(raw, back)
        assert (np.abs(np.subtract(back, x)) <= 1e-14 * BOUND * (1 + np.exp(-log_slope))).all()
        np.testing.assert_allclose(again, y, rtol=0, atol=1e-13)
        np.testing.assert_allclose(log_slope, -np.asarray(log_slope_back), rtol=0, atol=1e-8)


def test_log_slope_is_the_derivative():
    with jax.enable_x64(True):
        raw, x = raw_of(0), jnp.linspace(-5.9, 5.9, 60)
        _, log_slope, _, log_slope_back = outputs(raw, x)
        slope, _, slope_back, _ = outputs(raw, x, derivatives=True)
    np.testing.assert_allclose(np.log(slope), log_slope, rtol=0, atol=1e-11)
    np.testing.assert_allclose(np.log(slope_back), log_slope_back, rtol=0, atol=1e-11)


def test_zeros_make_the_identity():
    x = jnp.linspace(-5.5, 5.5, 101)
    y, log_slope = forward(jnp.zeros(SIZE), x)
    np.testing.assert_allclose(y, x, rtol=0, atol=2 * EPS * BOUND)
    # Widths and heights are the same numbers, 1.25: what is left is log(1 +- eps).
    np.testing.assert_allclose(log_slope, 0.0, atol=4 * EPS)


def test_the_spline_is_smooth_at_its_knots_and_joins_the_tails():
    """It interpolates its knots, with its slopes there: from both sides, as y' is continuous."""
    with jax.enable_x64(True):
        raw = raw_of(1)
        spline = Spline.from_raw(raw)
        assert (np.diff(spline.x) > 0).all()
        assert (np.diff(spline.y) > 0).all()
        assert spline.x[0] == spline.y[0] == -BOUND == -spline.x[-1] == -spline.y[-1]
        assert spline.slopes[0] == spline.slopes[-1] == 1.0
        for side in (-1e-9, 1e-9):
            y, log_slope = forward(raw, spline.x + side)
            # The bins are at least 0.01 wide: 1e-9 further the slope is another by up to 1e-5.
            np.testing.assert_allclose(y, spline.y, rtol=0, atol=1e-7)
            np.testing.assert_allclose(jnp.exp(log_slope), spline.slopes, rtol=1e-5)


@pytest.mark.parametrize("value", [-1e30, -100.0, -5.0, 5.0, 100.0, 1e30])
def test_outside_the_box_it_is_the_identity(value):
    raw = raw_of(2, 3.0)
    for direction in (forward, inverse):
        result, log_slope = direction(raw, jnp.array([value]))
        assert (result[0], log_slope[0]) == (value, 0.0)
    derivatives = outputs(raw, jnp.array([value]), derivatives=True)
    assert np.ravel(derivatives).tolist() == [1.0, 0.0, 1.0, 0.0]
    assert (gradients(raw, jnp.full(123, value)) == 0.0).all()


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_values_and_gradients_are_finite_at_extreme_parameters(size):
    x = jnp.concatenate([jnp.linspace(-5.0, 5.0, 121), jnp.array([-100.0, 100.0])])
    raw = np.asarray(size * raw_of(0))
    even = np.where(np.arange(SIZE) < NUM_BINS, 0.0, raw)
    for case in (raw, -raw, even, np.full(SIZE, size)):
        results = both_ways(jnp.asarray(case), jnp.pad(x, (0, 5)))
        assert np.isfinite(results).all()
        assert (np.diff(results[0][0][:121]) >= 0).all()
        assert (np.diff(results[0][2][:121]) >= 0).all()
        assert np.isfinite(gradients(jnp.asarray(case), x)).all()
        assert (Spline.from_raw(jnp.asarray(case)).slopes >= MIN_SLOPE).all()


# Transform


@pytest.mark.long
def test_gradients_are_those_of_finite_differences():
    """Central ones: the error is h^2 of the third derivative, and eps / h."""
    weights, step = np.array([1.0, 2.0, 3.0, 5.0]), 1e-5
    with jax.enable_x64(True):
        raw, values = raw_of(3), jnp.linspace(-4.0, 4.5, 123)
        by_raw = gradients(raw, values)
        for i in range(SIZE):
            shift = jnp.zeros(SIZE).at[i].set(step)
            more, less = (np.array(outputs(raw + sign * shift, values)) for sign in (1, -1))
            slope = weights @ (more - less) / (2 * step)
            np.testing.assert_allclose(by_raw[:, i], slope, rtol=1e-6, atol=1e-6)
