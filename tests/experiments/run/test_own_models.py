"""Models whose parameters are any pytree: arrays are trained, other leaves are carried along."""

import dataclasses
import importlib
import sys
from dataclasses import dataclass
from functools import cache
from functools import partial as p
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxvae
from experiments.flags.config import TrainConfig
from experiments.run.diagnosis import diagnose
from experiments.run.model import initial_vae
from experiments.run.optimization import make_optimizer
from experiments.run.replayed_run import Step
from experiments.train import train
from jaxvae import VAE, Bernoulli, Gaussian, regularizers
from jaxvae.checkpoints import load
from jaxvae.leaves import ArraysOnly, arrays_only, combine, is_array, partition

DIM, LATENT_DIM, BATCH = 6, 2, 8

OWN = """
import equinox as eqx, jax, jax.numpy as jnp
from jaxvae import VAE, Bernoulli, Gaussian

class Coder(eqx.Module):
    net: eqx.nn.MLP
    order: jax.Array
    half: jax.Array
    empty: jax.Array
    slope: float = 0.5
    name: str = "coder"
    nothing: None = None

    def __call__(self, x):
        return self.slope * self.net(x[self.order]) + self.half.astype(jnp.float32)

def coder(key, inputs, outputs):
    key_net, key_order = jax.random.split(key)
    return Coder(
        net=eqx.nn.MLP(inputs, outputs, 8, 1, key=key_net),
        order=jax.random.permutation(key_order, inputs),
        half=jnp.zeros(outputs, jnp.bfloat16),
        empty=jnp.zeros((0, inputs)),
    )

def make(data_shape):
    size = data_shape[0] * data_shape[1] * data_shape[2] if len(data_shape) == 3 else data_shape[0]

    def init(key):
        keys = jax.random.split(key)
        return {"q": coder(keys[0], size, 4), "p": coder(keys[1], 2, size)}

    def encode(params, x):
        h = params["q"](x.ravel())
        return Gaussian(h[:2], h[2:])

    return VAE(init, encode, lambda params, z: Bernoulli(params["p"](z).reshape(data_shape)),
               lambda params: Gaussian.standard(2))
"""


def _vae(extra=None, cast=lambda weight: weight):
    """Linear model with `extra` leaves; its functions apply `cast` to the weights."""

    def init(key):
        key_in, key_out = jax.random.split(key)
        weights = {
            "w": jax.random.normal(key_in, (2 * LATENT_DIM, DIM)) / 3,
            "v": jax.random.normal(key_out, (DIM, LATENT_DIM)) / 3,
        }
        return weights | (extra(key) if extra else {})

    def encode(params, x):
        h = cast(params["w"]) @ x
        return Gaussian(h[:LATENT_DIM], h[LATENT_DIM:])

    decode = lambda params, z: Bernoulli(cast(params["v"]) @ z)
    return VAE(init, encode, decode, lambda params: Gaussian.standard(LATENT_DIM))


def _trained(vae, optimizer=None, *, steps=4, averaging=True, **options):
    """State after some steps, from fixed keys and examples."""
    optimizer = optimizer or optax.adam(0.05)
    decay = 0.9 if averaging else None
    state = jaxvae.init_state(
        vae,
        optimizer,
        jax.random.key(0),
        averaging=averaging,
        regularizer=options.get("regularizer"),
    )
    step = jax.jit(jaxvae.make_train_step(vae, optimizer, average_decay=decay, **options))
    xs = jax.random.bernoulli(jax.random.key(1), 0.4, (BATCH, DIM)).astype(jnp.float32)
    for i in range(steps):
        state, metrics = step(state, jax.random.split(jax.random.key(2 + i), BATCH), xs)
    assert int(state.skipped) == 0
    return state, metrics


@cache
def _plain():
    """Weights that the model without other leaves learns in the same steps."""
    return _trained(_vae())[0]


def _assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def _weights(params):
    return {name: params[name] for name in ("w", "v")}


