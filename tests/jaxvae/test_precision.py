"""Only networks compute in bfloat16, and float32 products have full precision on every device."""

import dataclasses
import os
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxvae
from experiments.encode import EncodeConfig, encode
from experiments.evaluate import EvaluateConfig, evaluate
from experiments.flags.config import TrainConfig
from experiments.flags.saved_flags import from_json, to_json
from experiments.machine import accelerators
from experiments.run.model import recipe
from experiments.sample import SampleConfig, sample
from experiments.train import train
from jaxvae.models.builders import conv_vae, mlp_vae
from jaxvae.models.registry import build
from jaxvae.training.state import init_state
from jaxvae.training.step import make_train_step

MODELS = {
    "mlp": partial(mlp_vae, data_shape=(60,), latent_dim=4, hidden=(32, 16)),
    "conv": partial(conv_vae, data_shape=(9, 8, 3), latent_dim=4, hidden=(8, 8), width=16),
}
ROUNDING = 2.0**-9
"""Largest relative error of a number rounded to bfloat16, which has 8 significant bits."""
BATCH = 32

every_model = pytest.mark.parametrize("name", MODELS)


def shapes(vae):
    return jax.eval_shape(vae.init, jax.random.key(0))


@cache
def inputs(name):
    """Parameters, keys and data that both precisions share."""
    rng = np.random.default_rng(0)
    shape = MODELS[name].keywords["data_shape"]

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
        return rng.normal(scale=fan_in**-0.5, size=leaf.shape).astype(np.float32)

    params = jax.tree.map(draw, shapes(MODELS[name]()))
    xs = (rng.uniform(size=(BATCH, *shape)) < 0.5).astype(np.float32)
    return params, jax.random.split(jax.random.key(0), BATCH), xs


def bounds(vae, params, keys, xs):
    def one(key, x):
        functions = {
            "encode": partial(vae.encode, params),
            "decode": partial(vae.decode, params),
            "prior": vae.prior(params),
        }
        return jaxvae.elbo(key, x, **functions)

    return jax.vmap(one)(keys, xs)


def loss(vae, params, keys, xs):
    return -bounds(vae, params, keys, xs).objective.mean()


def products(function, *arguments):
    """Type and requested precision of every lowered matrix product and convolution."""
    return products_on("cpu", jax.jit(function).trace(*arguments))


def products_on(platform, traced):
    """The same of a traced function, which is traced once for all platforms."""
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    found = []
    for line in text.splitlines():
        if "stablehlo.dot_general" in line or "stablehlo.convolution" in line:
            precision = re.search(r"precision[^A-Z]*([A-Z]+)", line)
            kind = re.search(r": \(tensor<[\dx]*x(\w+)>", line)[1]
            found.append((kind, precision[1] if precision else "DEFAULT"))
    assert found
    return found


def traced_gradient(name, precision):
    return jax.jit(jax.grad(partial(loss, MODELS[name](precision=precision)))).trace(*inputs(name))


def decoder_products(vae):
    return {kind for kind, _ in products(vae.decode, shapes(vae), jnp.zeros(2))}


def types(tree):
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}


@pytest.fixture
def default_precision():
    """Restore the default matmul precision after a test whose command sets it."""
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", None)
    yield
    jax.config.update("jax_default_matmul_precision", before)


# Golden


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [("mlp", 17), ("conv", 23)])
def test_the_networks_compute_in_bfloat16_and_nothing_else_does(name, number, default_precision):
    """A layer is a product forward and two backward; what sums a log probability is float32."""
    kinds = [kind for kind, _ in products_on("cpu", traced_gradient(name, "bfloat16"))]
    assert kinds.count("bf16") == number
    assert set(kinds) <= {"bf16", "f32"}
    assert {kind for kind, _ in products_on("cpu", traced_gradient(name, "float32"))} == {"f32"}


@every_model
def test_parameters_bounds_gradients_and_metrics_are_float32_under_bfloat16(name):
    vae = MODELS[name](precision="bfloat16")
    params, keys, xs = inputs(name)
    assert types(shapes(vae)) == {"float32"}
    assert types(jax.eval_shape(partial(bounds, vae), params, keys, xs)) == {"float32"}
    assert types(jax.eval_shape(jax.grad(partial(loss, vae)), params, keys, xs)) == {"float32"}
    assert types(jax.eval_shape(vae.encode, params, xs[0])) == {"float32"}
    assert types(jax.eval_shape(vae.decode, params, jnp.zeros(4))) == {"float32"}
    optimizer = optax.adam(1e-3)
    state = jax.eval_shape(partial(init_state, vae, optimizer, averaging=True), keys[0])
    step = make_train_step(vae, optimizer, average_decay=0.9)
    after, metrics = jax.eval_shape(step, state, keys, xs)
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(
        lambda leaf: leaf.dtype, state
    )
    assert types(metrics) <= {"float32", "int32"}


# Law


