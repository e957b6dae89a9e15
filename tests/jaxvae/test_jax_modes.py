"""Every bound, estimator, posterior, prior and likelihood under each of jax's modes."""

import dataclasses
import itertools
import sys
from functools import partial
from typing import ClassVar, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxvae
from experiments.flags import command
from experiments.train import train
from jaxvae.bounds import EstimatorName
from jaxvae.distributions import sample_and_log_prob
from jaxvae.models.likelihoods import LIKELIHOODS
from jaxvae.models.posteriors import POSTERIORS
from jaxvae.models.priors import PRIORS
from tests.experiments.test_train import _rows, _same_parameters
from tests.jaxvae.test_combinations import OBJECTIVES, data

TESTS = itertools.count()
USUAL = {
    "objective": "elbo",
    "estimator": "reparameterized",
    "posterior": "gaussian",
    "prior": "standard",
    "likelihood": "bernoulli",
    "sigma": "learned",
}


def cases():
    """Settings that differ from the default in one axis; each value of each axis occurs once."""
    for objective in OBJECTIVES:
        rejected = {"elbo": ["dreg"], "piwae": ["stl", "score", "vimco"]}.get(objective, ["stl"])
        for estimator in get_args(EstimatorName):
            if estimator not in rejected:
                yield {"objective": objective, "estimator": estimator}
    for posterior in POSTERIORS:
        discrete = {"estimator": "score"} if posterior == "categorical" else {}
        yield {"posterior": posterior} | discrete
    yield from ({"prior": prior} for prior in PRIORS)
    yield from ({"likelihood": likelihood} for likelihood in LIKELIHOODS)
    for sigma in (0.5, "per_channel", "per_pixel", "optimal"):
        yield {"likelihood": "gaussian", "sigma": sigma}


def name_of(case):
    return "-".join(map(str, case.values())) or "usual"


BOUNDS = [case for case in cases() if "objective" in case]
FAMILIES = [case for case in cases() if "objective" not in case]
every_case = pytest.mark.parametrize("case", list(cases()), ids=name_of)
A_BOUND_EACH = [
    pytest.param(
        case,
        id=name_of(case),
        marks=() if case["estimator"] in ("reparameterized", "stl") else pytest.mark.long,
    )
    for case in BOUNDS
]


@pytest.fixture(autouse=True)
def programs_do_not_pile_up():
    """Clear jax's caches: without jit every operation is a program; thousands take gigabytes."""
    yield
    next(TESTS) % 10 or jax.clear_caches()


@dataclasses.dataclass(frozen=True)
class Nothing:
    """Flags of a command without flags."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NotReparameterized(jaxvae.Gaussian):
    """A Gaussian whose draws carry no gradient, for the estimators by score."""

    reparameterized: ClassVar[bool] = False

    def sample(self, key):
        return jax.lax.stop_gradient(super().sample(key))


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


def with_numbers(vae):
    """The model, starting from numbers of numpy: Flax's initialization compiles for seconds."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(vae.init, jax.random.key(0))
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(scale=0.4, size=leaf.shape), leaf.dtype), shapes
    )
    return vae._replace(init=lambda key: params)


def objective(case):
    names = USUAL | case
    return partial(OBJECTIVES[names["objective"]], num_samples=4, estimator=names["estimator"])


def examples(case, count=2):
    return jnp.asarray(data((USUAL | case)["likelihood"])[:count])


def gradient(case, key, params, x):
    """The gradient of the bound of one example by all parameters."""
    vae = model(case)

    def bound(params):
        sides = {"encode": partial(vae.encode, params), "decode": partial(vae.decode, params)}
        return objective(case)(key, x, **sides, prior=vae.prior(params)).objective

    return jax.grad(bound)(params)


def step(case):
    """A state before a step of Adam with an average, and the state and metrics after it."""
    vae, optimizer = model(case), optax.adam(1e-2)
    train_step = jaxvae.make_train_step(
        vae, optimizer, objective=objective(case), average_decay=0.9, axis_name=None
    )

    def run(key, xs):
        start = jaxvae.init_state(vae, optimizer, key, averaging=True)
        return start, *train_step(start, jax.random.split(key, len(xs)), xs)

    return run


