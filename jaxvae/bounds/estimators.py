"""Gradient estimators: from a function of K log weights to an objective with its gradient.

A bound is F(r_1, ..., r_K) of terms r_k = log p(x|z_k) + c (log p(z_k) - log q(z_k|x)). With
F_k = dF/dr_k and F_kk = d2F/dr_k2, the gradient of E F has three parts for each draw: with respect
to the parameters of the model, with weight F_k; along z_k into q, with weight p_k; and by
log q(z_k|x) at fixed z_k, with weight s_k.

    reparameterized   p_k = F_k           s_k = -c F_k              pathwise, as by plain autodiff
    stl               p_k = F_k           s_k = 0                   unbiased where F_kk = 0
    dreg              p_k = F_k - F_kk    s_k = 0                   unbiased for c = 1
    score             p_k = 0             s_k = F - c F_k           no gradient through z
    vimco             p_k = 0             s_k = F - F_(-k) - c F_k  F_(-k): r_k replaced by the
                                                                    mean of the others

Where the last column holds, each has the expectation of the first. dreg rewrites the score term
that stl drops as a second pathwise term, which gives the weights w_k^2 for the importance-weighted
bound.
In code r_k is `log_weights`, p_k `GradientWeights.path` and s_k `GradientWeights.log_q`.

Ref: Kingma & Welling 2013; Roeder, Wu & Duvenaud, Sticking the Landing, 2017, NeurIPS; Tucker,
Lawson, Gu & Maddison, Doubly Reparameterized Gradient Estimators, 2019, ICLR; Williams 1992,
REINFORCE; Mnih & Rezende, Variational Inference for Monte Carlo Objectives (VIMCO), 2016, ICML.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxvae.bounds.bound import (
    Bound,
    Example,
    Terms,
    assemble,
    draw_terms,
    over_draws,
    terms_of,
)
from jaxvae.leaves import combine, is_array, partition

EstimatorName = Literal["reparameterized", "stl", "dreg", "score", "vimco"]
SMALLEST_WEIGHT = 1e-20
"""Smaller weights of the model are raised to this one, since cotangents are divided by them."""


class LogWeightFunction(NamedTuple):
    """A function F of the log weights [K], with its second derivatives F_kk.

    Attributes:
        value: [K] -> [].
        curvature: [K] -> [K], the diagonal of F's second derivatives.
    """

    value: Callable[[jax.Array], jax.Array]
    curvature: Callable[[jax.Array], jax.Array]


class GradientWeights(NamedTuple):
    """Weights [K] of the three parts of each draw's gradient: by the model, along z, by log q.

    None: weight 0, and the part is not computed.
    """

    model: jax.Array
    path: jax.Array | None
    log_q: jax.Array | None


BIASED = {"stl": "is biased for weighted draws (Tucker et al. 2019). Use 'dreg'."}
"""Estimators that bounds of weighted draws reject -> the reason and what to use instead."""
MEAN = LogWeightFunction(jnp.mean, jnp.zeros_like)
"""The F of the ELBO."""


def check_estimator(
    bound: str,
    example: Example,
    estimator: str,
    num_samples: int,
    rejected: dict[str, str],
    *,
    needs_pytree: bool = False,
) -> None:
    """Reject an estimator that would give a wrong gradient.

    Args:
        bound: name of the bound, for the message.
        example: the example, whose posterior is checked.
        estimator: name of the estimator.
        num_samples: K.
        rejected: estimator -> why this bound rejects it, and what to use instead.
        needs_pytree: whether the bound stops q's gradient for "reparameterized" too.

    Raises:
        ValueError: the estimator is rejected, or the log density of q reads traced numbers that
            are not leaves of q; the message says what to use.
    """
    if estimator not in get_args(EstimatorName):
        names = ", ".join(get_args(EstimatorName))
        raise ValueError(f"estimator must be one of {names}, got {estimator!r}.")
    if estimator in rejected:
        raise ValueError(f"{bound}: estimator {estimator!r} {rejected[estimator]}")
    through_z = estimator in ("reparameterized", "stl", "dreg")
    if through_z and not getattr(example.q, "reparameterized", True):
        raise ValueError(
            f"{bound}: draws of {type(example.q).__name__} carry no gradient, so estimator "
            f"{estimator!r} would be wrong. Use 'score', or 'vimco' with num_samples >= 2."
        )
    if (estimator != "reparameterized" or needs_pytree) and jax.tree_util.all_leaves([example.q]):
        raise ValueError(
            f"{bound}: estimator {estimator!r} needs encode(x) to be a pytree of arrays, but "
            f"{type(example.q).__name__} is not a pytree. Register the class, for example by "
            "jax.tree_util.register_dataclass."
        )
    if estimator != "reparameterized" or needs_pytree:
        _check_no_hidden_numbers(bound, example.q, estimator)
    if estimator == "vimco" and num_samples < 2:
        raise ValueError(
            f"{bound}: estimator 'vimco' compares draws, so num_samples must be at least 2, got "
            f"{num_samples}. Use 'score' for one draw."
        )


def _check_no_hidden_numbers(bound: str, q: Any, estimator: str) -> None:
    """Reject a q whose log density reads traced numbers that are not among its leaves.

    Fixing the leaves would not fix those: the gradient would be wrong, without an error.
    """
    arrays, rest = partition(q, is_array)
    density = lambda arrays, z: combine(arrays, rest).log_prob(z)
    z = jax.eval_shape(lambda: q.sample(jax.random.key(0)))
    hidden = jax.make_jaxpr(density)(arrays, z).consts
    if any(isinstance(value, jax.core.Tracer) for value in hidden):
        raise ValueError(
            f"{bound}: the log density of {type(q).__name__} reads numbers that are not among its "
            f"leaves, so estimator {estimator!r} would be wrong. Make all that it reads fields of "
            "the class, or use 'reparameterized'."
        )


def estimate(
    example: Example,
    terms: Terms,
    function: LogWeightFunction,
    estimator: EstimatorName,
    kl_weight: jax.Array | float | None = 1.0,
) -> jax.Array:
    """F of the terms, with the gradient of the estimator: [] nats.

    Args:
        example, terms: the example and the terms of its draws.
        function: F.
        estimator: as in the table above.
        kl_weight: c; None for 0, when the KL is in closed form and not part of F.
    """
    log_weights = terms.log_weights(kl_weight)
    if estimator == "reparameterized":
        return function.value(log_weights)
    fixed = stop_gradient(log_weights)
    value, first = jax.value_and_grad(function.value)(fixed)
    if estimator in ("stl", "dreg"):
        path = first if estimator == "stl" else first - function.curvature(fixed)
        weights = GradientWeights(first, path, None)
    else:
        score_weight = value
        if estimator == "vimco":
            score_weight = value - jax.vmap(function.value)(_each_replaced_by_mean(fixed))
        through_log_q = 0.0 if kl_weight is None else kl_weight * first
        weights = GradientWeights(first, None, score_weight - through_log_q)
    return with_gradient(example, terms, value, weights, kl_weight)


def weighted_bound(
    name: str,
    key: jax.Array,
    example: Example,
    num_samples: int,
    estimator: EstimatorName,
    function: LogWeightFunction,
) -> Bound:
    """Bound F of the log weights of K draws; IWAE and the bounds like it differ only in F.

    Raises:
        ValueError: num_samples < 1, or as in `check_estimator`.
    """
    check_estimator(name, example, estimator, num_samples, BIASED)
    terms = draw_terms(key, example, num_samples)
    return assemble(example, terms, estimate(example, terms, function, estimator))


def with_gradient(
    example: Example,
    terms: Terms,
    value: jax.Array,
    weights: GradientWeights,
    kl_weight: jax.Array | float | None = 1.0,
) -> jax.Array:
    """`value`, with the weighted sum of the three parts as its gradient: [].

    The model's terms are computed again, with q's parameters fixed and at a z whose cotangent is
    rescaled on its way back to q. XLA merges the two forward passes.
    """
    # The cotangent of z is multiplied by weights.model below and must end as weights.path: so it is
    # divided by weights.model first, which therefore may not be 0.
    tiny = jnp.abs(weights.model) < SMALLEST_WEIGHT
    model = stop_gradient(jnp.where(tiny, SMALLEST_WEIGHT, weights.model))
    z = stop_gradient(terms.samples)
    if weights.path is not None:
        scale = stop_gradient(weights.path) / model
        z = jax.tree.map(lambda leaf: _scaled(leaf, scale), terms.samples)
    # A network among q's fields has functions as leaves, which stop_gradient rejects.
    q_fixed = jax.tree.map(lambda leaf: stop_gradient(leaf) if is_array(leaf) else leaf, example.q)

    def of_draw(z: Any) -> Terms:
        log_q = q_fixed.log_prob(z)
        return terms_of(z, example.log_likelihood(z), example.prior.log_prob(z), log_q)

    recomputed = over_draws(of_draw, z, sample_chunk_size=example.sample_chunk_size)
    surrogate = jnp.sum(model * recomputed.log_weights(kl_weight))
    if weights.log_q is not None:
        log_q = jax.vmap(example.q.log_prob)(stop_gradient(terms.samples))
        log_q = log_q.astype(terms.log_q.dtype)
        surrogate = surrogate + jnp.sum(stop_gradient(weights.log_q) * log_q)
    return stop_gradient(value) + (surrogate - stop_gradient(surrogate))  # adds exactly 0


def _each_replaced_by_mean(log_weights: jax.Array) -> jax.Array:
    """Matrix [K, K] whose row k has the mean of the other log weights in place of entry k."""
    num_draws = log_weights.size
    others = (jnp.sum(log_weights) - log_weights) / (num_draws - 1)
    return jnp.where(jnp.eye(num_draws, dtype=bool), others[:, None], log_weights[None, :])


def _scaled(z: jax.Array, scale: jax.Array) -> jax.Array:
    """z [K, ...], whose cotangent is multiplied by the scales [K]; integers have none."""
    if not jnp.issubdtype(z.dtype, jnp.inexact):
        return stop_gradient(z)
    return jax.vmap(_scale_gradient)(z, scale.astype(z.dtype))


@jax.custom_vjp
def _scale_gradient(z: jax.Array, scale: jax.Array) -> jax.Array:
    """Identity of z whose cotangent is multiplied by `scale` []."""
    del scale
    return z


def _scale_gradient_forward(z: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    return z, scale


def _scale_gradient_backward(scale: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None]:
    return scale * cotangent, None


_scale_gradient.defvjp(_scale_gradient_forward, _scale_gradient_backward)
