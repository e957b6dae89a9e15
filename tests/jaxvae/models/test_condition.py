"""Conditional models: p(x|y) is exact where it is known, and y reaches every layer."""

import re
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxvae
from jaxvae import VAE, Condition, Conditioned, Gaussian, conditional_vae, elbo, mlp_vae
from jaxvae.evaluation import make_score, map_dataset
from jaxvae.testing import LinearGaussian
from jaxvae.training.devices import make_map, make_mesh, replicate, shard

EXACT = LinearGaussian(
    jnp.array([[1.0, 0.2], [-0.5, 0.7], [0.3, -1.1]]), jnp.array([0.1, -0.2, 0.3]), jnp.array(-0.3)
)
SHIFTS = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0], [-1.0, 3.0, 1.0]])
"""Shift of the mean of x for each of three labels."""
MODELS = {
    "mlp": {"data_shape": (8, 8, 3), "hidden": (6, 5)},
    "conv": {"data_shape": (8, 8, 3), "hidden": (4, 6), "width": 5},
    "resnet": {"data_shape": (8, 8, 3), "channels": (4, 4)},
}


models = pytest.mark.parametrize(
    "model", ["mlp", "conv", pytest.param("resnet", marks=pytest.mark.slow)]
)


def start(vae, optimizer, **options):
    """State before the first step."""
    init = lambda key: jaxvae.init_state(vae, optimizer, key, **options)
    return jax.jit(init)(jax.random.key(0))


def given_label(y):
    return EXACT.shifted(SHIFTS[y])


EXACT_VAE = VAE(
    init=lambda key: {"unused": jnp.zeros(1)},
    encode=lambda params, x, y: given_label(y).posterior(x),
    decode=lambda params, z, y: given_label(y).decode(z),
    prior=lambda params, y: EXACT.prior(),
    condition=Condition.of(3),
)


def labelled(count, num_categories=3, shape=(3,)):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, *shape)).astype(np.float32)
    return Conditioned(x, rng.integers(0, num_categories, count).astype(np.int32))


@cache
def small(model="mlp", condition=3, **arguments):
    arguments = {"latent_dim": 2, "likelihood": "gaussian", "sigma": 1.0} | arguments
    return conditional_vae(condition=condition, model=model, **MODELS[model], **arguments)


def test_a_labels_vector_is_one_hot_and_an_absent_ones_a_parameter():
    condition = Condition.of(3)
    params = {"absent": jnp.array([0.5, -1.0, 2.0])}
    assert condition.size == 3
    assert condition.embed(params, jnp.int32(2)).tolist() == [0, 0, 1]
    assert condition.embed(params, condition.absent()).tolist() == [0.5, -1.0, 2.0]
    assert np.all(np.isnan(condition.embed(params, jnp.int32(3))))  # there is no such label
    assert Condition.of(np.int64(3)) == condition


def test_numbers_are_their_own_vector_and_nan_is_absent_without_a_nan_gradient():
    condition = Condition.of((2, 2))
    params = {"absent": jnp.arange(4.0)}
    y = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    assert condition.embed(params, y).tolist() == [1, 2, 3, 4]
    for missing in (y.at[0, 1].set(jnp.nan), condition.absent()):
        assert condition.embed(params, missing).tolist() == [0, 1, 2, 3]
        gradient = jax.grad(lambda y: jnp.sum(condition.embed(params, y) ** 2))(missing)
        assert np.all(np.asarray(gradient) == 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Condition.of(1), "at least 2 categories, got 1"),
        (lambda: Condition.of(()), "must be positive"),
        (lambda: Condition.of((3, 0)), "must be positive"),
        (lambda: Condition.of(3).embed({}, jnp.zeros(2)), r"a label, .* got shape \(2,\)"),
        (lambda: Condition.of(3).embed({}, jnp.float32(1)), "a label, a whole number below 3"),
        (
            lambda: Condition.of((2,)).embed({}, jnp.zeros(3)),
            r"array of shape \(2,\), got .*\(3,\)",
        ),
        (lambda: mlp_vae(data_shape=(3,), prior="conditional"), "needs a condition"),
        (lambda: conditional_vae(condition=3, model="x", data_shape=(3,)), "model must be one of"),
    ],
)
def test_invalid_conditions_are_rejected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@models
def test_the_condition_reaches_every_layer(model):
    """Every kernel that reads the vector has a gradient, in encoder, decoder and prior."""
    vae = small(model, condition=7)
    params = jax.jit(vae.init)(jax.random.key(0))
    # Kernels that start at zero would hide the layers before them.
    params = jax.tree.map(lambda leaf: leaf + 0.1 if leaf.ndim > 1 else leaf, params)
    x = jax.random.normal(jax.random.key(1), (8, 8, 3))

    @jax.jit
    @jax.grad
    def slopes(params):
        given = vae.given(jnp.int32(4))
        parts = {"encode": partial(given.encode, params), "decode": partial(given.decode, params)}
        return elbo(jax.random.key(2), x, prior=given.prior(params), **parts).objective

    found = jax.tree_util.tree_leaves_with_path(slopes(params))
    readers = [leaf for _, leaf in found if leaf.ndim == 2 and leaf.shape[0] == 7]
    layers = {"mlp": 3 + 3 + 1, "conv": 4 + 4 + 1, "resnet": 4 + 4 + 1}[model]
    assert len(readers) == layers
    for leaf in readers:
        assert np.any(np.asarray(leaf[4]) != 0)
        assert np.all(np.asarray(leaf[jnp.arange(7) != 4]) == 0)