EXTRA: dict[str, Any] = {
    "integer": lambda key: {"count": jnp.arange(3)},
    "boolean": lambda key: {"seen": jnp.ones(2, bool)},
    "unsigned": lambda key: {"bytes": jnp.ones(2, jnp.uint8)},
    "of the key": lambda key: {"order": jax.random.permutation(key, DIM)},
    "function": lambda key: {"act": jax.nn.relu},
    "lambda": lambda key: {"act": lambda x: x},
    "string": lambda key: {"name": "relu"},
    "none": lambda key: {"nothing": None},
    "number": lambda key: {"slope": 0.5, "count": 3, "flag": True},
    "empty": lambda key: {"empty": jnp.zeros((0, 3))},
    "object": lambda key: {"any": object()},
    "numpy": lambda key: {"table": np.arange(4)},
    "nested": lambda key: {"layers": [{"act": jnp.tanh}, (jnp.arange(2), "x")]},
}


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRA.values(), ids=EXTRA)
def test_other_leaves_do_not_change_what_the_weights_learn(extra):
    state, _ = _trained(jaxvae.trainable(_vae(extra)))
    _assert_same(_weights(state.params), _plain().params)
    _assert_same(_weights(state.average), _plain().average)


def test_integer_and_boolean_arrays_are_carried_as_init_made_them():
    kinds = [EXTRA[name] for name in ("integer", "boolean", "unsigned", "of the key")]
    vae = jaxvae.trainable(_vae(lambda key: {k: v for kind in kinds for k, v in kind(key).items()}))
    state, _ = _trained(vae, steps=1)
    start = vae.init(jax.random.key(0))
    carried = start.keys() - {"w", "v"}
    assert carried == {"count", "seen", "bytes", "order"}
    for name in carried:
        _assert_same(state.params[name], start[name])
        _assert_same(state.average[name], start[name])
        assert state.average[name].dtype == start[name].dtype


def test_model_sees_its_other_leaves_as_init_made_them():
    mark = object()
    vae = _vae(lambda key: {"act": jnp.tanh, "mark": mark, "empty": jnp.zeros((0, 3)), "slope": 2})
    seen = []
    vae = vae._replace(prior=lambda params: seen.append(params) or Gaussian.standard(LATENT_DIM))
    prepared = jaxvae.trainable(vae)
    prepared.prior(prepared.init(jax.random.key(0)))
    assert seen[0]["act"] is jnp.tanh
    assert seen[0]["mark"] is mark
    assert seen[0]["slope"] == 2
    assert seen[0]["empty"].shape == (0, 3)


def test_a_model_of_float32_arrays_is_returned_as_it_is():
    vae = _vae()
    assert jaxvae.trainable(vae) is vae
    odd = jaxvae.trainable(_vae(EXTRA["function"]))
    assert jaxvae.trainable(odd) is odd


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_floats_train_as_float32_weights_that_the_model_rounds(dtype):
    rounded = lambda leaf: leaf.astype(dtype)

    def narrow_init(key):
        return jax.tree.map(rounded, _vae().init(key))

    def wide_init(key):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow_init(key))

    state, _ = _trained(jaxvae.trainable(_vae()._replace(init=narrow_init)))
    expected, _ = _trained(_vae(cast=rounded)._replace(init=wide_init))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    _assert_same(state.params, expected.params)
    _assert_same(state.average, expected.average)


def test_average_of_bfloat16_weights_moves_by_less_than_their_spacing():
    # Near 1, bfloat16 numbers are 2^-7 apart: a bfloat16 average with decay 0.998 never changes.
    vae = VAE(
        init=lambda key: {"v": jnp.ones(DIM, jnp.bfloat16)},
        encode=lambda params, x: Gaussian(x[:LATENT_DIM], jnp.zeros(LATENT_DIM)),
        decode=lambda params, z: Bernoulli(params["v"] * z.sum()),
        prior=lambda params: Gaussian.standard(LATENT_DIM),
    )
    state, _ = _trained(jaxvae.trainable(vae), optax.sgd(1e-3))
    moved = np.abs(np.asarray(state.average["v"]) - 1)
    assert ((moved > 0) & (moved < 2**-7)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        {"optimizer": "adam", "gradient_clip": 0.1},
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"optimizer": "adamax"},
        {"optimizer": "sgd", "accumulate_steps": 2},
    ],
    ids=lambda flags: flags["optimizer"],
)
def test_no_optimizer_changes_integers(flags):
    optimizer = make_optimizer(TrainConfig(learning_rate=0.05, **flags), 10)
    extra = lambda key: {"table": jnp.arange(6).reshape(2, 3), "act": jnp.tanh}
    plain, _ = _trained(_vae(), optimizer)
    state, _ = _trained(jaxvae.trainable(_vae(extra)), optimizer)
    _assert_same(_weights(state.params), plain.params)
    _assert_same(state.params["table"], np.arange(6).reshape(2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"microbatch_size": 4}, {"virtual_shards": 4}], ids=str)
