"""FactorVAE: the total correlation, by a density ratio that a discriminator learns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient

from jaxvae.distributions import at_least_float32
from jaxvae.regularizers.global_batch import check_batch
from jaxvae.regularizers.regularizer import Regularizer

OPTIMIZER = optax.adam(1e-4, b1=0.5, b2=0.9)
"""The paper's optimizer of the discriminator."""

Layers = list[dict[str, jax.Array]]


class DiscriminatorState(NamedTuple):
    """State of the discriminator, part of the train state.

    Attributes:
        params: layers of the discriminator, {"kernel": [I, O], "bias": [O]} each.
        opt_state: state of its optimizer.
    """

    params: Layers
    opt_state: Any


def density_ratio(
    weight: float,
    *,
    latent_dim: int,
    hidden: tuple[int, ...] = (256, 256),
    optimizer: optax.GradientTransformation = OPTIMIZER,
) -> Regularizer:
    """The penalty weight * mean_i D(z_i); with the ELBO as objective, FactorVAE, gamma = weight.

        D(z) ~ log q(z) / prod_j q(z_j),    so    E_q D(z) ~ TC(q(z))

    The discriminator D is fixed in the penalty. After each step of the VAE it is updated once, on
    the same draws; metrics["discriminator_loss"] is log 2 at chance. D starts at 0, so that the
    penalty grows only as the discriminator learns.

    Args:
        weight: gamma.
        latent_dim: Z.
        hidden: hidden widths of the discriminator; the paper has six layers of 1000 units.
        optimizer: optimizer of the discriminator.

    Ref: Kim & Mnih, Disentangling by Factorising, 2018, ICML.

    >>> regularizer = density_ratio(6.0, latent_dim=2, hidden=(8,))
    >>> [layer["kernel"].shape for layer in regularizer.init(jax.random.key(0)).params]
    [(2, 8), (8, 1)]
    """

    def init(key: jax.Array) -> DiscriminatorState:
        params = init_discriminator(key, latent_dim, hidden)
        return DiscriminatorState(params, optimizer.init(params))

    def penalty(
        state: DiscriminatorState, key: jax.Array, q: Any, z: jax.Array, prior: Any
    ) -> jax.Array:
        check_batch("density_ratio", z)
        params = stop_gradient(state.params)
        return weight * jnp.mean(jax.vmap(lambda z: log_ratio(params, z))(z))

    def update(
        state: DiscriminatorState, key: jax.Array, q: Any, z: jax.Array
    ) -> tuple[DiscriminatorState, dict[str, jax.Array]]:
        product = permuted_latents(key, z)
        loss, gradients = jax.value_and_grad(discriminator_loss)(state.params, z, product)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return DiscriminatorState(params, opt_state), {"discriminator_loss": loss}

    return Regularizer(init, penalty, update)


def init_discriminator(key: jax.Array, latent_dim: int, hidden: tuple[int, ...]) -> Layers:
    """Initialize kernels by N(0, 2 / inputs), but the last kernel and all biases by 0."""
    sizes = (latent_dim, *hidden, 1)
    if min(sizes) < 1:
        raise ValueError(f"latent_dim and hidden must be positive, got {latent_dim} and {hidden}.")
    keys = jax.random.split(key, len(sizes) - 1)

    def layer(i: int) -> dict[str, jax.Array]:
        scale = 0.0 if i == len(keys) - 1 else (2 / sizes[i]) ** 0.5
        kernel = scale * jax.random.normal(keys[i], sizes[i : i + 2])
        return {"kernel": kernel, "bias": jnp.zeros(sizes[i + 1])}

    return [layer(i) for i in range(len(keys))]


def log_ratio(params: Layers, z: jax.Array) -> jax.Array:
    """D(z), the logit of z [Z] being a draw of q(z) and not of prod_j q(z_j): []."""
    (out,) = at_least_float32(z)
    for layer in params[:-1]:
        out = jax.nn.leaky_relu(out @ layer["kernel"] + layer["bias"], 0.2)
    return (out @ params[-1]["kernel"] + params[-1]["bias"])[0]


def discriminator_loss(params: Layers, joint: jax.Array, product: jax.Array) -> jax.Array:
    """Cross-entropy of classifying draws against permuted draws, in nats: [].

        1/2 E_(q(z)) softplus(-D(z)) + 1/2 E_(prod_j q(z_j)) softplus(D(z))

    It is smallest if D is the log ratio of the two densities.

    Args:
        params: parameters of D.
        joint: [B, Z] draws of q(z).
        product: [B, Z] draws of prod_j q(z_j), from `permuted_latents`.
    """
    logits = jax.vmap(lambda z: log_ratio(params, z))
    missed, mistaken = jax.nn.softplus(-logits(joint)), jax.nn.softplus(logits(product))
    return 0.5 * (jnp.mean(missed) + jnp.mean(mistaken))


def permuted_latents(key: jax.Array, z: jax.Array) -> jax.Array:
    """Permute each latent of z [B, Z] independently over the batch: draws of prod_j q(z_j).

    >>> z = permuted_latents(jax.random.key(0), jnp.arange(8.0).reshape(4, 2))
    >>> jnp.sort(z, axis=0).ravel().tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    """
    return jax.random.permutation(key, z, axis=0, independent=True)
