"""Variational auto-encoders in JAX: pure functions for one example; vmap and pmap do the rest.

>>> import jax, jax.numpy as jnp, jaxvae
>>> encode = lambda x: jaxvae.Gaussian(x[:2], jnp.zeros(2))          # q(z|x)
>>> decode = lambda z: jaxvae.Bernoulli(jnp.tile(z, 2))              # p(x|z)
>>> prior = jaxvae.Gaussian.standard(2)                              # p(z)
>>> x = jnp.array([1.0, 0.0, 1.0, 1.0])
>>> bound = jaxvae.elbo(jax.random.key(0), x, encode=encode, decode=decode, prior=prior)
>>> bool(bound.elbo == bound.log_likelihood - bound.kl)
True
"""

from jaxvae.bounds import Bound, elbo, iwae
from jaxvae.distributions import (
    Bernoulli,
    Distribution,
    FullCovarianceGaussian,
    Gaussian,
    soft_clamp,
)
from jaxvae.divergences import kl
from jaxvae.evaluation import log_likelihood
from jaxvae.parallel import make_chunk_step, make_mesh
from jaxvae.training import TrainState, init_state, make_train_step
from jaxvae.vae import VAE, conv_vae, mlp_vae

__all__ = [  # in the order in which data flow through them
    "VAE",
    "mlp_vae",
    "conv_vae",
    "Distribution",
    "Gaussian",
    "FullCovarianceGaussian",
    "Bernoulli",
    "soft_clamp",
    "kl",
    "Bound",
    "elbo",
    "iwae",
    "TrainState",
    "init_state",
    "make_train_step",
    "make_mesh",
    "make_chunk_step",
    "log_likelihood",
]
