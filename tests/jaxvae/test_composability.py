"""Bounds with the networks and the distributions of other libraries.

One tiny VAE with the same weights in plain functions, Flax linen, Flax NNX, Equinox and Haiku; then
with the distributions of numpyro, distrax and TFP in the place of ours. Each is an example to copy.
"""

import importlib
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx

from jaxvae import Bernoulli, Gaussian, elbo, iwae
from jaxvae.adapters import adapt

DATA_DIM, HIDDEN, LATENT_DIM = 4, 3, 2
NUM_EXAMPLES, NUM_SAMPLES = 3, 5


def weights():
    """Kernels [in, out] and biases of every layer."""
    rng = np.random.default_rng(0)
    layer = lambda rows, columns: {
        "kernel": jnp.asarray(rng.normal(size=(rows, columns))),
        "bias": jnp.asarray(rng.normal(size=columns)),
    }
    return {
        "hidden": layer(DATA_DIM, HIDDEN),
        "loc": layer(HIDDEN, LATENT_DIM),
        "log_scale": layer(HIDDEN, LATENT_DIM),
        "logits": layer(LATENT_DIM, DATA_DIM),
    }


def examples():
    keys = jax.random.split(jax.random.key(1), NUM_EXAMPLES)
    return keys, jnp.asarray([[1.0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]])


class Networks(NamedTuple):
    """Attributes: params; encode(params, x); decode(params, z); plain: of params to weights()."""

    params: Any
    encode: Callable
    decode: Callable
    plain: Callable = lambda params: params


def raw_networks(weights):
    dense = lambda layer, x: x @ layer["kernel"] + layer["bias"]

    def encode(params, x):
        h = jnp.tanh(dense(params["hidden"], x))
        return Gaussian(dense(params["loc"], h), dense(params["log_scale"], h))

    def decode(params, z):
        return Bernoulli(dense(params["logits"], z))

    return Networks(weights, encode, decode)


def linen_networks(weights):
    class VAE(nn.Module):
        def setup(self):
            self.hidden = nn.Dense(HIDDEN)
            self.loc, self.log_scale = nn.Dense(LATENT_DIM), nn.Dense(LATENT_DIM)
            self.logits = nn.Dense(DATA_DIM)

        def encode(self, x):
            h = jnp.tanh(self.hidden(x))
            return Gaussian(self.loc(h), self.log_scale(h))

        def decode(self, z):
            return Bernoulli(self.logits(z))

    encode = partial(VAE().apply, method="encode")
    decode = partial(VAE().apply, method="decode")
    return Networks({"params": weights}, encode, decode, lambda params: params["params"])


