"""Every bound, estimator, posterior, prior and likelihood under each of jax's modes."""

from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxvae
from jaxvae.bounds import Estimator
from jaxvae.likelihoods import LIKELIHOODS
from jaxvae.posteriors import POSTERIORS
from jaxvae.priors import PRIORS
from tests.test_combinations import OBJECTIVES, data

USUAL = {
    "objective": "elbo",
    "estimator": "reparameterized",
    "posterior": "gaussian",
    "prior": "standard",
    "likelihood": "bernoulli",
    "sigma": "learned",
}


def cases():
    """Settings that differ from the usual one in one thing, each value of each thing once."""
    for objective in OBJECTIVES:
        refused = {"elbo": ["dreg"], "piwae": ["stl", "score", "vimco"]}.get(objective, ["stl"])
        for estimator in get_args(Estimator):
            if estimator not in refused:
                yield {"objective": objective, "estimator": estimator}
    for posterior in POSTERIORS:
        discrete = {"estimator": "score"} if posterior == "categorical" else {}
        yield {"posterior": posterior} | discrete
    yield from ({"prior": prior} for prior in PRIORS)
    yield from ({"likelihood": likelihood} for likelihood in LIKELIHOODS)
    for sigma in (0.5, "per_channel", "per_pixel", "optimal"):
        yield {"likelihood": "gaussian", "sigma": sigma}


every_case = pytest.mark.parametrize(
    "case", list(cases()), ids=lambda case: "-".join(map(str, case.values()))
)


def model(case):
    names = USUAL | case
    return jaxvae.mlp_vae(
        data_shape=(4,),
        latent_dim=2,
        hidden=(3,),
        posterior=names["posterior"],
        prior=names["prior"],
        likelihood=names["likelihood"],
        sigma=names["sigma"],
        num_categories=3,
        num_components=3,
    )


def objective(case):
    names = USUAL | case
    return partial(OBJECTIVES[names["objective"]], num_samples=4, estimator=names["estimator"])


def examples(case, dtype=jnp.float32):
    return jnp.asarray(data((USUAL | case)["likelihood"])[:2], dtype)


def trace_step(case, key, xs):
    """The types of state and metrics before and after a step of Adam with an average."""
    vae, optimizer = model(case), optax.adam(1e-2)
    step = jaxvae.make_train_step(vae, optimizer, objective=objective(case), average_decay=0.9)

    def run(key, xs):
        start = jaxvae.init_state(vae, optimizer, key, averaging=True)
        return start, *step(start, jax.random.split(key, len(xs)), xs)

    return jax.eval_shape(run, key, xs)


@every_case
def test_a_step_traces_under_strict_promotion(case):
    with jax.numpy_dtype_promotion("strict"):
        before, after, _ = trace_step(case, jax.random.key(0), examples(case))
    assert before == after


@every_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_traces_in_x64(case, dtype):
    with jax.enable_x64(True):
        before, after, _ = trace_step(case, jax.random.key(0), examples(case, dtype))
    assert before == after


@every_case
def test_a_step_traces_with_legacy_keys(case):
    with jax.legacy_prng_key("allow"):
        trace_step(case, jax.random.PRNGKey(0), examples(case))
