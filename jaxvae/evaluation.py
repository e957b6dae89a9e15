"""Scores of a whole data set: bounds with standard errors, bits per dimension, active units."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.sharding import Mesh

from jaxvae.bounds import Decode, Encode, EstimatorName, elbo
from jaxvae.bounds.bound import observe
from jaxvae.distributions import (
    Gaussian,
    VonMisesFisher,
    check_array,
    check_summed,
    flattened,
    mean_of,
    sample_and_log_prob,
)
from jaxvae.leaves import at_rows, count_rows
from jaxvae.models.vae import VAE, Params
from jaxvae.training.devices import local_positions, shard
from jaxvae.training.step import ACTIVE_VARIANCE, Prepare


def log_likelihood(
    key: jax.Array,
    x: Any,
    *,
    encode: Encode,
    decode: Decode,
    prior: Any,
    num_samples: int | jax.Array,
    sample_chunk_size: int = 10,
    mask: jax.Array | None = None,
) -> jax.Array:
    """K-sample estimate of log p(x) of one example, a lower bound in expectation: [] nats.

        log 1/K sum_k p(x, z_k) / q(z_k|x)    with z_k ~ q(z|x)

    The value is that of `jaxvae.iwae`, for large K: samples pass through a running log-sum-exp,
    sample_chunk_size at a time, so that memory does not grow with K. Draw k uses the key
    fold_in(key, k), so that the chunk size changes only the rounding of the result.

    Args:
        key, x, encode, decode, prior, mask: as in `jaxvae.elbo`.
        num_samples: K, at least 1. If it is traced, one program serves every K, but has no
            reverse-mode gradient.
        sample_chunk_size: number of draws in memory at once.

    Raises:
        TypeError: as in `jaxvae.elbo`.
        ValueError: num_samples or sample_chunk_size below 1, or a log_prob that is not summed.

    Ref: Burda, Grosse & Salakhutdinov 2016, equation 8.

    >>> from jaxvae.testing import LinearGaussian
    >>> model = LinearGaussian(jnp.ones((1, 1)), jnp.zeros(1), jnp.zeros(()))
    >>> estimate = log_likelihood(jax.random.key(0), jnp.zeros(1), encode=model.posterior,
    ...     decode=model.decode, prior=model.prior(), num_samples=25)
    >>> print(f"{estimate:.4f}", f"{model.log_prob(jnp.zeros(1)):.4f}")
    -1.2655 -1.2655
    """
    estimate = log_likelihood_and_error(
        key,
        x,
        encode=encode,
        decode=decode,
        prior=prior,
        num_samples=num_samples,
        sample_chunk_size=sample_chunk_size,
        mask=mask,
    )
    return estimate.value


class Estimate(NamedTuple):
    """An estimate and its standard error."""

    value: Any
    standard_error: Any


def log_likelihood_and_error(
    key: jax.Array,
    x: Any,
    *,
    encode: Encode,
    decode: Decode,
    prior: Any,
    num_samples: int | jax.Array,
    sample_chunk_size: int = 10,
    mask: jax.Array | None = None,
) -> Estimate:
    """Estimate log p(x) as `log_likelihood`, with the Monte Carlo error of that example: [], [].

        sqrt((sum_k w_k^2 / (sum_k w_k)^2 - 1/K) K / (K - 1))    with w_k = p(x, z_k) / q(z_k|x)

    This is the standard deviation of the mean weight, as a share of it: to first order, that of its
    logarithm. It is NaN for K = 1. Where few weights dominate, the true error is larger.

    Args:
        key, x, encode, decode, prior, num_samples, sample_chunk_size, mask: as in `log_likelihood`.

    Raises:
        TypeError, ValueError: as `log_likelihood`.

    Ref: Owen, Monte Carlo theory, methods and examples, 2013, equations 9.8 and 2.36.

    >>> from jaxvae.testing import LinearGaussian
    >>> model = LinearGaussian(jnp.ones((1, 1)), jnp.zeros(1), jnp.zeros(()))
    >>> found = log_likelihood_and_error(jax.random.key(0), jnp.zeros(1), encode=model.posterior,
    ...     decode=model.decode, prior=model.prior(), num_samples=25)
    >>> print(f"{found.value:.4f} {found.standard_error:.3f}")
    -1.2655 0.000
    """
    is_known = not isinstance(num_samples, jax.Array)
    if sample_chunk_size < 1 or (is_known and num_samples < 1):
        raise ValueError(
            f"num_samples and sample_chunk_size must be at least 1, got {num_samples} and "
            f"{sample_chunk_size}."
        )
    example = observe(x, encode, decode, prior, mask)

    def log_weight(k: jax.Array) -> jax.Array:
        z, log_q = sample_and_log_prob(example.q, jax.random.fold_in(key, k))
        log_x, log_z = example.log_likelihood(z), prior.log_prob(z)
        check_array("decode(z).log_prob(x)", log_x)
        check_array("prior.log_prob(z)", log_z)
        check_array("encode(x).log_prob(z)", log_q)
        weight = log_x + log_z - log_q
        return jnp.where(k < num_samples, weight, -jnp.inf)

    def add_chunk(i: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        weights = jax.vmap(log_weight)(i * sample_chunk_size + jnp.arange(sample_chunk_size))
        check_summed("log p(x, z) - log q(z|x)", weights)
        total, of_squares = sums
        total = jnp.logaddexp(total, logsumexp(weights))
        return total, jnp.logaddexp(of_squares, logsumexp(2 * weights))

    if is_known:
        sample_chunk_size = min(sample_chunk_size, int(num_samples))
    start = jnp.full_like(log_weight(jnp.int32(0)), -jnp.inf)  # has a weight's type and mesh
    # With a known number of chunks, fori_loop is a scan, which has a reverse-mode gradient.
    num_chunks = -(-num_samples // sample_chunk_size)
    total, of_squares = jax.lax.fori_loop(0, num_chunks, add_chunk, (start, start))
    count = jnp.asarray(num_samples, total.dtype)
    excess = jnp.exp(of_squares - 2 * total) - 1 / count
    error = jnp.sqrt(jnp.maximum(excess, 0) * count / (count - 1))  # 0 / 0 for one sample
    return Estimate(total - jnp.log(count), error)


MEAN_SAMPLES = 256
"""Draws that estimate a posterior mean without a formula. The noise is 1/256 of the posterior's
variance: below `ACTIVE_VARIANCE` for variances up to 2.5."""


def center_of(q: Any, key: jax.Array) -> Any:
    """Latent that represents q(z|x): its mean, or on the sphere its mean direction.

    Args:
        q: a posterior.
        key: key of the draws that estimate a mean without a formula.
    """
    sphere = flattened(q)
    if isinstance(sphere, VonMisesFisher):
        return sphere.loc.reshape(jax.eval_shape(q.sample, key).shape)
    return mean_of(q, key, MEAN_SAMPLES)


class Scores(NamedTuple):
    """Scores of one example, or of many as arrays [N, ...]; in nats.

    Attributes:
        elbo: [] with one draw of q.
        reconstruction: [] E_q log p(x|z).
        kl: [] KL(q(z|x) || p(z)).
        kl_per_latent: [Z], or None where the KL is not a sum over latents; for a hierarchy a tuple
            over its levels, as in `jaxvae.Bound`.
        log_likelihood: [] K-sample estimate of log p(x), or None if num_samples is 0.
        log_likelihood_error: [] its Monte Carlo error (`log_likelihood_and_error`), or None.
        posterior_mean: [Z], or [Z, C] for one-hot latents, or a tuple over the levels of a
            hierarchy; estimated from 256 draws where q has no mean in closed form.
        sigma_squared: [] mean variance of a Gaussian p(x|z) over the dimensions of x, at one draw
            of q; None for other likelihoods.
    """

    elbo: Any
    reconstruction: Any
    kl: Any
    kl_per_latent: Any
    log_likelihood: Any
    log_likelihood_error: Any
    posterior_mean: Any
    sigma_squared: Any


def make_score(
    vae: VAE,
    *,
    prepare: Prepare = lambda key, x: x,
    num_samples: int | jax.Array = 0,
    sample_chunk_size: int = 10,
) -> Callable[[Params, jax.Array, Any], Scores]:
    """Make a pure function (params, key, one stored example) -> Scores.

    The example of a conditional model is `Conditioned(x, y)`, and the scores are those of p(x|y).

    Args:
        vae: the model.
        prepare: (key, stored example) -> x, as in training.
        num_samples: K of `Scores.log_likelihood`, which may be traced; 0 skips that estimate.
        sample_chunk_size: as in `log_likelihood`.
    """

    def score(params: Params, key: jax.Array, stored: Any) -> Scores:
        key_data, key_elbo, key_samples, key_mean = jax.random.split(key, 4)
        given, x = vae.of_example(stored)
        x = prepare(key_data, x)
        q, prior = given.encode(params, x), given.prior(params)
        parts: dict[str, Any] = {
            "encode": lambda _: q,
            "decode": lambda z: given.decode(params, z),
            "prior": prior,
        }
        pathwise = getattr(q, "reparameterized", True)
        estimator: EstimatorName = "reparameterized" if pathwise else "score"
        bound = elbo(key_elbo, x, estimator=estimator, **parts)  # same value for either estimator
        many = Estimate(None, None)
        if isinstance(num_samples, jax.Array) or num_samples:
            chunks: dict[str, Any] = {"sample_chunk_size": sample_chunk_size}
            many = log_likelihood_and_error(
                key_samples, x, num_samples=num_samples, **chunks, **parts
            )
        return Scores(
            elbo=bound.elbo,
            reconstruction=bound.reconstruction,
            kl=bound.kl,
            kl_per_latent=bound.kl_per_latent,
            log_likelihood=many.value,
            log_likelihood_error=many.standard_error,
            posterior_mean=mean_of(q, key_mean, MEAN_SAMPLES),
            sigma_squared=_variance(given.decode(params, at_rows(bound.samples, 0))),
        )

    return score


def scored_x(prepare: Prepare, key: jax.Array, indices: jax.Array, stored: Any) -> Any:
    """The x of examples [N, ...] exactly as `map_dataset` over `make_score` prepares and scores it.

    Args:
        prepare: the value given to `make_score`.
        key: the value given to `map_dataset`.
        indices: [N] numbers of the examples in the data set.
        stored: [N, ...] these examples as stored.
    """

    def of_one(index: jax.Array, example: Any) -> Any:
        key_data, *_ = jax.random.split(jax.random.fold_in(key, index), 4)
        return prepare(key_data, example)

    return jax.vmap(of_one)(indices, stored)


def _variance(p: Any) -> jax.Array | None:
    """Mean of sigma^2 over the dimensions of x, or None where p is not a Gaussian."""
    return jnp.mean(jnp.exp(2 * p.parameters()[1])) if isinstance(p, Gaussian) else None


def map_dataset(
    mapped: Callable[..., Any],
    params: Params,
    key: jax.Array,
    examples: Any,
    *,
    mesh: Mesh,
    batch_size: int,
    microbatch_size: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Any:
    """Results of a mapped function for every example of a data set: numpy arrays [N, ...].

    Example i gets the key fold_in(key, i). The last batch is padded and the padding's results are
    dropped, so that neither batch size nor number of devices changes the results. With several
    processes, each computes the rows of its own devices and returns the results of all.

    Args:
        mapped: function from `jaxvae.training.devices.make_map`.
        params, key: on every device of the mesh (`jaxvae.training.devices.replicate`).
        examples: [N, ...] as stored, or a pytree of such arrays, N >= 1.
        mesh: the devices.
        batch_size: examples computed at once; rounded up to a multiple of the number of devices,
            and of `microbatch_size` on each device.
        microbatch_size: the value given to `make_map`.
        progress: called with the number of examples done, after each batch.

    Raises:
        ValueError: no examples, or a batch_size below 1.
    """
    num_rows = count_rows(examples)
    if num_rows == 0:
        raise ValueError("There must be at least one example to evaluate, got none.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    part = microbatch_size or 1
    per_device = -(-min(batch_size, num_rows) // (mesh.size * part)) * part
    block, mine = per_device * mesh.size, local_positions(mesh)
    results = []
    for first in range(0, num_rows, block):
        indices = np.minimum(np.arange(first, first + block, dtype=np.int32), num_rows - 1)
        local = indices.reshape(mesh.size, per_device)[mine]
        batch = shard((local, at_rows(examples, local)), mesh)
        results.append(jax.device_get(mapped(params, key, *batch)))
        progress(min(first + block, num_rows))
    return jax.tree.map(
        lambda *parts: np.concatenate([part.reshape(block, *part.shape[2:]) for part in parts])[
            :num_rows
        ],
        *results,
    )


def estimate(values: np.ndarray) -> Estimate:
    """Mean of [N] and its standard error s / sqrt(N) (NaN for one example).

    The error includes the sampling noise of the values.

    >>> estimate(np.array([1.0, 2.0, 3.0]))
    Estimate(value=2.0, standard_error=0.5773502691896258)
    """
    values = np.asarray(values, np.float64)
    spread = values.std(ddof=1) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), float(spread / math.sqrt(len(values))))


def bits_per_dimension(bound: Estimate, num_dimensions: int, offset_bits: float = 0.0) -> Estimate:
    """Convert a bound in nats per example to bits per dimension; smaller is better.

        -bound / (D log 2) + offset_bits

    Args:
        bound: estimate of a bound on log p(x), in nats.
        num_dimensions: D.
        offset_bits: log2 of the factor that the data were divided by: 8 for 8-bit data
            dequantized and scaled to [0, 1], 0 for unscaled data.

    Ref: Theis, van den Oord & Bethge, A note on the evaluation of generative models, 2016, ICLR.

    >>> bits_per_dimension(Estimate(-math.log(2), 0.0), 1, offset_bits=8.0).value
    9.0
    """
    nats_per_bit = num_dimensions * math.log(2)
    return Estimate(offset_bits - bound.value / nats_per_bit, bound.standard_error / nats_per_bit)


def count_active_units(posterior_means: Any) -> int:
    """Number of latents that are active over a data set, from their posterior means.

    The means are [N, Z] or [N, h, w, c], with a last axis [C] for one-hot latents, or a tuple of
    those of all levels.

    Ref: see `jaxvae.training.step.active_units`, which does the same for a batch.

    >>> count_active_units(np.array([[0.0, 1.0], [0.1, 2.0]]))
    1
    """

    def of_array(means: np.ndarray) -> int:
        active = np.var(np.asarray(means, np.float64), axis=0) > ACTIVE_VARIANCE
        return int((active.any(axis=-1) if active.ndim % 2 == 0 else active).sum())

    return sum(map(of_array, jax.tree.leaves(posterior_means)))