def nnx_networks(weights):
    class VAE(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(DATA_DIM, HIDDEN, rngs=rngs)
            self.loc = nnx.Linear(HIDDEN, LATENT_DIM, rngs=rngs)
            self.log_scale = nnx.Linear(HIDDEN, LATENT_DIM, rngs=rngs)
            self.logits = nnx.Linear(LATENT_DIM, DATA_DIM, rngs=rngs)

        def encode(self, x):
            h = jnp.tanh(self.hidden(x))
            return Gaussian(self.loc(h), self.log_scale(h))

        def decode(self, z):
            return Bernoulli(self.logits(z))

    graph, params = nnx.split(VAE(nnx.Rngs(0)))
    nnx.replace_by_pure_dict(params, weights)
    encode = lambda params, x: nnx.merge(graph, params).encode(x)
    decode = lambda params, z: nnx.merge(graph, params).decode(z)
    return Networks(params, encode, decode, nnx.to_pure_dict)


def equinox_networks(weights):
    class VAE(eqx.Module):
        hidden: eqx.nn.Linear
        loc: eqx.nn.Linear
        log_scale: eqx.nn.Linear
        logits: eqx.nn.Linear

        def encode(self, x):
            h = jnp.tanh(self.hidden(x))
            return Gaussian(self.loc(h), self.log_scale(h))

        def decode(self, z):
            return Bernoulli(self.logits(z))

    def linear(layer):
        module = eqx.nn.Linear(*layer["kernel"].shape, key=jax.random.key(0))
        values = (layer["kernel"].T, layer["bias"])
        return eqx.tree_at(lambda module: (module.weight, module.bias), module, values)

    model = VAE(**{name: linear(layer) for name, layer in weights.items()})
    plain = lambda model: {
        name: {"kernel": getattr(model, name).weight.T, "bias": getattr(model, name).bias}
        for name in weights
    }
    return Networks(model, VAE.encode, VAE.decode, plain)


def haiku_networks(weights):
    def encode(x):
        h = jnp.tanh(hk.Linear(HIDDEN, name="hidden")(x))
        heads = (hk.Linear(LATENT_DIM, name=name)(h) for name in ("loc", "log_scale"))
        return Gaussian(*heads)

    def decode(z):
        return Bernoulli(hk.Linear(DATA_DIM, name="logits")(z))

    encoder, decoder = (hk.without_apply_rng(hk.transform(side)) for side in (encode, decode))
    params = {name: {"w": layer["kernel"], "b": layer["bias"]} for name, layer in weights.items()}
    plain = lambda params: {
        name: {"kernel": layer["w"], "bias": layer["b"]} for name, layer in params.items()
    }
    return Networks(params, encoder.apply, decoder.apply, plain)


NETWORKS = {
    "raw": raw_networks,
    "linen": linen_networks,
    "nnx": nnx_networks,
    "equinox": equinox_networks,
    "haiku": haiku_networks,
}


def sampled_elbo(*args, **kwargs):
    """The elbo without a closed form, with a sampled KL."""
    result = iwae(*args, **kwargs)
    return result._replace(objective=result.log_weights.mean())


BOUNDS = {"elbo": elbo, "iwae": iwae, "sampled elbo": sampled_elbo}


def results(names, networks, prior):
    """Values of each bound for the examples, and the gradient of its mean objective."""
    keys, x = examples()

    def objective(params, bound):
        of_one = lambda key, x: bound(
            key,
            x,
            encode=partial(networks.encode, params),
            decode=partial(networks.decode, params),
            prior=prior,
            num_samples=NUM_SAMPLES,
        )
        result = jax.vmap(of_one)(keys, x)
        return result.objective.mean(), result

    def of_bound(params, name):
        gradient, result = jax.grad(objective, has_aux=True)(params, BOUNDS[name])
        return result, networks.plain(gradient)

    return {name: of_bound(networks.params, name) for name in names}


@cache
def results_of_networks():
    """{system: results} in one program, of which XLA compiles what they share only once."""

    @jax.jit
    def of_all(weights):
        prior = Gaussian.standard(LATENT_DIM)
        return {
            system: results(["elbo", "iwae"], make(weights), prior)
            for system, make in NETWORKS.items()
        }

    return jax.device_get(of_all(weights()))


class Family(NamedTuple):
    """Attributes: gaussian(loc, log_scale) and bernoulli(logits), each over one event."""

    gaussian: Callable
    bernoulli: Callable


def imported(name):
    """Import a library, or skip: it may not support the installed jax."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of jax.core, as TFP starts
            return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"{name}: {type(error).__name__}: {error}")


def numpyro_family():
    """numpyro's distributions without an adapter: they have `sample(key)` and `log_prob(value)`."""
    return Family(
        lambda loc, log_scale: dist.Normal(loc, jnp.exp(log_scale)).to_event(1),
        lambda logits: dist.BernoulliLogits(logits).to_event(1),
    )


def adapted_numpyro_family():
    """Distributions with `mean()` and the other methods of this library's."""
    gaussian, bernoulli = numpyro_family()
    return Family(
        lambda loc, log_scale: adapt(gaussian(loc, log_scale)),
        lambda logits: adapt(bernoulli(logits)),
    )


def distrax_family():
    distrax = imported("distrax")
    return Family(
        lambda loc, log_scale: adapt(
            distrax.Independent(distrax.Normal(loc, jnp.exp(log_scale)), 1)
        ),
        lambda logits: adapt(distrax.Independent(distrax.Bernoulli(logits=logits), 1)),
    )


def tfp_family():
    tfd = imported("tensorflow_probability.substrates.jax").distributions
    return Family(
        lambda loc, log_scale: adapt(tfd.MultivariateNormalDiag(loc, jnp.exp(log_scale))),
        lambda logits: adapt(tfd.Independent(tfd.Bernoulli(logits=logits), 1)),
    )


FAMILIES = {
    "numpyro": numpyro_family,
    "adapted numpyro": adapted_numpyro_family,
    "distrax": distrax_family,
    "tfp": tfp_family,
}


OURS = Family(Gaussian, Bernoulli)
SIDES = ("encode", "decode", "prior", "everywhere")


def results_at(names, at, weights):
    """`at` names the library of the distributions of encode, decode and prior."""
    networks = raw_networks(weights)

    def encode(params, x):
        q = networks.encode(params, x)
        return at("encode").gaussian(q.loc, q.log_scale)

    decode = lambda params, z: at("decode").bernoulli(networks.decode(params, z).logits)
    prior = at("prior").gaussian(jnp.zeros(LATENT_DIM), jnp.zeros(LATENT_DIM))
    return results(names, Networks(networks.params, encode, decode), prior)


@cache
def results_of_ours():
    with jax.enable_x64(True):
        run = jax.jit(partial(results_at, ["iwae", "elbo", "sampled elbo"], lambda side: OURS))
        return jax.device_get(run(weights()))


@cache
def results_of_family(family):
    """{side: results} in one program: the other library's distributions on one side, or everywhere,
    and ours elsewhere."""
    theirs = FAMILIES[family]()

    def of_side(foreign, weights):
        at = lambda side: theirs if foreign in (side, "everywhere") else OURS
        return results_at(["iwae", "elbo"] if foreign == "everywhere" else ["iwae"], at, weights)

    of_all = jax.jit(lambda weights: {side: of_side(side, weights) for side in SIDES})
    with ranks_as_in(family), jax.enable_x64(True):
        return jax.device_get(of_all(weights()))


def ranks_as_in(family):
    """Allow rank promotion, jax's default, which distrax and TFP need."""
    return jax.numpy_rank_promotion("allow") if family in ("distrax", "tfp") else nullcontext()


def assert_same(actual, expected, tolerance):
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), actual, expected
    )


