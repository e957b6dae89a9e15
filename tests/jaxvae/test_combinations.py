"""Every (objective, estimator, posterior, prior, likelihood) learns, or is rejected by a rule.

To run all of them (hours): python -m pytest tests/jaxvae/test_combinations.py -m exhaustive -n 0 -s
"""

import random
import re
from collections import Counter
from functools import partial
from itertools import cycle, islice, product
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxvae
from experiments.flags.config import TrainConfig
from jaxvae.bounds import EstimatorName
from jaxvae.models.likelihoods import LIKELIHOODS
from jaxvae.models.posteriors import POSTERIORS
from jaxvae.models.priors import PRIORS

OBJECTIVES = {
    "elbo": jaxvae.elbo,
    "iwae": jaxvae.iwae,
    "miwae": partial(jaxvae.miwae, num_groups=2),
    "piwae": partial(jaxvae.piwae, num_groups=2),
    "ciwae": partial(jaxvae.ciwae, elbo_weight=0.3),
    "renyi": partial(jaxvae.renyi, alpha=0.5),
    "tvo": partial(jaxvae.tvo, num_intervals=3),
}
COMBINATIONS = list(product(OBJECTIVES, get_args(EstimatorName), POSTERIORS, PRIORS, LIKELIHOODS))
AXES = ("objective", "estimator", "posterior", "prior", "likelihood")
RULES = {
    "score is noise where draws have a gradient": r"--estimator=score goes with --posterior",
    "one importance sample has no weights": r"elbo: estimator 'dreg' reduces to 'stl' for the ELBO",
    "stl is biased for weighted draws": r"estimator 'stl' is biased for weighted draws",
    "piwae has no score": r"piwae: estimator '(score|vimco)' is not defined for two bounds",
    "discrete draws carry no gradient": r"draws of OneHotCategorical carry no gradient",
    "prior of another space": r"prior=(mixture|flow) needs Euclidean latents",
}
"""Rule that rejects a combination -> its message."""
FAST_TO_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
"""Compiler options, since the programs run only for milliseconds."""
STEPS = 20


def data(likelihood):
    """64 examples of 4 dimensions with something to learn, of the likelihood's kind."""
    rng = np.random.default_rng(0)
    bright = rng.integers(0, 2, (64, 1))
    grey = np.clip(0.2 + 0.6 * bright + 0.1 * rng.normal(size=(64, 4)), 0, 1)
    if likelihood == "bernoulli":
        return np.round(grey).astype(np.float32)
    if likelihood in (
        "discretized_logistic",
        "logistic_mixture",
        "color_logistic_mixture",
        "categorical",
    ):
        return np.round(255 * grey).astype(np.float32)
    if "binomial" in likelihood or likelihood == "poisson":
        return rng.poisson(5 * grey).astype(np.float32)
    return grey.astype(np.float32)


def bound_before_and_after(objective, estimator, posterior, prior, likelihood):
    """The mean objective on the data, at the same draws, before and after 20 steps of Adam."""
    names = (objective, estimator, posterior, prior, likelihood)
    TrainConfig(**dict(zip(AXES, names, strict=True)), num_samples=4).check()
    xs = jnp.asarray(data(likelihood))
    vae = jaxvae.mlp_vae(
        data_shape=(4,),
        latent_dim=2,
        hidden=(8,),
        posterior=posterior,
        prior=prior,
        likelihood=likelihood,
        num_categories=3,
        num_components=3,
    )
    objective = partial(OBJECTIVES[objective], num_samples=4, estimator=estimator)
    optimizer = optax.adam(3e-3)
    train_step = jaxvae.make_train_step(vae, optimizer, objective=objective)

    def mean_objective(params):
        sides = {"encode": partial(vae.encode, params), "decode": partial(vae.decode, params)}
        bound = lambda key, x: objective(key, x, **sides, prior=vae.prior(params)).objective
        return jax.vmap(bound)(jax.random.split(jax.random.key(1), len(xs)), xs).mean()

    def run(key):
        start = jaxvae.init_state(vae, optimizer, key)
        keys = lambda i: jax.random.split(jax.random.fold_in(key, i), len(xs))
        step = lambda i, state: train_step(state, keys(i), xs)[0]
        end = jax.lax.fori_loop(0, STEPS, step, start)
        return mean_objective(start.params), mean_objective(end.params), end.skipped

    return jax.jit(run, compiler_options=FAST_TO_COMPILE)(jax.random.key(0))


def rule_that_rejects(message):
    (rule,) = [name for name, pattern in RULES.items() if re.search(pattern, message)]
    return rule


def walk(combinations):
    """Count the combinations that learned and those that each rule rejects; others fail."""
    counts, failures = Counter(), []
    for combination in combinations:
        try:
            before, after, skipped = bound_before_and_after(*combination)
        except ValueError as error:
            counts[rule_that_rejects(str(error))] += 1
            continue
        counts["learned"] += 1
        if not (np.isfinite(before) and before < after < np.inf and skipped == 0):
            failures.append((combination, float(before), float(after)))
    rejected = counts.total() - counts["learned"]
    print(f"\n{counts['learned']} combinations learned, {rejected} were rejected: {dict(counts)}")
    assert not failures
    return counts


def every_value_once():
    """Ten combinations in which every value of every axis occurs, and three that learn."""
    axes = (OBJECTIVES, get_args(EstimatorName), POSTERIORS, PRIORS, LIKELIHOODS)
    yield from zip(*[islice(cycle(axis), len(LIKELIHOODS)) for axis in axes], strict=True)
    yield "elbo", "reparameterized", "gaussian", "standard", "bernoulli"
    yield "iwae", "dreg", "iaf", "vamp", "discretized_logistic"
    yield "elbo", "vimco", "categorical", "standard", "poisson"


@pytest.mark.slow
def test_a_sample_of_combinations_learns_or_is_rejected_by_a_rule():
    counts = walk(every_value_once())
    assert counts["learned"] >= 6
    assert counts.total() - counts["learned"] >= 4


@pytest.mark.exhaustive
def test_a_thousand_combinations_learn_or_are_rejected_by_a_rule():
    walk(random.Random(0).sample(COMBINATIONS, 1000))


@pytest.mark.exhaustive
def test_all_combinations_learn_or_are_rejected_by_a_rule():
    assert set(walk(COMBINATIONS)) == {*RULES, "learned"}