@pytest.mark.slow
@every_model
def test_bound_and_gradients_are_those_of_float32_to_the_rounding_of_bfloat16(name):
    """The forward and backward pass round some 20 times one after the other, to both sides: the
    bound, a sum of many terms, to 2 roundings, and the gradient to 20 of its norm."""
    results = {}
    for precision in ("float32", "bfloat16"):
        of = jax.jit(jax.value_and_grad(partial(loss, MODELS[name](precision=precision))))
        value, gradients = of(*inputs(name))
        results[precision] = float(value), np.asarray(jax.flatten_util.ravel_pytree(gradients)[0])
    (exact, gradient), (rounded, other) = results["float32"], results["bfloat16"]
    assert 0 < abs(rounded - exact) < 2 * ROUNDING * exact
    cosine = gradient @ other / np.linalg.norm(gradient) / np.linalg.norm(other)
    assert cosine > 0.99
    assert np.linalg.norm(other - gradient) < 20 * ROUNDING * np.linalg.norm(gradient)


def test_log_probabilities_are_summed_in_float32_whatever_the_network_computes_in():
    """Sixty terms add up to within 1e-6; in bfloat16 their sum would be a multiple of 1/4."""
    vae = MODELS["mlp"](precision="bfloat16")
    params, _, xs = inputs("mlp")
    p = jax.jit(vae.decode)(params, jnp.ones(4))
    logits = np.asarray(p.logits, np.float64)
    expected = (xs[0] * logits - np.logaddexp(0, logits)).sum()
    np.testing.assert_allclose(p.log_prob(xs[0]), expected, rtol=1e-6)


@pytest.mark.slow
@every_model
def test_products_are_of_all_of_float32_once_a_command_has_started(name, default_precision):
    """A command sets this; users of the library may choose lower precision."""
    before = traced_gradient(name, "float32")
    accelerators.start("cpu", None)
    after = traced_gradient(name, "float32")
    for platform in ("cpu", "cuda", "tpu"):
        assert ("f32", "DEFAULT") in products_on(platform, before)
        assert set(products_on(platform, after)) == {("f32", "HIGHEST")}


def test_every_command_starts_so(default_precision, monkeypatch, tmp_path):
    class Started(BaseException):  # so that no command takes it for an error
        pass

    real = accelerators.start

    def only_start(*arguments, **options):
        real(*arguments, **options)
        raise Started

    monkeypatch.setattr(accelerators, "start", only_start)
    commands = [
        partial(train, TrainConfig(run=tmp_path)),
        partial(evaluate, EvaluateConfig(tmp_path)),
        partial(sample, SampleConfig(tmp_path)),
        partial(encode, EncodeConfig(tmp_path)),
    ]
    for command in commands:
        jax.config.update("jax_default_matmul_precision", None)
        with pytest.raises(Started):
            command()
        assert jax.config.jax_default_matmul_precision == "highest"


@pytest.mark.parametrize("accelerator", ["auto", "cpu"])
def test_a_gpu_is_told_to_be_deterministic_once(accelerator, default_precision, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=4")
    accelerators.start(accelerator, None)
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_autotune_level=4"
    for _ in range(2):
        accelerators.start(accelerator, None, deterministic=True)
    flags = os.environ["XLA_FLAGS"].split()
    assert flags[0] == "--xla_gpu_autotune_level=4"
    assert flags[1:] == [accelerators.DETERMINISTIC] * (accelerator == "auto")


def test_runs_from_before_these_flags_are_relu_in_float32():
    values = to_json(TrainConfig())
    old = {name: values[name] for name in values if name not in ("precision", "activation")}
    assert from_json(old) == TrainConfig()
    arguments = {"data_shape": [6], "latent_dim": 2, "hidden": [4]}
    vae = build({"function": "jaxvae.vae:mlp_vae", "arguments": arguments})
    assert decoder_products(vae) == {"f32"}
    assert "tanh" not in str(jax.make_jaxpr(vae.decode)(shapes(vae), jnp.zeros(2)))


def test_a_run_is_rebuilt_with_what_it_was_trained_with():
    """evaluate, sample and encode rebuild it from the recipe in its checkpoints."""
    chosen = {"likelihood": "bernoulli", "sigma": "learned"}
    config = TrainConfig(precision="bfloat16", activation="tanh", latent_dim=2, **chosen)
    vae = build(recipe(config, (6,)))
    assert decoder_products(vae) == {"bf16"}
    assert "tanh" in str(jax.make_jaxpr(vae.decode)(shapes(vae), jnp.zeros(2)))
    conv = recipe(dataclasses.replace(config, model="conv", activation="relu"), (8, 8, 1))
    assert conv["arguments"]["precision"] == "bfloat16"


# Failure


def plain(data_shape, latent_dim):
    """A user-defined model that takes none of the other arguments."""
    return mlp_vae(data_shape=data_shape, latent_dim=latent_dim)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"precision": "bfloat16"},
            r"--precision must be left out: \S+:plain takes no argument 'precision', got bfloat16",
        ),
        (
            {"activation": "tanh"},
            r"--activation must be left out: \S+:plain takes no argument 'activation', got tanh",
        ),
        (
            {"hidden": (8,)},
            r"--hidden must be left out: \S+:plain takes no argument 'hidden', got \(8,\)",
        ),
        (
            {"latent_channels": 2},
            r"--latent-channels must be left out: \S+:plain takes no argument 'latent_ch.*, got 2",
        ),
    ],
)
def test_flags_that_a_user_defined_model_does_not_take_are_rejected(changes, message):
    config = TrainConfig(model=f"{__name__}:plain")
    assert recipe(config, (6,))["arguments"].keys() == {"data_shape", "latent_dim"}
    with pytest.raises(ValueError, match=message):
        recipe(dataclasses.replace(config, **changes), (6,))