# Golden


@pytest.mark.parametrize("bound", ["elbo", "iwae"])
@pytest.mark.parametrize("system", [name for name in NETWORKS if name != "raw"])
def test_every_module_system_gives_the_numbers_and_gradients_of_plain_functions(system, bound):
    result, gradient = results_of_networks()[system][bound]
    expected, expected_gradient = results_of_networks()["raw"][bound]
    assert result.log_weights.shape == (NUM_EXAMPLES, NUM_SAMPLES)
    assert_same(result, expected, 1e-6)
    assert_same(gradient, expected_gradient, 1e-6)
    assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_library_gives_the_weights_and_gradients_of_ours(family, side):
    """The KL of adapted normals is the formula's, that of a bare foreign pair that of the draws."""
    theirs, gradient = results_of_family(family)[side]["iwae"]
    ours, expected_gradient = results_of_ours()["iwae"]
    for field in ("objective", "reconstruction", "log_weights"):
        assert_same(getattr(theirs, field), getattr(ours, field), 1e-12)
    assert_same(gradient, expected_gradient, 1e-12)
    known = side == "decode" or family != "numpyro"
    expected_elbo = ours.elbo if known else ours.log_weights.mean(axis=1)
    assert_same(theirs.elbo, expected_elbo, 1e-12)
    assert (theirs.kl_per_latent is not None) == known


@pytest.mark.parametrize("family", FAMILIES)
def test_the_elbo_of_a_foreign_pair_has_the_kl_and_gradient_of_ours(family):
    theirs, gradient = results_of_family(family)["everywhere"]["elbo"]
    name = "sampled elbo" if family == "numpyro" else "elbo"
    ours, expected_gradient = results_of_ours()[name]
    assert_same(theirs.objective, ours.objective, 1e-12)
    assert_same(gradient, expected_gradient, 1e-12)