# Tracing, which raises for incompatible types


@pytest.mark.long
@every_case
def test_gradients_trace_under_strict_promotion_and_with_legacy_keys(case):
    params = jax.eval_shape(model(case).init, jax.random.key(0))
    with jax.numpy_dtype_promotion("strict"), jax.legacy_prng_key("allow"):
        key = jax.random.PRNGKey(0)
        traced = jax.eval_shape(partial(gradient, case), key, params, examples(case)[0])
    assert jax.tree.map(lambda leaf: leaf.dtype, traced) == jax.tree.map(
        lambda leaf: leaf.dtype, params
    )


@pytest.mark.long
@every_case
def test_gradients_trace_in_x64_of_parameters_in_float32(case):
    """The prior, which has no parameters, is float64 in x64."""
    with jax.enable_x64(True):
        to_float32 = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
        params = jax.tree.map(to_float32, jax.eval_shape(model(case).init, jax.random.key(0)))
        x = examples(case)[0]
        traced = jax.eval_shape(partial(gradient, case), jax.random.key(0), params, x)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(traced)} <= {"float32"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["strict", "x64"])
@pytest.mark.parametrize("sigma", ["learned", "optimal"])
def test_a_step_keeps_the_types_of_its_state(mode, sigma):
    case = {"likelihood": "gaussian", "sigma": sigma}
    strict = jax.numpy_dtype_promotion("strict" if mode == "strict" else "standard")
    with strict, jax.enable_x64(mode == "x64"):
        before, after, _ = jax.eval_shape(step(case), jax.random.key(0), examples(case))
    assert before == after


@pytest.mark.parametrize("case", [case for case in cases() if "posterior" in case], ids=name_of)
def test_no_loop_waits_for_a_single_lane(case):
    """Under `vmap` with rbg keys, a finished lane would stop the random bits of all others."""
    params = jax.eval_shape(model(case).init, jax.random.key(0))
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 2)
    mapped = jax.vmap(
        lambda key, params: model(case).encode(params, examples(case)[0]).sample(key), (0, None)
    )
    assert "while[" not in str(jax.make_jaxpr(mapped)(keys, params))


def test_draws_have_the_type_of_the_posterior_and_terms_the_widest():
    narrow = lambda *shape: jnp.ones(shape, jnp.float32)
    with jax.enable_x64(True):
        bound = jax.eval_shape(
            lambda key: jaxvae.iwae(
                key,
                narrow(3),
                encode=lambda x: jaxvae.Gaussian(narrow(2), narrow()),
                decode=lambda z: jaxvae.Bernoulli(narrow(3) * z.sum()),
                prior=jaxvae.Gaussian.standard(2),
                num_samples=2,
                estimator="dreg",
            ),
            jax.random.key(0),
        )
    assert bound.samples.dtype == jnp.float32
    numbers = [bound.objective, bound.elbo, bound.reconstruction, bound.kl, bound.log_weights]
    assert {number.dtype.name for number in numbers} == {"float64"}


# Without jit, with every result checked for NaN


@pytest.mark.long
@pytest.mark.parametrize("case", A_BOUND_EACH)
def test_bounds_run_without_jit_and_make_no_nan(case):
    def bound(weight):
        return objective(case)(
            jax.random.key(0),
            jnp.array([0.3, -1.0]),
            encode=lambda x: posterior(weight * x, jnp.zeros(())),
            decode=lambda z: jaxvae.Gaussian(weight * z, jnp.zeros(())),
            prior=jaxvae.Gaussian.standard(2),
        ).objective

    discrete = (USUAL | case)["estimator"] in ("score", "vimco")
    posterior = NotReparameterized if discrete else jaxvae.Gaussian
    with jax.disable_jit(), jax.debug_nans(True):
        value, slope = jax.value_and_grad(bound)(jnp.array(0.5))
    assert np.isfinite([value, slope]).all()