def test_microbatches_carry_integers(options):
    plain, _ = _trained(_vae(), **options)
    state, _ = _trained(jaxvae.trainable(_vae(EXTRA["nested"])), **options)
    _assert_same(_weights(state.params), plain.params)


@pytest.mark.parametrize(
    ("leaf", "line"),
    [
        (lambda key: jnp.ones(2, jnp.complex64), r"parameter deep/0 is complex64\[2\].*two real"),
        (lambda key: key, r"parameter deep/0 is key<fry>\[\].*jax.random.key_data"),
    ],
)
def test_trainable_rejects_a_leaf_without_an_update_by_its_path(leaf, line):
    with pytest.raises(TypeError, match=line):
        jaxvae.trainable(_vae(lambda key: {"deep": [leaf(key)]}))


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        (EXTRA["function"], "parameter act is .*not an array. Use vae = jaxvae.trainable"),
        (EXTRA["string"], "parameter name is str, which is not an array"),
        (
            lambda key: {"half": jnp.ones(2, jnp.bfloat16)},
            r"parameter half is bfloat16\[2\], which is too narrow to average. Use vae",
        ),
    ],
)
def test_init_state_names_the_leaf_that_needs_trainable(extra, line):
    with pytest.raises(TypeError, match=line):
        jaxvae.init_state(_vae(extra), optax.sgd(0.1), jax.random.key(0), averaging=True)


def test_partition_and_combine_are_inverse_and_keep_whole_trees():
    tree = {"a": jnp.zeros(2), "b": [jnp.tanh, None, 3], "c": eqx.nn.Linear(2, 3, key=KEY)}
    kept, rest = partition(tree, is_array)
    assert all(map(is_array, jax.tree.leaves(kept)))
    assert not any(map(is_array, jax.tree.leaves(rest)))
    back = combine(kept, rest)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (back, tree)), strict=True))
    whole = {"a": jnp.zeros(2)}
    assert partition(whole, is_array) == (whole, None)


KEY = jax.random.key(7)


class NetPosterior(eqx.Module):
    """Gaussian whose location is the output of a network, so it has functions among its leaves."""

    net: eqx.nn.MLP
    h: jax.Array
    log_scale: jax.Array

    def _gaussian(self):
        return Gaussian(self.net(self.h), self.log_scale)

    def sample(self, key):
        return self._gaussian().sample(key)

    def log_prob(self, value):
        return self._gaussian().log_prob(value)

    def log_prob_per_entry(self, value):
        return self._gaussian().log_prob_per_entry(value)

    def mean(self):
        return self._gaussian().mean()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PlainPosterior:
    """The same distribution from arrays alone, without a KL in closed form."""

    loc: jax.Array
    log_scale: jax.Array

    def sample(self, key):
        return Gaussian(self.loc, self.log_scale).sample(key)

    def log_prob(self, value):
        return Gaussian(self.loc, self.log_scale).log_prob(value)

    def log_prob_per_entry(self, value):
        return Gaussian(self.loc, self.log_scale).log_prob_per_entry(value)

    def mean(self):
        return self.loc


def _net_posterior(params, x):
    return NetPosterior(params["net"], x[:3], params["log_scale"])


def _plain_posterior(params, x):
    return PlainPosterior(params["net"](x[:3]), params["log_scale"])


