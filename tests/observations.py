"""Checks of every family of observations: golden values, draws, transforms, rejected values."""

import json
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden.make_observations import FAMILIES

GOLDEN = json.loads((Path(__file__).parent / "golden" / "observations.json").read_text())
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
"""Allowed error per unit of summed absolute terms: 8 eps in float32, 4,500 eps in float64."""
EPS = float(np.finfo(np.float32).eps)
FLOOR = 1e3 * float(np.finfo(np.float32).tiny)
"""Absolute error that is always allowed: float32 may flush a factor of this size to 0."""
NUM_DRAWS = 20_000

log_probs = jax.jit(lambda p, value: p.log_prob_per_entry(value))
sample = jax.jit(lambda p, key: p.sample(key))


@jax.jit
def log_probs_and_gradient(p, value):
    """Return log p of each entry, and the gradient of their sum in the parameters."""
    score = lambda p: (jnp.sum(entries := p.log_prob_per_entry(value)), entries)
    gradient, entries = jax.grad(score, has_aux=True)(p)
    return entries, gradient


def assert_golden(family, make, names, precision):
    """Assert that log p and its gradients, entry by entry, are the golden values."""
    golden = GOLDEN[family]
    with jax.enable_x64(precision == "float64"):
        p = make(*(jnp.asarray(golden[name], float) for name in names))
        value, gradient = log_probs_and_gradient(p, jnp.asarray(golden["x"], float))
    assert value.dtype.name == precision
    assert_near(value, golden["log_prob"], golden["terms"], precision, family)
    for name in names:
        exact, terms = golden["gradient"][name], golden["gradient_terms"][name]
        assert_near(getattr(gradient, name), exact, terms, precision, f"{family}, {name}")


def assert_near(result, exact, terms, precision, what):
    error = np.abs(np.asarray(result, np.float64) - exact)
    allowed = TOLERANCE[precision] * np.asarray(terms) + FLOOR
    assert (error <= allowed).all(), (what, np.argwhere(~(error <= allowed)))


def assert_made_by_script(family):
    """Assert that the script reproduces the file, up to some eps between numpy releases."""
    made = json.loads(json.dumps(FAMILIES[family]()))
    chex.assert_trees_all_close(made, GOLDEN[family], rtol=1e-11, atol=1e-300)


def repeated(p, times):
    """Repeat the event `times`: a draw of the result is `times` independent draws of p."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (times, *leaf.shape)), p)


def draws(p, seed=0):
    """Draw NUM_DRAWS values of p, [NUM_DRAWS, *D]."""
    return np.asarray(sample(repeated(p, NUM_DRAWS), jax.random.key(seed)), np.float64)


def masses(p, num_values):
    """Compute P(0), P(1), ... of each entry of p: [num_values, *D]."""
    p = repeated(p, num_values)
    shape = jax.eval_shape(p.sample, jax.random.key(0)).shape
    values = jnp.arange(num_values).reshape(-1, *[1] * (len(shape) - 1))
    return np.exp(np.asarray(log_probs(p, jnp.broadcast_to(values, shape)), np.float64))


def assert_draws_have_the_masses(x, mass):
    """Assert that each value's frequency is its mass, within 4 standard errors."""
    num_draws, num_values = len(x), len(mass)
    assert set(np.unique(x)) <= set(range(num_values))
    share = np.stack([(x == value).mean(0) for value in range(num_values)])
    # The standard error is too small for rare values: allow 4 occurrences more.
    error = 4 * np.sqrt(mass * (1 - mass).clip(0) / num_draws) + 4 / num_draws
    assert (np.abs(share - mass) <= error).all()


def assert_mean_of_draws(x, mean, variance):
    """Assert that the mean of draws is right, within 4 standard errors and the mean's rounding."""
    error = 4 * np.sqrt(variance / len(x)) + 4 * EPS * np.abs(mean)
    assert (np.abs(x.mean(0) - mean) <= error).all()


def assert_transforms_agree(p, value, terms, *, thorough=True):
    """Assert that jit and vmap give the same result, up to some eps of the terms.

    They fuse the same operations in other ways. If thorough, also test draws and eager execution,
    which is slow for many operations, as each is compiled on its own.
    """

    def draw_and_score(p, value, key):
        return p.sample(key) if thorough else value, p.log_prob(value), p.mean()

    key = jax.random.key(3)
    compiled = jax.jit(draw_and_score)(p, value, key)
    assert [result.shape for result in compiled] == [value.shape, (), value.shape]
    entries = p.log_prob_per_entry(value) if thorough else log_probs(p, value)
    np.testing.assert_allclose(compiled[1], entries.sum(), rtol=8 * EPS, atol=1e-6 * terms)
    rows = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), (p, value))
    batch = jax.jit(jax.vmap(draw_and_score, in_axes=(0, 0, None)))(*rows, key)
    for row in range(2):
        result = jax.tree.map(lambda leaf, row=row: leaf[row], batch)
        chex.assert_trees_all_close(result, compiled, rtol=8 * EPS, atol=1e-6 * terms)


def assert_computed_in_float32(p, value):
    """Assert that bfloat16 parameters give the same numbers as after conversion to float32."""
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), p)
    high = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low)
    result = log_probs(low, value.astype(jnp.bfloat16))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, log_probs(high, value), rtol=8 * EPS, atol=8 * EPS)
    for result in jax.eval_shape(lambda p: (p.sample(jax.random.key(0)), p.mean()), low):
        assert (result.dtype, result.shape) == (jnp.float32, value.shape)


def assert_rejected(p, event_shape, family):
    """Assert that a value of another shape raises an error at trace time."""
    message = f"value has shape (7, 2), this {family} has event shape {event_shape}. Reshape"
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(p.log_prob, jax.ShapeDtypeStruct((7, 2), jnp.float32))
