"""The thermodynamic variational objective, against its Riemann sum in numpy."""

from functools import cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxvae import Gaussian
from jaxvae.bounds import tvo
from tests.oracles import LARGE, in_float64, log_mean_exp, tightness, weighted_by

INTERVALS = [1, 2, 3, 5]
"""Numbers of intervals; each setting halves the intervals of the one before, geometrically."""
SPREADS = [1e-3, 1.0, 30.0, 1e4]
NUM_KEYS, NUM_SAMPLES = 20, 6


@jax.jit
def by_intervals(scale, keys):
    """[value and slope by the spread of the log weights], and the log weights, for each key."""

    def objective(scale, key, num_intervals, first):
        options = {"num_intervals": num_intervals, "first": first, "num_samples": NUM_SAMPLES}
        result = tvo(key, **weighted_by(scale), **options)
        return result.objective, result.log_weights

    slope = jax.value_and_grad(objective, has_aux=True)
    runs = [*((num, 0.05) for num in INTERVALS), (4, 0.3)]
    return jax.vmap(lambda key: [slope(scale, key, *run) for run in runs])(keys)


@cache
def results(scale, precision="float64"):
    """Log weights [B, K], values and slopes [runs, B]."""
    with jax.enable_x64(precision == "float64"):
        keys = jax.random.split(jax.random.key(0), NUM_KEYS)
        runs = jax.device_get(by_intervals(jnp.asarray(scale), keys))
    assert {run[0][0].dtype.name for run in runs} == {precision}
    values, slopes = np.array([run[0][0] for run in runs]), np.array([run[1] for run in runs])
    return in_float64((runs[0][0][1], values, slopes))


def points(num_intervals, first):
    if num_intervals == 1:
        return np.array([0.0, 1.0])
    return np.append(0.0, first ** (1 - np.arange(num_intervals) / (num_intervals - 1)))


def left_sum(logs, points):
    weights = scipy.special.softmax(points[:-1, None, None] * logs, axis=-1)
    return np.diff(points) @ np.sum(weights * logs, axis=-1)


# Golden


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("scale", SPREADS)
def test_values_are_numpys(scale, precision):
    log_weights, values, _ = results(scale, precision)
    # exp(b r) has the error of b r.
    eps, largest = np.finfo(precision).eps, np.abs(log_weights).max()
    far = 16 * eps * largest * (1 + min(scale, 1 / eps / 16, 40.0))
    for value, *run in zip(values, [*INTERVALS, 4], [0.05] * len(INTERVALS) + [0.3], strict=True):
        expected = left_sum(log_weights, points(*run))
        np.testing.assert_allclose(value, expected, rtol=0, atol=far)


# Law


@pytest.mark.parametrize("scale", SPREADS)
def test_tvo_is_between_the_elbo_and_iwae_and_rises_with_intervals(scale):
    """This holds in every draw: the integrand rises, so that a left sum is below the integral."""
    log_weights, values, _ = results(scale)
    rounding = 1e-13 * scale
    ladder = [log_weights.mean(1), *values[: len(INTERVALS)], log_mean_exp(log_weights)]
    for looser, tighter in pairwise(ladder):
        assert (tighter >= looser - rounding).all()
    np.testing.assert_allclose(values[0], log_weights.mean(1), rtol=0, atol=rounding)
    if scale == 1.0:
        for looser, tighter in pairwise(ladder[1:]):
            assert (tighter > looser + 1e-3).mean() > 0.9


def test_tvo_with_many_intervals_is_iwae():
    """The difference is at most the widest interval times the rise of the integrand."""
    options = {"num_samples": NUM_SAMPLES, "num_intervals": 400, "first": 1e-3}
    run = jax.jit(jax.vmap(partial(tvo, **weighted_by(1.0), **options)))
    result = run(jax.random.split(jax.random.key(1), NUM_KEYS))
    logs = in_float64(result.log_weights)
    rise = np.sum(scipy.special.softmax(logs, axis=1) * logs, axis=1) - logs.mean(1)
    gap = log_mean_exp(logs) - result.objective
    assert (gap <= np.diff(points(400, 1e-3)).max() * rise + 1e-5).all()
    assert (gap < 0.02 * (log_mean_exp(logs) - logs.mean(1)) + 1e-5).all()


@pytest.mark.slow
def test_more_samples_tighten_tvo():
    by_size, log_prob = tightness(LARGE, "tvo", ("tvo",))
    for (fewer, error_fewer), (more, error_more) in pairwise(by_size):
        assert more - fewer > 4 * np.hypot(error_fewer, error_more)
        assert more <= log_prob + 4 * error_more


# Transform


@pytest.mark.parametrize("scale", SPREADS[:3])
def test_slopes_are_finite_differences(scale):
    """Central differences of the sum in numpy have the error h^2 f''' / 6 + eps f / h."""
    log_weights, _, slopes = results(scale)
    h = 1e-5
    for slope, num_intervals in zip(slopes, INTERVALS, strict=False):
        at = lambda t, num=num_intervals: left_sum((1 + t) * log_weights, points(num, 0.05))
        difference = (at(h) - at(-h)) / (2 * h * scale)
        far = 1e-7 * np.abs(log_weights).max() / scale * (1 + scale)
        np.testing.assert_allclose(slope, difference, rtol=0, atol=far)


def test_slopes_of_weights_far_apart_are_finite():
    log_weights, _, slopes = results(1e4, "float32")
    assert np.isfinite(slopes).all()
    np.testing.assert_allclose(slopes[0], log_weights.mean(1) / 1e4, rtol=1e-5, atol=1e-6)


# Failure


@pytest.mark.parametrize(("num_intervals", "first"), [(0, 0.1), (3, 0.0), (3, 1.0), (3, -0.5)])
def test_points_outside_the_unit_interval_are_rejected(num_intervals, first):
    q = Gaussian.standard(1)
    sides = {"encode": lambda x: q, "decode": lambda z: q, "prior": q}
    options = {"num_samples": 2, "num_intervals": num_intervals, "first": first}
    match = r"tvo: num_intervals must be at least 1 and first in \(0, 1\), got " + (
        rf"{num_intervals} and {first}\."
    )
    with pytest.raises(ValueError, match=match):
        tvo(jax.random.key(0), jnp.zeros(1), **sides, **options)
