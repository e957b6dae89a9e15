"""Maximum mean discrepancy between the aggregate posterior and the prior."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxvae.distributions import at_least_float32, check_draws
from jaxvae.regularizers.global_batch import check_batch
from jaxvae.regularizers.regularizer import Regularizer, no_state

KERNELS = {
    "rbf": lambda ratio: jnp.exp(-ratio),
    "imq": lambda ratio: 1 / (1 + ratio),
}
"""Kernels as functions of |x - y|^2 / C: Gaussian, and inverse multiquadratic C / (C + d^2)."""
SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Multiples of 2 Z, the mean squared distance of two draws of N(0, I)."""

KernelName = Literal["rbf", "imq"]
StatisticName = Literal["unbiased", "biased"]


def mmd(
    weight: float, *, kernel: KernelName = "imq", scales: tuple[float, ...] = SCALES
) -> Regularizer:
    """The penalty weight * MMD^2(q(z), p(z)), from the batch's draws and as many of the prior.

    It is the last term of InfoVAE,

        E log p(x|z) - (1 - alpha) E KL(q(z|x) || p(z)) - (alpha + lambda - 1) MMD^2(q(z), p(z)),

    for weight = alpha + lambda - 1, and `jaxvae.elbo` with beta = 1 - alpha as the objective. WAE
    and MMD-VAE have alpha = 1: beta = 0 and weight = lambda.

    Args:
        weight: weight of MMD^2, in nats.
        kernel, scales: as in `mmd_squared`.

    Ref: Zhao, Song & Ermon, InfoVAE, 2019, AAAI; Tolstikhin et al., Wasserstein Auto-Encoders,
    2018, ICLR.

    >>> mmd(10.0).init(jax.random.key(0))
    ()
    """

    def penalty(state: Any, key: jax.Array, q: Any, z: jax.Array, prior: Any) -> jax.Array:
        check_batch("mmd", z)
        check_draws("prior", prior)
        draws = jax.vmap(prior.sample)(jax.random.split(key, len(z)))
        return weight * mmd_squared(z, draws, kernel=kernel, scales=scales)

    return Regularizer(no_state, penalty)


def mmd_squared(
    x: jax.Array,
    y: jax.Array,
    *,
    kernel: KernelName = "imq",
    scales: tuple[float, ...] = SCALES,
    statistic: StatisticName = "unbiased",
) -> jax.Array:
    """MMD^2 between two distributions, from draws x and y of them: [].

        E k(x, x') - 2 E k(x, y) + E k(y, y')    with k = sum_s kernel(|x - y|^2 / (2 Z s))

    The unbiased statistic leaves out the pairs of a draw with itself, and can be negative; the
    biased one, the squared distance of two mean embeddings, cannot.

    Args:
        x, y: [B, Z] and [M, Z].
        kernel: "rbf", exp(-r), or "imq", 1 / (1 + r), of the ratio r.
        scales: values of s; their kernels are added.
        statistic: "unbiased" or "biased".

    Raises:
        ValueError: an unknown name, fewer than two draws, or latents of different sizes.

    Ref: Gretton et al., A Kernel Two-Sample Test, 2012, JMLR, lemma 6.

    >>> x = jnp.array([[0.0], [1.0]])
    >>> round(float(mmd_squared(x, x + 3, scales=(1.0,))), 4)
    0.9293
    """
    _check(x, y, kernel, statistic)
    x, y = at_least_float32(x, y)

    def kernels(x: jax.Array, y: jax.Array) -> jax.Array:
        distances = jnp.sum(jnp.square(x[:, None, :] - y[None, :, :]), 2)
        values = [KERNELS[kernel](distances / (2 * x.shape[1] * s)) for s in scales]
        return jnp.sum(jnp.stack(values), 0)

    def within(x: jax.Array) -> jax.Array:
        itself = statistic == "biased"
        pairs = jnp.where(jnp.eye(len(x), dtype=bool), float(itself), 1.0)
        return jnp.sum(pairs * kernels(x, x)) / (len(x) * (len(x) - 1 + itself))

    return within(x) + within(y) - 2 * jnp.mean(kernels(x, y))


def _check(x: jax.Array, y: jax.Array, kernel: str, statistic: str) -> None:
    check_batch("mmd", x)
    check_batch("mmd", y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"mmd: both samples must have the same number of latents, got {x.shape[1]} and "
            f"{y.shape[1]}. Build encoder and prior with the same latent_dim."
        )
    if kernel not in KERNELS:
        raise ValueError(f"mmd: kernel must be rbf or imq, got {kernel!r}.")
    if statistic not in ("unbiased", "biased"):
        raise ValueError(f"mmd: statistic must be unbiased or biased, got {statistic!r}.")