def _net_vae(posterior):
    return VAE(
        init=lambda key: {
            "net": eqx.nn.MLP(3, LATENT_DIM, 4, 1, key=key),
            "log_scale": jnp.full(LATENT_DIM, -0.5),
            "v": jax.random.normal(key, (DIM, LATENT_DIM)),
        },
        encode=posterior,
        decode=lambda params, z: Bernoulli(params["v"] @ z),
        prior=lambda params: Gaussian.standard(LATENT_DIM),
    )


def _estimators():
    yield "elbo stl", p(jaxvae.elbo, estimator="stl")
    yield "elbo score", p(jaxvae.elbo, estimator="score")
    for estimator in ("reparameterized", "dreg", "score", "vimco"):
        yield f"iwae {estimator}", p(jaxvae.iwae, num_samples=4, estimator=estimator)
    yield "miwae dreg", p(jaxvae.miwae, num_samples=4, num_groups=2, estimator="dreg")
    yield "piwae", p(jaxvae.piwae, num_samples=4, num_groups=2)
    yield "piwae dreg", p(jaxvae.piwae, num_samples=4, num_groups=2, estimator="dreg")
    yield "ciwae dreg", p(jaxvae.ciwae, num_samples=4, estimator="dreg")
    yield "renyi dreg", p(jaxvae.renyi, num_samples=4, alpha=0.5, estimator="dreg")
    yield "tvo", p(jaxvae.tvo, num_samples=4, num_intervals=2)


@pytest.mark.slow
@pytest.mark.parametrize("objective", dict(_estimators()).values(), ids=dict(_estimators()))
def test_a_network_inside_the_posterior_changes_no_gradient(objective):
    x = jnp.array([1.0, 0, 1, 1, 0, 0])
    found, expected = (
        _gradient(jaxvae.trainable(_net_vae(posterior)), objective, x)
        for posterior in (_net_posterior, _plain_posterior)
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )


def _gradient(vae, objective, x):
    def value(params):
        return objective(
            KEY,
            x,
            encode=lambda x: vae.encode(params, x),
            decode=lambda z: vae.decode(params, z),
            prior=vae.prior(params),
        ).objective

    return jax.jit(jax.value_and_grad(value))(vae.init(KEY))


@pytest.mark.slow
@pytest.mark.parametrize(
    "regularizer",
    [
        regularizers.total_correlation(2.0, num_data=100),
        regularizers.dip("i", off_diagonal=1.0, diagonal=1.0),
        regularizers.mmd(1.0),
        regularizers.density_ratio(1.0, latent_dim=LATENT_DIM, hidden=(4,)),
    ],
    ids=["total_correlation", "dip", "mmd", "density_ratio"],
)
def test_a_regularizer_accepts_posteriors_that_contain_a_network(regularizer):
    (found, at_found), (expected, at_expected) = (
        _trained(jaxvae.trainable(_net_vae(posterior)), steps=2, regularizer=regularizer)
        for posterior in (_net_posterior, _plain_posterior)
    )
    assert at_expected["regularizer"] != 0
    for name in ("regularizer", "objective"):
        np.testing.assert_allclose(at_found[name], at_expected[name], rtol=1e-4)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, found.params, expected.params)


@pytest.mark.slow
def test_functions_of_many_posteriors_accept_ones_that_contain_a_network():
    net = eqx.nn.MLP(3, LATENT_DIM, 4, 1, key=KEY)
    h = jax.random.normal(KEY, (5, 3))
    log_scale = jnp.zeros((5, LATENT_DIM))
    tiled = jax.tree.map(lambda leaf: jnp.stack([leaf] * 5) if is_array(leaf) else leaf, net)
    many = NetPosterior(tiled, h, log_scale)
    plain = PlainPosterior(jax.vmap(net)(h), log_scale)
    z = jax.random.normal(jax.random.key(1), (5, LATENT_DIM))
    prior = Gaussian.standard(LATENT_DIM)
    for function in (
        lambda q: jaxvae.exact_kl_decomposition(q, z, prior, microbatch_size=2),
        lambda q: regularizers.kl_decomposition(q, z, prior, num_data=20),
        lambda q: regularizers.dip_penalty(q, "i", off_diagonal=1.0, diagonal=2.0),
        lambda q: jaxvae.Mixture(jnp.zeros(5), q).log_prob(z[0]),
        lambda q: jaxvae.Mixture(jnp.zeros(5), q).mean(),
        lambda q: jaxvae.Mixture(jnp.zeros(5), q).sample(KEY),
    ):
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        jax.tree.map(close, function(many), function(plain))


