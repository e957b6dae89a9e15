"""Models with known log p(x) and posterior, and every bound on them, for tests of the bounds."""

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxvae import FullCovarianceGaussian, Gaussian
from jaxvae.bounds import ciwae, elbo, iwae, miwae, piwae, renyi, tvo
from jaxvae.testing import LinearChain, LinearGaussian, TwoLayerGaussian

EPS = float(np.finfo(np.float32).eps)
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
NUM_KEYS = 2_000
CASES = {
    "1 from 1, diagonal": (1, 1, ()),
    "5 from 2, full": (5, 2, (5,)),
    "20 from 4, diagonal": (20, 4, ()),
}
SMALL, LARGE = "5 from 2, full", "20 from 4, diagonal"
cases = pytest.mark.parametrize(
    "case", [SMALL, LARGE, pytest.param("1 from 1, diagonal", marks=pytest.mark.slow)]
)
"""One number takes the path of the large case, but every bound compiles again for it."""
PRECISION = dict.fromkeys(CASES, "float32") | {SMALL: "float64"}
BOUNDS = {
    "elbo": elbo,
    "elbo, sampled KL": partial(elbo, kl="sampled"),
    "iwae": iwae,
    "miwae": partial(miwae, num_groups=2),
    "piwae": partial(piwae, num_groups=2),
    "ciwae": partial(ciwae, elbo_weight=0.3),
    "renyi 0.5": partial(renyi, alpha=0.5),
    "renyi 2": partial(renyi, alpha=2.0),
    "renyi -1": partial(renyi, alpha=-1.0),
    "tvo": partial(tvo, num_intervals=3),
}
"""Every bound; num_samples must be even, as miwae and piwae have two groups."""
LOWER = [name for name in BOUNDS if name != "renyi -1"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Foreign:
    """Distribution of another library behind an adapter; its KL has no closed form in jaxvae."""

    inner: Any

    def sample(self, key):
        return self.inner.sample(key)

    def log_prob(self, value):
        return self.inner.log_prob(value)


def to_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


def in_float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def linear_gaussian(case):
    """Return a model and an x, in float64."""
    dim, latent_dim, noise_shape = CASES[case]
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(dim, latent_dim)) / np.sqrt(latent_dim)
    log_scale = rng.normal(-0.3, 0.3, size=noise_shape)
    return LinearGaussian(weight, rng.normal(size=dim), log_scale), rng.normal(size=dim)


def gaussian(case, loc, covariance):
    """Return the Gaussian of the case's kind with these moments; diagonal ones drop covariances."""
    if case.endswith("full"):
        return FullCovarianceGaussian(loc, np.linalg.cholesky(covariance))
    return Gaussian(loc, 0.5 * np.log(np.diag(covariance)))


def posterior_moments(model, x):
    """Posterior mean and covariance by W^T (W W^T + R)^-1, another method than the library's."""
    noise = np.diag(np.broadcast_to(np.exp(2 * model.log_scale), model.bias.shape))
    gain = model.weight.T @ np.linalg.inv(model.weight @ model.weight.T + noise)
    return gain @ (x - model.bias), np.eye(model.weight.shape[1]) - gain @ model.weight


def oracle(case, inflation=1.3**2):
    """Return a model, a q(z|x) that is shifted and wider than the posterior, and x, in float64."""
    model, x = linear_gaussian(case)
    loc, covariance = posterior_moments(model, x)
    shifted = loc + 0.3 * np.sqrt(np.diag(covariance))
    return model, gaussian(case, shifted, inflation * covariance), x


def at_posterior(case):
    """Return a model, q(z|x) = p(z|x), and x.

    Diagonal cases orthogonalize the columns of W, which makes the posterior diagonal.
    """
    model, x = linear_gaussian(case)
    if case.endswith("diagonal"):
        columns, _ = np.linalg.qr(model.weight)
        model = model._replace(weight=columns * np.arange(0.5, 0.5 + columns.shape[1]))
    return model, gaussian(case, *posterior_moments(model, x)), x