@pytest.mark.long
@pytest.mark.parametrize("case", FAMILIES, ids=name_of)
def test_families_run_without_jit_and_make_no_nan(case):
    """The gradients by every parameter are computed too."""
    vae, x = model(case), examples(case)[0]
    params = jax.jit(vae.init)(jax.random.key(1))

    def log_density(params):
        if "likelihood" in case:
            return vae.decode(params, jnp.array([0.3, -1.0])).log_prob(x)
        if "prior" in case:
            prior = vae.prior(params)
            return prior.log_prob(jax.lax.stop_gradient(prior.sample(jax.random.key(2))))
        z, log_q = sample_and_log_prob(vae.encode(params, x), jax.random.key(2))
        return log_q + jnp.sum(z)

    with jax.disable_jit(), jax.debug_nans(True):
        value, slopes = jax.value_and_grad(log_density)(params)
        if "likelihood" in case:
            vae.decode(params, jnp.array([0.3, -1.0])).sample(jax.random.key(3))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, slopes)))


@pytest.mark.long
@every_case
def test_a_bound_runs_without_jit_and_makes_no_nan(case):
    params = jax.jit(model(case).init)(jax.random.key(1))
    with jax.disable_jit(), jax.debug_nans(True):
        gradient(case, jax.random.key(0), params, examples(case)[0])


# Axes of type Explicit, as jax.make_mesh makes them


def sharded_over(mesh, *trees):
    rows = NamedSharding(mesh, PartitionSpec("data"))
    return [jax.device_put(tree, rows) for tree in trees]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name_of(case), marks=() if "posterior" in case else pytest.mark.long)
        for case in cases()
    ],
)
def test_a_step_traces_with_examples_on_an_explicit_axis(case):
    mesh = jax.make_mesh((4,), ("data",))
    keys, xs = sharded_over(mesh, jax.random.split(jax.random.key(0), 4), examples(case, 4))
    vae, optimizer = model(case), optax.adam(1e-2)
    train_step = jaxvae.make_train_step(vae, optimizer, objective=objective(case))
    state = jax.eval_shape(partial(jaxvae.init_state, vae, optimizer), jax.random.key(0))
    whole = NamedSharding(mesh, PartitionSpec())
    state = jax.tree.map(lambda leaf: leaf.update(sharding=whole), state)
    after, _ = jax.eval_shape(train_step, state, keys, xs)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


def test_a_state_that_is_not_on_the_mesh_of_the_batch_is_rejected():
    mesh = jax.make_mesh((4,), ("data",))
    keys, xs = sharded_over(mesh, jax.random.split(jax.random.key(0), 4), examples({}, 4))
    vae, optimizer = with_numbers(model({})), optax.sgd(0.1)
    state = jaxvae.init_state(vae, optimizer, jax.random.key(0))
    with pytest.raises(ValueError, match=r"Place it: jax\.device_put"):
        jax.eval_shape(jaxvae.make_train_step(vae, optimizer), state, keys, xs)


@pytest.mark.parametrize("option", ["microbatch_size", "virtual_shards"])
def test_a_step_in_parts_rejects_a_batch_on_an_explicit_axis_with_a_remedy(option):
    mesh = jax.make_mesh((4,), ("data",))
    keys, xs = sharded_over(mesh, jax.random.split(jax.random.key(0), 8), examples({}, 8))
    vae, optimizer = model({}), optax.sgd(0.1)
    state = jax.eval_shape(partial(jaxvae.init_state, vae, optimizer), jax.random.key(0))
    whole = NamedSharding(mesh, PartitionSpec())
    state = jax.tree.map(lambda leaf: leaf.update(sharding=whole), state)
    step = jaxvae.make_train_step(vae, optimizer, **{option: 2})
    with pytest.raises(ValueError, match=rf"{option} splits .*AxisType\.Auto"):
        jax.eval_shape(step, state, keys, xs)


@pytest.mark.slow
def test_a_step_on_an_explicit_axis_is_that_of_one_device():
    vae, optimizer = with_numbers(model({})), optax.sgd(0.1)
    state = jaxvae.init_state(vae, optimizer, jax.random.key(0))
    train_step = jax.jit(jaxvae.make_train_step(vae, optimizer))
    keys, xs = jax.random.split(jax.random.key(1), 8), examples({}, 8)
    alone = train_step(state, keys, xs)
    mesh = jax.make_mesh((4,), ("data",))
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    shared = train_step(state, *sharded_over(mesh, keys, xs))
    as_numpy = partial(jax.tree.map, np.asarray)
    chex.assert_trees_all_close(as_numpy(shared), as_numpy(alone), rtol=1e-5, atol=1e-6)