def test_arrays_only_shows_what_the_object_has_and_passes_transformations():
    q = arrays_only(NetPosterior(eqx.nn.MLP(3, 2, 4, 1, key=KEY), jnp.ones(3), jnp.zeros(2)))
    assert isinstance(q, ArraysOnly)
    assert all(map(is_array, jax.tree.leaves(q)))
    assert not hasattr(q, "missing")
    passed = jax.jit(lambda q: q)(q)
    np.testing.assert_array_equal(passed.mean(), q.mean())


@pytest.fixture
def own(small, tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return dataclasses.replace(
        small,
        run=tmp_path / "run",
        model="own_networks:make",
        hidden=None,
        latent_dim=TrainConfig.latent_dim,
        num_steps=6,
        eval_every=3,
    )


@pytest.mark.long
def test_an_equinox_model_trains_continues_bit_for_bit_and_loads(own, tmp_path):
    assert train(own) == 0
    models = {own.model: importlib.import_module("own_networks").make}
    vae, params = load(own.run, "latest", models)
    start = vae.init(jax.random.split(jax.random.key(own.seed), 4)[0])
    _assert_same(params["q"].order, start["q"].order)
    assert not np.array_equal(params["q"].order, np.arange(64))  # drawn by the run's key
    assert params["q"].half.dtype == jnp.float32
    assert not np.array_equal(params["q"].half, start["q"].half)
    q = vae.encode(params, jnp.ones((8, 8, 1)))
    assert np.isfinite(q.loc).all()
    stopped = dataclasses.replace(own, run=tmp_path / "stopped", num_steps=3)
    assert train(stopped) == 0
    assert train(dataclasses.replace(stopped, num_steps=6)) == 0
    _assert_same(load(stopped.run, "latest", models)[1], params)


@pytest.mark.slow
def test_replay_diagnoses_a_model_with_integers():
    vae = jaxvae.trainable(_vae(EXTRA["integer"]))
    params = jax.device_get(vae.init(jax.random.key(0)))
    options = {"prepare": lambda key, x: x, "objective": jaxvae.elbo, "schedules": {}}
    keys = jax.random.split(jax.random.key(1), 2)
    stored = np.ones((2, DIM), np.float32)
    step = Step(vae, options, params, keys, stored, np.arange(2), 0)
    assert diagnose(step) == []
    params["v"] = np.full_like(params["v"], 1e38)
    assert "example 0 of the training split" in diagnose(step._replace(params=params))[0]


@pytest.mark.parametrize(
    ("init", "line"),
    [
        ("{}", "own:make has no parameters to train"),
        ("{'count': jnp.arange(3), 'act': jnp.tanh}", "own:make has no parameters to train"),
        ("{'slope': 1.0}", "own:make has no parameters to train.*Turn Python numbers that"),
        ("{'w': jnp.ones(2, jnp.complex64)}", r"own:make.*parameter w is complex64\[2\]"),
        ("{'w': jnp.ones(2), 'k': key}", r"own:make.*parameter k is key<fry>\[\]"),
    ],
)
def test_a_model_that_cannot_train_is_rejected_by_name_and_leaf(init, line, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(
        "import jax.numpy as jnp\nfrom jaxvae import VAE\n"
        f"def make(): return VAE(lambda key: {init}, None, None, None)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = {"function": "own:make", "arguments": {}}
    config = TrainConfig(model="own:make", data_mean_init=False)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    preprocessing = type("P", (), {"prepare": lambda self, key, x: x, "mean": jnp.zeros(3)})()
    with pytest.raises(ValueError, match=line):
        initial_vae(recipe, config, preprocessing, np.ones((4, 3), np.float32))