def functions(model, q):
    return {"encode": lambda x: q, "decode": model.decode, "prior": model.prior()}


@partial(jax.jit, static_argnames=("num_samples", "names"))
def over_keys(model, q, x, keys, num_samples, names=tuple(BOUNDS)):
    """Compute {name: Bound} for each key, and log p(x).

    lax.map compiles in a third of vmap's time.
    """

    def of_one(key):
        run = lambda bound: bound(key, x, **functions(model, q), num_samples=num_samples)
        return {name: run(BOUNDS[name]) for name in names}

    return jax.lax.map(of_one, keys), model.log_prob(x)


def run_over_keys(model, q, x, num_samples=4, names=tuple(BOUNDS)):
    """Call over_keys with keys split from one root; arrays have the precision in force."""
    keys = jax.random.split(jax.random.key(0), NUM_KEYS)
    return jax.device_get(over_keys(*to_jax((model, q, x)), keys, num_samples, names))


@cache
def drawn(case, num_samples=4, names=tuple(BOUNDS)):
    """Compute these bounds on the oracle with NUM_KEYS keys, and log p(x), in its precision."""
    with jax.enable_x64(PRECISION[case] == "float64"):
        return run_over_keys(*oracle(case), num_samples, names)


@cache
def drawn_at_posterior(case, names=tuple(BOUNDS)):
    """Compute these bounds for q(z|x) = p(z|x) with NUM_KEYS keys, and log p(x)."""
    with jax.enable_x64(PRECISION[case] == "float64"):
        return run_over_keys(*at_posterior(case), names=names)


def means_and_errors(*draws):
    """Mean and standard error of each array of draws."""
    draws = in_float64(draws)
    return [(d.mean(), d.std() / np.sqrt(len(d))) for d in draws]


def log_mean_exp(log_weights):
    return scipy.special.logsumexp(log_weights, axis=-1) - np.log(log_weights.shape[-1])


def tightness(case, name, names):
    """(mean, standard error) of a bound's objective for 1, 4 and 64 samples, and log p(x).

    For one sample every bound is the ELBO with a sampled KL, whose mean does not depend on the
    number of samples: the draws for 4 samples serve for 1, too. `names` are the bounds that the
    calling file compares, which compile together.
    """
    names = ("elbo, sampled KL", *names)
    (few, log_prob), (many, _) = drawn(case, 4, names), drawn(case, 64, names)
    by_size = (few["elbo, sampled KL"], few[name], many[name])
    return means_and_errors(*[result.objective for result in by_size]), log_prob


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Constant:
    """Likelihood with a given log p(x|z) for every x."""

    value: Any

    def log_prob(self, x):
        return self.value


def weighted_by(scale):
    """Arguments of a bound whose log weights are exactly scale * z, z ~ N(0, 1)."""
    q = Gaussian.standard(1)
    decode = lambda z: Constant(jnp.sum(scale * z))
    return {"x": jnp.zeros(()), "encode": lambda x: q, "decode": decode, "prior": q}


def two_layer_model():
    """A two-layer model of 5 entries from 3 and 2 latents, a chain that is not its posterior, an x.

    They are in float64 if jax is, else in float32.
    """
    rng = np.random.default_rng(3)

    def chain(weight):
        arrays = (rng.normal(size=2), rng.normal(-0.2, 0.3, 2), weight)
        return LinearChain(*arrays, rng.normal(size=3), rng.normal(-0.4, 0.3, 3))

    weight = rng.normal(size=(3, 2))
    prior, q = chain(weight), chain(0.5 * weight)
    model = TwoLayerGaussian(
        prior, rng.normal(size=(5, 3)), rng.normal(size=5), 0.3 * rng.normal(size=5)
    )
    return jax.tree.map(jnp.asarray, (model, q, 2 * rng.normal(size=5)))
