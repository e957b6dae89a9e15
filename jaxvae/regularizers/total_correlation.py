"""Decomposition of the KL into mutual information, total correlation and dimension-wise KL.

The aggregate posterior of N examples is q(z) = 1/N sum_n q(z|x_n).
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.scipy.special import logsumexp

from jaxvae.leaves import arrays_only
from jaxvae.regularizers.global_batch import check_batch
from jaxvae.regularizers.regularizer import Regularizer, no_state

TCEstimatorName = Literal["mss", "mws"]


class AggregateLogProb(NamedTuple):
    """Log densities of the aggregate posterior at M latents, in nats.

    Attributes:
        joint: [M] log q(z).
        marginals: [M, Z] log q(z_j).
    """

    joint: jax.Array
    marginals: jax.Array


class KLDecomposition(NamedTuple):
    """Three parts that add up to E_x KL(q(z|x) || p(z)), in nats per example.

    Attributes:
        mutual_information: [] I(z; n) = E log q(z|x_n) - log q(z), of latent and example.
        total_correlation: [] E log q(z) - sum_j log q(z_j), the dependence between latents.
        dimension_wise_kl: [] E sum_j log q(z_j) - log p(z), for a prior of independent latents.
    """

    mutual_information: jax.Array
    total_correlation: jax.Array
    dimension_wise_kl: jax.Array


def total_correlation(
    weight: float, *, num_data: int, estimator: TCEstimatorName = "mss"
) -> Regularizer:
    """The penalty weight * TC(q(z)); with the ELBO as objective, beta-TCVAE, beta = 1 + weight.

        ELBO - (beta - 1) TC  =  E log p(x|z) - MI - beta TC - dimension-wise KL

    Args:
        weight: beta - 1.
        num_data: N, the number of examples in the training split.
        estimator: as in `minibatch_log_prob`.

    Ref: Chen, Li, Grosse & Duvenaud, Isolating Sources of Disentanglement in VAEs, 2018, NeurIPS.

    >>> total_correlation(5.0, num_data=60_000).init(jax.random.key(0))
    ()
    """

    def penalty(state: Any, key: jax.Array, q: Any, z: jax.Array, prior: Any) -> jax.Array:
        aggregate = minibatch_log_prob(q, z, num_data=num_data, estimator=estimator)
        return weight * jnp.mean(aggregate.joint - jnp.sum(aggregate.marginals, 1))

    return Regularizer(no_state, penalty)


def minibatch_log_prob(
    q: Any, z: jax.Array, *, num_data: int, estimator: TCEstimatorName = "mss"
) -> AggregateLogProb:
    """Estimate log q(z) and log q(z_j) of N examples from a batch of B, at the batch's draws.

        q(z_i) ~ sum_n w_in q(z_i|x_n)    over the batch, and with q(z_ij|x_n) for a marginal

    "mss", stratified: w_ii = 1/N, since z_i comes from example i, which is always in the batch.
    The others represent the other N - 1 examples, w_in = (N - 1) / (N (B - 1)). So a row adds up
    to 1, and the mean over all batches with example i is q(z_i). Its logarithm is biased down, less
    for larger batches. "mws", weighted: w_in = 1 / (B N) for all. A row adds up only to 1/N, so
    that each log density is too low by up to log N, and the total correlation too high by up to
    (Z - 1) log N: its gradient is useful, but not its value.

    Args:
        q: [B] posteriors with `log_prob_per_entry`, so of independent latents.
        z: [B, Z] one draw of each.
        num_data: N, at least B. The memory is B^2 Z numbers.
        estimator: "mss" or "mws".

    Raises:
        ValueError: B < 2 or B > N, the estimator is unknown, or the latents are not independent.

    Ref: Chen et al. 2018, appendix C. The authors' code has another matrix of weights, which gives
    1/N to another example than i in most rows.
    """
    check_batch("total correlation", z)
    log_weights = _log_weights(len(z), num_data, estimator)
    per_latent = jax.vmap(lambda z: _log_prob_per_latent(q, z))(z)
    return AggregateLogProb(
        joint=logsumexp(log_weights + jnp.sum(per_latent, 2), axis=1),
        marginals=logsumexp(log_weights[:, :, None] + per_latent, axis=1),
    )


def exact_log_prob(q: Any, z: jax.Array, *, microbatch_size: int = 256) -> AggregateLogProb:
    """Compute log q(z) and log q(z_j) from all N posteriors.

    Args:
        q: [N] posteriors of the whole data set, with `log_prob_per_entry`.
        z: [M, Z] any latents.
        microbatch_size: number of latents, and of posteriors, handled at once; the memory is at
            most microbatch_size^2 Z numbers.
    """
    q = arrays_only(q)
    num_data = len(jax.tree.leaves(q)[0])
    size = min(microbatch_size, num_data)
    missing = -num_data % size
    in_chunks = lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:])
    fill = lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[:1], missing, axis=0)])
    chunks = jax.tree.map(lambda leaf: in_chunks(fill(leaf)), q)
    is_real = in_chunks(jnp.arange(num_data + missing) < num_data)
    dtype = jnp.result_type(z, *jax.tree.leaves(q), jnp.float32)

    def of_one(z: jax.Array) -> AggregateLogProb:
        def add(sums: tuple[jax.Array, jax.Array], chunk: tuple[Any, jax.Array]) -> Any:
            per_latent = _log_prob_per_latent(chunk[0], z)
            terms = jnp.concatenate([jnp.sum(per_latent, 1, keepdims=True), per_latent], 1)
            return _add_exponentials(*sums, jnp.where(chunk[1][:, None], terms, -jnp.inf)), None

        none = jnp.full(1 + z.size, jnp.finfo(dtype).min, dtype), jnp.zeros(1 + z.size, dtype)
        (largest, total), _ = jax.lax.scan(add, none, (chunks, is_real))
        log_prob = largest + jnp.log(total) - math.log(num_data)
        return AggregateLogProb(log_prob[0], log_prob[1:])

    return jax.lax.map(of_one, z, batch_size=microbatch_size)


def kl_decomposition(
    q: Any, z: jax.Array, prior: Any, *, num_data: int, estimator: TCEstimatorName = "mss"
) -> KLDecomposition:
    """Estimate the three parts of the KL from a batch; their sum is the sampled KL.

    Args:
        q, z, num_data, estimator: as in `minibatch_log_prob`, which raises for invalid ones.
        prior: p(z).
    """
    aggregate = minibatch_log_prob(q, z, num_data=num_data, estimator=estimator)
    return _decomposition(q, z, prior, aggregate)


def exact_kl_decomposition(
    q: Any, z: jax.Array, prior: Any, *, microbatch_size: int = 256
) -> KLDecomposition:
    """Compute the three parts of the KL with the exact q(z); only the draws z are random.

    Args:
        q: [N] posteriors of the whole data set, with `log_prob_per_entry`.
        z: [M, Z] one draw of each of the first M posteriors; M = N, or fewer to save time.
        prior: p(z).
        microbatch_size: as in `exact_log_prob`.

    Ref: Hoffman & Johnson, ELBO surgery, 2016, NIPS workshop; Chen et al. 2018.

    >>> from jaxvae.distributions import Gaussian
    >>> same = Gaussian(jnp.zeros((4, 2)), jnp.zeros((4, 2)))  # q(z) = p(z), independent latents
    >>> parts = exact_kl_decomposition(same, jnp.ones((4, 2)), Gaussian.standard(2))
    >>> [abs(float(part)) < 1e-5 for part in parts]
    [True, True, True]
    """
    own = jax.tree.map(lambda leaf: leaf[: len(z)], arrays_only(q))
    return _decomposition(own, z, prior, exact_log_prob(q, z, microbatch_size=microbatch_size))


def _decomposition(
    q: Any, z: jax.Array, prior: Any, aggregate: AggregateLogProb
) -> KLDecomposition:
    marginals = jnp.sum(aggregate.marginals, 1)
    log_q = jax.vmap(lambda q, z: q.log_prob(z))(arrays_only(q), z)
    return KLDecomposition(
        mutual_information=jnp.mean(log_q - aggregate.joint),
        total_correlation=jnp.mean(aggregate.joint - marginals),
        dimension_wise_kl=jnp.mean(marginals - jax.vmap(prior.log_prob)(z)),
    )


def _log_weights(batch_size: int, num_data: int, estimator: str) -> jax.Array:
    """log w_in: [B, B], row i for z_i."""
    if estimator not in get_args(TCEstimatorName):
        raise ValueError(f"estimator must be mss or mws, got {estimator!r}.")
    if num_data < batch_size:
        raise ValueError(
            f"num_data must be at least the global batch size, {batch_size}, got {num_data}. Give "
            "the number of examples in the training split."
        )
    if estimator == "mws":
        return jnp.full((batch_size, batch_size), -math.log(batch_size * num_data))
    others = math.log((num_data - 1) / (num_data * (batch_size - 1)))
    own = jnp.eye(batch_size, dtype=bool)
    return jnp.where(own, -math.log(num_data), others)


def _log_prob_per_latent(q: Any, z: jax.Array) -> jax.Array:
    """log q(z_j|x_n) of one z under each of the posteriors: [N, Z]."""
    if not hasattr(q, "log_prob_per_entry"):
        raise ValueError(
            f"total correlation needs the density of each latent, but {type(q).__name__} has no "
            "log_prob_per_entry. Use a posterior of independent latents, such as Gaussian."
        )
    return jax.vmap(lambda q: q.log_prob_per_entry(z))(arrays_only(q))


def _add_exponentials(
    largest: jax.Array, total: jax.Array, terms: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Add terms [C, 1 + Z] to a running (m, s) with m + log s = log sum exp of all terms so far."""
    new = jnp.maximum(largest, stop_gradient(jnp.max(terms, 0)))
    added = jnp.sum(jnp.exp(terms - new[None, :]), 0)
    return new, total * jnp.exp(largest - new) + added