def test_a_convolution_on_an_explicit_axis_is_rejected_with_a_remedy():
    mesh = jax.make_mesh((4,), ("data",))
    (images,) = sharded_over(mesh, jnp.ones((4, 8, 8, 1)))
    vae = jaxvae.conv_vae(data_shape=(8, 8, 1), latent_dim=2, hidden=(3,))
    params = jax.eval_shape(vae.init, jax.random.key(0))
    encode = lambda params: jax.vmap(partial(vae.encode, params))(images).loc
    with pytest.raises(ValueError, match=r"AxisType\.Auto"):
        jax.eval_shape(encode, params)


@pytest.mark.slow
def test_log_likelihood_on_an_explicit_axis_is_that_of_one_device():
    vae = with_numbers(model({}))
    params = vae.init(jax.random.key(0))

    @jax.jit
    def estimates(params, keys, xs):
        sides = {"encode": partial(vae.encode, params), "decode": partial(vae.decode, params)}
        one = partial(jaxvae.log_likelihood, **sides, prior=vae.prior(params), num_samples=7)
        return jax.vmap(lambda key, x: one(key, x, sample_chunk_size=3))(keys, xs)

    keys, xs = jax.random.split(jax.random.key(1), 4), examples({}, 4)
    mesh = jax.make_mesh((4,), ("data",))
    alone = np.asarray(estimates(params, keys, xs))
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    shared = estimates(params, *sharded_over(mesh, keys, xs))
    np.testing.assert_allclose(np.asarray(shared), alone, rtol=1e-5)


# Commands


@pytest.mark.long
@pytest.mark.parametrize(
    "mode", [jax.debug_nans(True), jax.numpy_dtype_promotion("strict")], ids=["nans", "strict"]
)
def test_a_mode_that_only_checks_leaves_a_run_as_it_is(mode, whole_run, small, tmp_path):
    config = dataclasses.replace(small, run=tmp_path / "run")
    with mode:
        assert train(config) == 0
    assert _rows(config.run) == _rows(whole_run.run)
    _same_parameters(config.run, whole_run.run)


@pytest.mark.long
@pytest.mark.parametrize(
    "flags",
    [
        {"likelihood": "gaussian", "sigma": "optimal"},
        pytest.param({"estimator": "stl"}, marks=pytest.mark.long),
        {"objective": "iwae", "num_samples": 3, "estimator": "dreg"},
    ],
    ids=name_of,
)
def test_a_run_trains_in_x64(flags, small, tmp_path):
    config = dataclasses.replace(small, run=tmp_path / "run", num_steps=20, eval_every=20, **flags)
    with jax.enable_x64(True):
        assert train(config) == 0
    assert all(np.isfinite(row["elbo"]) for row in _rows(config.run))


@pytest.mark.long
def test_a_run_without_jit_is_the_compiled_run(small, tmp_path):
    np.savez(tmp_path / "bits.npz", x=np.arange(160).reshape(40, 4) % 3 % 2)
    compiled, eager = (
        dataclasses.replace(
            small,
            dataset=f"npz:{tmp_path}/bits.npz",
            run=tmp_path / name,
            hidden=(4,),
            batch_size=4,
            num_steps=2,
            eval_every=2,
            log_every=1,
            eval_samples=1,
        )
        for name in ("compiled", "eager")
    )
    assert train(compiled) == 0
    with jax.disable_jit():
        assert train(eager) == 0
    for one, other in zip(_rows(eager.run), _rows(compiled.run), strict=True):
        assert one["elbo"] == pytest.approx(other["elbo"], rel=1e-4)


@pytest.mark.slow
def test_a_nan_under_debug_nans_ends_in_one_line(small, tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(small, run=tmp_path / "run", learning_rate=1e30)
    monkeypatch.setattr(sys, "argv", ["train"])
    with jax.debug_nans(True), pytest.raises(SystemExit) as end:
        command.main(Nothing, lambda flags: train(config))
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "Unset it to skip such steps" in line