@models
def test_with_the_vector_0_it_is_the_unconditional_model_bit_for_bit(model):
    """An absent condition starts as 0; the layers of both networks come in the same order."""
    vae = small(model, prior="standard")
    plain = getattr(jaxvae, f"{model}_vae")(
        latent_dim=2, likelihood="gaussian", sigma=1.0, **MODELS[model]
    )
    params = jax.jit(plain.init)(jax.random.key(0))
    shapes = jax.eval_shape(vae.init, jax.random.key(0))
    ours = _filled(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes), params)
    x = jax.random.normal(jax.random.key(1), (8, 8, 3))

    def bound(vae, params):
        return elbo(
            jax.random.key(2), x, encode=partial(vae.encode, params),
            decode=partial(vae.decode, params), prior=vae.prior(params),
        ).objective  # fmt: skip

    given = vae.given(vae.condition.absent())
    assert jax.jit(partial(bound, given))(ours) == jax.jit(partial(bound, plain))(params)


def _filled(ours, theirs):
    """Parameters of the conditional networks whose layers without the condition are given."""
    filled = dict(ours)
    for part, values in theirs.items():
        filled[part] = _layers(ours[part], values) if part in ("encoder", "decoder") else values
    return filled


def _layers(ours, theirs):
    """Layers of one kind, such as Dense_0, Dense_1, ..., are numbered in their order."""
    if not isinstance(theirs, dict):
        return theirs
    kind = lambda name: re.sub(r"_\d+$", "", name)
    in_order = lambda layers: sorted(layers, key=lambda name: (len(name), name))
    filled = dict(ours)
    for of_kind in {kind(name) for name in theirs}:
        mine = [name for name in in_order(ours) if kind(name) == of_kind]
        mine = [name for name in mine if not _reads_condition(ours[name])]
        others = [name for name in in_order(theirs) if kind(name) == of_kind]
        for name, other in zip(mine, others, strict=True):
            filled[name] = _layers(ours[name], theirs[other])
    return filled


def _reads_condition(layer):
    kernel = layer.get("kernel") if isinstance(layer, dict) else None
    return kernel is not None and kernel.ndim == 2 and kernel.shape[0] == 3


def test_scores_are_the_exact_log_density_given_the_label():
    data = labelled(12)
    mesh = make_mesh(jax.devices()[:4])
    mapped = make_map(make_score(EXACT_VAE, num_samples=3), mesh)
    of_all = replicate({"unused": jnp.zeros(1)}, mesh), replicate(jax.random.key(0), mesh)
    scores = map_dataset(mapped, *of_all, data, mesh=mesh, batch_size=8)
    expected = [given_label(y).log_prob(x) for x, y in zip(*data, strict=True)]
    np.testing.assert_allclose(scores.log_likelihood, expected, rtol=1e-4)
    assert np.ptp(np.asarray(expected)) > 1


