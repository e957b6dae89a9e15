"""Check that an objective is a bound on log p(x), on models whose log p(x) is known."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.distributions import Gaussian, check_array, check_function
from jaxvae.testing.linear_gaussian import LinearGaussian
from jaxvae.testing.report import BoundReport, Draws, judge

SIZES = ((5, 2), (20, 4))
"""(D, Z) of the models."""
NOISE_LOG_SCALE = -0.3
SHIFT, LOG_INFLATION = 0.5, 0.25
"""The second q is shifted by SHIFT standard deviations of the posterior, and wider by this log."""
ROUNDING = 64
"""Rounding error of a value, in eps of the float type times (1 + |log p(x)|)."""
STEP, STENCIL = 0.02, {2: -1 / 12, 1: 8 / 12, -1: -8 / 12, -2: 1 / 12}
"""Central difference of fourth order: step size, and steps along a direction -> their weights."""

Objective = Callable[..., Any]
"""(key, x, *, encode, decode, prior, num_samples) -> [] nats, or an object with `.objective`."""


class _Encoder(NamedTuple):
    """q(z|x) = N(A x + c, diag(exp(log_scale))^2)."""

    weight: jax.Array
    bias: jax.Array
    log_scale: jax.Array

    def __call__(self, x: jax.Array) -> Gaussian:
        return Gaussian(self.weight @ x + self.bias, self.log_scale)


class _Parameters(NamedTuple):
    """Parameters by which an objective may be differentiated."""

    encoder: _Encoder
    decoder: LinearGaussian
    prior: Gaussian


def check_bound(
    bound: Objective,
    *,
    num_keys: int = 4000,
    num_samples: Sequence[int] = (1, 8),
    sizes: Sequence[tuple[int, int]] = SIZES,
    key: jax.Array | None = None,
) -> BoundReport:
    """Check that an objective is a tight lower bound on log p(x), with the gradient of its value.

    The objective is run on linear Gaussian models, whose log p(x) and posterior are exact, with the
    posterior as q and with a q that is shifted and wider. Its mean over keys is judged to four
    standard errors. Its gradient, at the largest number of samples, is compared with a finite
    difference of its value with the same keys, so that estimators which leave terms out (stl, dreg)
    pass if they are right in expectation. If the allowance is as large as the slope itself, as it
    can be for "score", the verdict means little: use more keys. q is Gaussian; discrete latents are
    not covered. The check takes a few seconds on a CPU, nearly all of it compilation.

    Args:
        bound: (key, x, *, encode, decode, prior, num_samples) -> [] nats, larger is better, or an
            object with `.objective`. Every jaxvae bound is one; set its options by
            `functools.partial`.
        num_keys: N, independent draws of which each mean is taken.
        num_samples: values of K, at least two and ascending.
        sizes: (D, Z) of the models, D >= Z.
        key: for models and draws; None: a fixed key.

    Raises:
        TypeError: bound is not a function, or its result is not an array.
        ValueError: an argument is invalid, or the objective is not a scalar.

    Ref: Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, 2016, ICLR (theorem 1).

    >>> from jaxvae import iwae
    >>> check_bound(iwae, num_keys=500, num_samples=(1, 8), sizes=[(3, 2)]).with_samples
    'tightens'
    """
    check_function("check_bound: bound", bound)
    counts = tuple(num_samples)
    _check_arguments(counts, num_keys, sizes)
    keys = jax.random.split(jax.random.key(0) if key is None else key, len(sizes))
    with jax.default_matmul_precision("highest"):
        draws = [_draw(bound, keys[i], size, counts, num_keys) for i, size in enumerate(sizes)]
    return judge(draws)


def _check_arguments(
    counts: tuple[int, ...], num_keys: int, sizes: Sequence[tuple[int, int]]
) -> None:
    if len(counts) < 2 or any(few >= many for few, many in pairwise(counts)):
        raise ValueError(
            f"check_bound: num_samples must be two or more ascending numbers, got {counts}. Give "
            "(1, 8), or numbers that the objective accepts."
        )
    if num_keys < 2:
        raise ValueError(f"check_bound: num_keys must be at least 2, got {num_keys}. Give 4000.")
    if not sizes or any(dim < latent_dim for dim, latent_dim in sizes):
        raise ValueError(
            f"check_bound: sizes must be pairs (D, Z) with D >= Z, got {sizes}. Give [(5, 2)]."
        )


def _model(
    rng: np.random.Generator, dim: int, latent_dim: int
) -> tuple[_Parameters, _Parameters, jax.Array]:
    """A model with its posterior as q, the same model with another q, and an x drawn from it.

    The columns of W are orthogonal, so that the posterior is a diagonal Gaussian.
    """
    columns = np.linalg.qr(rng.normal(size=(dim, latent_dim)))[0]
    weight, bias = columns * np.linspace(1, 3, latent_dim), rng.normal(size=dim)
    noise = np.exp(NOISE_LOG_SCALE)
    x = weight @ rng.normal(size=latent_dim) + bias + noise * rng.normal(size=dim)
    variance = 1 / (1 + np.sum(np.square(weight / noise), axis=0))
    gain, scale = variance[:, None] * weight.T / noise**2, np.sqrt(variance)
    exact = _Encoder(gain, -gain @ bias, np.log(scale))
    off = _Encoder(gain, exact.bias + SHIFT * scale, exact.log_scale + LOG_INFLATION)
    decoder = LinearGaussian(*map(jnp.asarray, (weight, bias, NOISE_LOG_SCALE)))
    points = [_Parameters(encoder, decoder, decoder.prior()) for encoder in (exact, off)]
    return jax.tree.map(jnp.asarray, (*points, x))


def _directions(rng: np.random.Generator, point: _Parameters) -> dict[str, _Parameters]:
    """A random direction in each group of parameters, of length 1 in each of its arrays."""

    def unit(leaf: jax.Array) -> np.ndarray:
        normal = rng.normal(size=leaf.shape)
        return normal / np.linalg.norm(normal)

    still = jax.tree.map(lambda leaf: np.zeros(leaf.shape), point)
    return {
        name: still._replace(**{name: jax.tree.map(unit, group)})
        for name, group in point._asdict().items()
    }


def _draw(
    bound: Objective, key: jax.Array, size: tuple[int, int], counts: tuple[int, ...], num_keys: int
) -> Draws:
    """Measure an objective on one model, in float64."""
    key_model, key_draws = jax.random.split(key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key_model)))
    exact, off, x = _model(rng, *size)
    directions = _directions(rng, off)
    moved = [_moved(off, v, step) for v in directions.values() for step in STENCIL]
    keys = jax.random.split(key_draws, num_keys)
    points = jax.tree.map(lambda *leaves: np.stack(leaves), exact, off, *moved)
    measured = jax.jit(partial(_measure, bound, counts))(points, keys, x)
    values, gradients = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), measured)
    weights = np.array(list(STENCIL.values())) / STEP
    on_steps = values[counts[-1]][:, 2:].reshape(num_keys, len(directions), len(weights))
    log_prob = float(jax.jit(exact.decoder.log_prob)(x))
    return Draws(
        model=f"{size[0]} from {size[1]}",
        log_prob=log_prob,
        rounding=ROUNDING * float(jnp.finfo(x.dtype).eps) * (1 + abs(log_prob)),
        at_posterior={count: values[count][:, 0] for count in counts},
        off={count: values[count][:, 1] for count in counts},
        slopes={name: on_steps[:, i] @ weights for i, name in enumerate(directions)},
        gradients={name: _along(gradients, v) for name, v in directions.items()},
    )


def _measure(
    bound: Objective, counts: tuple[int, ...], points: _Parameters, keys: jax.Array, x: jax.Array
) -> tuple[dict[int, jax.Array], _Parameters]:
    """The objective [N, P] for each number of samples, and its gradient [N] at the second point.

    The gradient, and the points after the second, are computed for the last number of samples only.
    lax.map compiles in half of vmap's time, and compilation is nearly all of the time here.
    """
    first_two = jax.tree.map(lambda leaf: leaf[:2], points)

    def of_key(key: jax.Array) -> tuple[dict[int, jax.Array], _Parameters]:
        objective = lambda count: lambda point: _objective(bound, count, point, key, x)
        values = {count: jax.vmap(objective(count))(first_two) for count in counts[:-1]}
        last = jax.vmap(jax.value_and_grad(objective(counts[-1])))
        values[counts[-1]], gradients = last(points)
        return values, jax.tree.map(lambda leaf: leaf[1], gradients)

    return jax.lax.map(of_key, keys)


def _objective(
    bound: Objective, count: int, parameters: _Parameters, key: jax.Array, x: jax.Array
) -> jax.Array:
    encoder, decoder, prior = parameters
    found = bound(key, x, encode=encoder, decode=decoder.decode, prior=prior, num_samples=count)
    objective: Any = getattr(found, "objective", found)
    check_array("check_bound: the objective", objective)
    if jnp.shape(objective) != ():
        raise ValueError(
            "check_bound: the objective must be a scalar for one example, got shape "
            f"{jnp.shape(objective)}. Sum over the event, and average over the samples."
        )
    return objective


def _along(gradients: _Parameters, direction: _Parameters) -> np.ndarray:
    """Component [N] of the gradients along a direction."""
    inner = lambda g, v: np.asarray(g, np.float64).reshape(len(g), -1) @ np.ravel(v)
    return np.sum(jax.tree.leaves(jax.tree.map(inner, gradients, direction)), axis=0)


def _moved(point: _Parameters, direction: _Parameters, steps: int) -> _Parameters:
    return jax.tree.map(lambda p, v: p + jnp.asarray(steps * STEP * v, p.dtype), point, direction)