def test_a_step_follows_the_mean_of_the_conditional_bounds():
    vae = small()
    data = labelled(6, shape=(8, 8, 3))
    optimizer = optax.sgd(1.0)
    state = start(vae, optimizer)
    keys = jax.random.split(jax.random.key(1), 6)

    def mean_bound(params):
        def of_one(key, x, y):
            key = jax.random.split(key, 3)[1]
            given = vae.given(y)
            parts = {"encode": partial(given.encode, params), "prior": given.prior(params)}
            return elbo(key, x, decode=partial(given.decode, params), **parts).objective

        return jax.vmap(of_one)(keys, *data).mean()

    slopes = jax.jit(jax.grad(mean_bound))(state.params)
    stepped, _ = jax.jit(jaxvae.make_train_step(vae, optimizer))(state, keys, data)
    moved = jax.tree.map(jnp.subtract, stepped.params, state.params)
    chex.assert_trees_all_close(moved, slopes, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_devices_microbatches_and_shards_take_the_same_step():
    vae, optimizer, data = small(), optax.sgd(0.1), labelled(8, shape=(8, 8, 3))
    state = start(vae, optimizer)
    key = jax.random.key(1)
    options = {"drop_condition": 0.5, "axis_name": "devices"}

    def stepped(count, **more):
        mesh = make_mesh(jax.devices()[:count])
        step = jaxvae.make_train_step(vae, optimizer, **options, **more)
        chunk_step = jaxvae.make_chunk_step(step, mesh, 8, 2)
        of_devices = lambda all: np.stack([all, all]).reshape(2, count, -1, *all.shape[1:])
        chunk = shard(jax.tree.map(lambda all: of_devices(all).swapaxes(0, 1), data), mesh)
        copy = replicate(jax.tree.map(jnp.array, state), mesh)
        return jax.device_get(chunk_step(copy, replicate(key, mesh), chunk, jnp.int32(2))[0].params)

    one = stepped(1)
    chex.assert_trees_all_close(stepped(4), one, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(stepped(1, microbatch_size=2), one, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(stepped(2, virtual_shards=4), one, rtol=1e-4, atol=1e-6)


def test_dropped_conditions_are_a_share_of_the_batch_and_train_the_absent_vector():
    vae, optimizer, data = small(), optax.sgd(1.0), labelled(400, shape=(8, 8, 3))
    state = start(vae, optimizer)
    keys = jax.random.split(jax.random.key(1), 400)

    def moved(rate, data=data):
        step = jaxvae.make_train_step(vae, optimizer, drop_condition=rate)
        new, _ = jax.jit(step)(state, keys, data)
        return jax.tree.map(jnp.subtract, new.params, state.params)

    absent = lambda rate, data=data: moved(rate, data)["condition"]["absent"]
    assert np.all(np.asarray(absent(0.0)) == 0)
    whole = moved(1.0)
    nothing = data._replace(y=np.full(400, -1, np.int32))
    chex.assert_trees_all_close(moved(0.0, nothing), whole, rtol=1e-6)
    share = np.linalg.norm(absent(0.25)) / np.linalg.norm(whole["condition"]["absent"])
    assert 0.15 < share < 0.35


@pytest.mark.slow
def test_a_conditional_prior_starts_as_the_standard_one_and_learns():
    vae, data = small(), labelled(64, shape=(8, 8, 3))
    data = data._replace(x=data.x + 4 * data.y[:, None, None, None])
    state = start(vae, optax.adam(0.02))
    prior = lambda state, y: vae.given(jnp.int32(y)).prior(state.params)
    assert jaxvae.kl(prior(state, 1), Gaussian.standard(2)) == 0
    step = jax.jit(jaxvae.make_train_step(vae, optax.adam(0.02)))
    for i in range(60):
        state, metrics = step(state, jax.random.split(jax.random.key(i), 64), data)
    assert np.isfinite(metrics["elbo"])
    assert jaxvae.kl(prior(state, 0), prior(state, 2)) > 0.1


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_labels_of_any_integer_type_may_be_dropped(dtype):
    vae, data = small(), labelled(4, shape=(8, 8, 3))
    step = jaxvae.make_train_step(vae, optax.sgd(1.0), drop_condition=0.5)
    keys = jax.random.split(jax.random.key(1), 4)
    data = data._replace(y=data.y.astype(dtype))
    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(step, start(vae, optax.sgd(1.0)), keys, data)


def test_an_example_without_what_the_model_takes_is_rejected():
    vae, x = small(), np.zeros((2, 8, 8, 3), np.float32)
    state = start(vae, optax.sgd(1.0))
    keys = jax.random.split(jax.random.key(1), 2)
    with pytest.raises(ValueError, match="needs a condition, got an example that is not Cond"):
        jaxvae.make_train_step(vae, optax.sgd(1.0))(state, keys, x)
    plain = mlp_vae(**MODELS["mlp"])
    state = start(plain, optax.sgd(1.0))
    with pytest.raises(ValueError, match="without a condition takes x alone"):
        jaxvae.make_train_step(plain, optax.sgd(1.0))(state, keys, labelled(2, shape=(8, 8, 3)))


def test_a_regularizer_with_a_condition_is_rejected():
    vae, data = small(), labelled(4, shape=(8, 8, 3))
    regularizer = jaxvae.mmd(weight=1.0)
    state = start(vae, optax.sgd(1.0), regularizer=regularizer)
    step = jaxvae.make_train_step(vae, optax.sgd(1.0), regularizer=regularizer)
    with pytest.raises(ValueError, match="a conditional model has one for each condition"):
        step(state, jax.random.split(jax.random.key(1), 4), data)


def test_an_optimal_sigma_is_that_of_the_conditional_means():
    vae, data = small(sigma="optimal"), labelled(8, shape=(8, 8, 3))
    state = start(vae, optax.sgd(0.0))
    step = jax.jit(jaxvae.make_train_step(vae, optax.sgd(0.0)))
    state, _ = step(state, jax.random.split(jax.random.key(1), 8), data)
    given = vae.given(jnp.int32(0))
    p = given.decode(state.params, jnp.zeros(2))
    np.testing.assert_allclose(np.exp(2 * p.log_scale), state.squared_error, rtol=1e-5)


def test_units_are_those_of_x_given_y():
    plain = small(condition=(2,))
    vae = jaxvae.in_units(plain, [1.0, 2.0, 3.0], [2.0, 2.0, 2.0])
    params = jax.jit(plain.init)(jax.random.key(0))
    y, z = jnp.array([0.5, -1.0]), jnp.ones(2)
    inner = plain.given(y).decode(params, z).mean()
    outer = vae.given(y).decode(params, z).mean()
    np.testing.assert_allclose(outer, np.array([1.0, 2.0, 3.0]) + 2 * np.asarray(inner), rtol=1e-6)
