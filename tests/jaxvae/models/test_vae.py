"""The two models of the library: their formulas, shapes and initial parameters."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvae
from jaxvae import Bernoulli, Gaussian
from jaxvae.models.builders import conv_vae, mlp_vae
from jaxvae.models.likelihoods import LIKELIHOODS, likelihood_named
from jaxvae.models.posteriors import POSTERIORS, posterior_named
from jaxvae.models.priors import PRIORS
from jaxvae.networks.encoders import MLPEncoder

MODELS = {
    "mlp (6,)": partial(mlp_vae, data_shape=(6,), latent_dim=2, hidden=(8,)),
    "mlp (5, 4, 1)": partial(mlp_vae, data_shape=(5, 4, 1), latent_dim=3, hidden=(8, 7)),
    "mlp (6,) without a layer": partial(mlp_vae, data_shape=(6,), latent_dim=2, hidden=()),
    "conv (8, 8, 1)": partial(conv_vae, data_shape=(8, 8, 1), latent_dim=2, hidden=(3,), width=5),
    "conv (9, 12, 3)": partial(
        conv_vae, data_shape=(9, 12, 3), latent_dim=2, hidden=(3, 4), width=5
    ),
}
GAUSSIAN = {"likelihood": "gaussian", "sigma": "learned"}
FAMILIES = [
    *[(name, "learned") for name in LIKELIHOODS],
    *[(name, sigma) for name in ("gaussian", "laplace") for sigma in ("per_channel", "per_pixel")],
]
NO_VECTORS = ("von_mises_fisher", "relaxed_categorical", "categorical")
PAIRS = [
    (posterior, prior)
    for posterior in POSTERIORS
    for prior in PRIORS
    if prior in ("standard", "vamp") or posterior not in NO_VECTORS
]
SHORT_PAIRS = [
    ("full_covariance", "mixture"),
    ("low_rank", "standard"),
    ("coupling", "vamp"),
    ("gaussian", "flow"),
    ("categorical", "vamp"),
]
"""Every prior and several kinds of latents; the other pairs are marked long."""

models = pytest.mark.parametrize("model", MODELS)


def data_shape(name):
    return MODELS[name].keywords["data_shape"]


def shapes(vae):
    return jax.eval_shape(vae.init, jax.random.key(0))


def start(vae):
    """Parameters as from `init`, but with kernels from numpy, since theirs compile for seconds."""

    def all_but_kernels(path, leaf):
        return None if path[-1].key == "kernel" else leaf

    @jax.jit
    def init(key):
        return jax.tree_util.tree_map_with_path(all_but_kernels, vae.init(key))

    return jax.tree.map(
        lambda kernel, leaf: kernel if leaf is None else np.asarray(leaf),
        *(randomized(vae), init(jax.random.key(0))),
    )


@cache
def wide(initialization):
    """Initial layers wide enough for statistics, most of the same shape to compile once."""
    vae = mlp_vae(data_shape=(200,), latent_dim=100, hidden=(200,), initialization=initialization)
    return jax.device_get(vae.init(jax.random.key(0)))


def randomized(vae):
    """Parameters without zeros, although biases are initialized by zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32), shapes(vae)
    )


def parts(vae, params):
    return {
        "encode": partial(vae.encode, params),
        "decode": partial(vae.decode, params),
        "prior": vae.prior(params),
    }


def close(actual, expected):
    """Compare to 80 eps of the largest entry: sums of at most 20 terms in up to 5 layers."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# Golden


def relu(h):
    return np.maximum(h, 0)


def affine(layer, h):
    return h @ layer["kernel"] + layer["bias"]


def clamped(log_scale):
    return 7 * np.tanh(log_scale / 7)


@pytest.mark.parametrize(("model", "activation"), [("mlp (6,)", "tanh"), ("mlp (5, 4, 1)", "relu")])
def test_vmapped_mlp_is_a_batched_forward_pass_in_numpy(model, activation):
    """vmap of one example is the matrix product of all examples."""
    vae = MODELS[model](activation=activation)
    activated = {"relu": relu, "tanh": np.tanh}[activation]
    params = randomized(vae)
    xs = np.random.default_rng(1).normal(size=(9, *data_shape(model))).astype(np.float32)
    h, layers = xs.reshape(9, -1).astype(np.float64), params["encoder"]["params"]
    for i in range(len(layers) - 1):
        h = activated(affine(layers[f"Dense_{i}"], h))
    loc, log_scale = np.split(affine(layers[f"Dense_{len(layers) - 1}"], h), 2, axis=1)
    q = jax.jit(jax.vmap(vae.encode, (None, 0)))(params, xs)
    close(q.loc, loc)
    close(q.log_scale, clamped(log_scale))
    h, layers = loc, params["decoder"]["params"]
    for i in range(len(layers) - 1):
        h = activated(affine(layers[f"Dense_{i}"], h))
    logits = affine(layers[f"Dense_{len(layers) - 1}"], h).reshape(xs.shape)
    p = jax.jit(jax.vmap(vae.decode, (None, 0)))(params, loc.astype(np.float32))
    close(p.logits, logits)


def test_conv_encoder_is_its_formula_in_numpy():
    """Entry (i, j) of a level reads rows 2i - 1 to 2i + 2 and columns 2j - 1 to 2j + 2."""
    vae = MODELS["conv (9, 12, 3)"]()
    params = randomized(vae)
    x = np.random.default_rng(1).normal(size=(9, 12, 3)).astype(np.float32)
    layers, h = params["encoder"]["params"], x.astype(np.float64)
    for level in ("Conv_0", "Conv_1"):
        rows, columns = (h.shape[0] + 1) // 2, (h.shape[1] + 1) // 2
        padded = np.zeros((2 * rows + 2, 2 * columns + 2, h.shape[2]))
        padded[1 : h.shape[0] + 1, 1 : h.shape[1] + 1] = h
        h = layers[level]["bias"] + sum(
            padded[i : i + 2 * rows : 2, j : j + 2 * columns : 2] @ layers[level]["kernel"][i, j]
            for i, j in np.ndindex(4, 4)
        )
        h = relu(h)
    h = relu(affine(layers["Dense_0"], h.ravel()))
    loc, log_scale = np.split(affine(layers["Dense_1"], h), 2)
    q = jax.jit(vae.encode)(params, x)
    close(q.loc, loc)
    close(q.log_scale, clamped(log_scale))


def test_conv_decoder_is_its_formula_in_numpy():
    """Entry (i, j) of a level adds to rows 2i - 1 to 2i + 2 and columns 2j - 1 to 2j + 2."""
    vae = MODELS["conv (9, 12, 3)"]()
    params = randomized(vae)
    z = np.random.default_rng(1).normal(size=2).astype(np.float32)
    layers = params["decoder"]["params"]
    h = relu(affine(layers["Dense_1"], relu(affine(layers["Dense_0"], z)))).reshape(3, 3, 4)
    for level, (height, width) in [("ConvTranspose_0", (5, 6)), ("ConvTranspose_1", (9, 12))]:
        kernel, (rows, columns) = layers[level]["kernel"], h.shape[:2]
        padded = np.zeros((2 * rows + 2, 2 * columns + 2, kernel.shape[3]))
        for i, j in np.ndindex(4, 4):
            product = h @ kernel[3 - i, 3 - j]
            padded[i : i + 2 * rows : 2, j : j + 2 * columns : 2] += product
        h = padded[1 : height + 1, 1 : width + 1]
        h = h if level == "ConvTranspose_1" else relu(h + layers[level]["bias"])
    close(jax.jit(vae.decode)(params, z).logits, h + layers["output_bias"])


# Law


@pytest.mark.parametrize(
    "build",
    [
        *MODELS.values(),
        *[
            partial(MODELS[model], likelihood="gaussian")
            for model in ("mlp (5, 4, 1)", "conv (9, 12, 3)")
        ],
        *[
            partial(conv_vae, data_shape=shape, latent_dim=4)
            for shape in [(8, 8, 1), (28, 20, 1), (63, 64, 3), (8, 64, 1)]
        ],
    ],
    ids=lambda build: f"{build.func.__name__} {build.keywords['data_shape']}",
)
def test_shapes(build):
    """The default channels at one, two and three levels, of even and odd sides, square or not."""
    shape, latent = build.keywords["data_shape"], (build.keywords["latent_dim"],)
    vae = build()

    def everything(key):
        params, x = vae.init(key), jnp.zeros(shape)
        q, p = vae.encode(params, x), vae.decode(params, jnp.zeros(latent))
        elbo = lambda params: jaxvae.elbo(key, x, **parts(vae, params)).elbo
        value, gradients = jax.value_and_grad(elbo)(params)
        draws = {
            latent: [q.loc, q.log_scale, q.mean(), q.sample(key), vae.prior(params).sample(key)],
            shape: [p.mean(), p.sample(key)],
            (): [q.log_prob(q.mean()), p.log_prob(x), value],
        }
        return draws, params, gradients

    draws, params, gradients = jax.eval_shape(everything, jax.random.key(0))
    for expected, leaves in draws.items():
        assert {(leaf.shape, leaf.dtype.name) for leaf in leaves} == {(expected, "float32")}
    chex.assert_trees_all_equal_shapes_and_dtypes(params, gradients)


@pytest.mark.parametrize(("likelihood", "sigma"), FAMILIES)
@pytest.mark.parametrize("model", ["mlp (5, 4, 1)", "conv (9, 12, 3)"])
def test_shapes_of_every_likelihood(model, likelihood, sigma):
    shape = data_shape(model)
    vae = MODELS[model](likelihood=likelihood, sigma=sigma, data_mean=jnp.full(shape, 0.5))

    def everything(key):
        params, x = vae.init(key), jnp.zeros(shape)
        p = vae.decode(params, vae.encode(params, x).mean())
        return p.mean(), p.sample(key), p.log_prob_per_entry(x), p.log_prob(x)

    *of_data, entries, scalar = jax.eval_shape(everything, jax.random.key(0))
    assert {(leaf.shape, leaf.dtype.name) for leaf in of_data} == {(shape, "float32")}
    per_pixel = likelihood_named(likelihood, sigma, shape).per_pixel
    assert (entries.shape, entries.dtype.name) == (shape[:-1] if per_pixel else shape, "float32")
    assert (scalar.shape, scalar.dtype.name) == ((), "float32")


@pytest.mark.parametrize(
    ("model", "likelihood"),
    [
        ("mlp (5, 4, 3)", "zero_inflated_negative_binomial"),
        ("mlp (5, 4, 3)", "discretized_logistic"),
        ("conv (8, 8, 3)", "logistic_mixture"),
        ("conv (8, 8, 3)", "gaussian"),
    ],
)
def test_the_outputs_of_one_pixel_are_that_pixels(model, likelihood):
    """Output c n + k of the last layer is the k-th of channel c's n, there and nowhere else."""
    shape = (8, 8, 3) if "conv" in model else (5, 4, 3)
    build = MODELS["conv (8, 8, 1)" if "conv" in model else "mlp (5, 4, 1)"]
    vae = build(data_shape=shape, likelihood=likelihood, sigma="per_pixel")
    params, x = randomized(vae), np.ones(shape, np.float32)
    num_outputs = likelihood_named(likelihood, "per_pixel", shape).num_outputs
    assert num_outputs > 1
    z = jnp.zeros(build.keywords["latent_dim"])
    log_probs = jax.jit(lambda params: vae.decode(params, z).log_prob_per_entry(x))
    before, layers = np.asarray(log_probs(params)), params["decoder"]["params"]
    bias = layers["output_bias"] if "conv" in model else layers["Dense_2"]["bias"]
    for i, j, c, k in [(0, 0, 0, 0), (3, 2, 1, num_outputs - 1), (4, 3, 2, num_outputs // 2)]:
        bias.reshape(*shape, num_outputs)[i, j, c, k] += 1.0
        after, index = np.asarray(log_probs(params)), np.zeros(shape, bool)
        index[i, j, c] = True
        np.testing.assert_array_equal(after != before, index)
        before = after


@pytest.mark.parametrize("model", ["mlp (5, 4, 1)", "mlp (6,) without a layer", "conv (9, 12, 3)"])
def test_every_parameter_has_a_finite_gradient(model):
    """No gradient is all zero: each parameter is connected, the encoder's by the samples."""
    vae = MODELS[model](**(GAUSSIAN if "1)" in model else {}))
    x = np.random.default_rng(0).integers(0, 2, data_shape(model)).astype(np.float32)

    def mean_elbo(params, keys):
        return jax.vmap(lambda key: jaxvae.elbo(key, x, **parts(vae, params)).elbo)(keys).mean()

    keys = jax.random.split(jax.random.key(1), 8)
    value, gradients = jax.jit(jax.value_and_grad(mean_elbo))(start(vae), keys)
    assert value.shape == ()
    assert np.isfinite(value)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


@models
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_decoder_starts_at_the_data_mean(model, likelihood):
    """With its other biases at zero, z = 0 gives exactly the output's bias."""
    mean = np.random.default_rng(2).random(data_shape(model), dtype=np.float32)
    mean.flat[:2] = [0.0, 1.0]
    vae = MODELS[model](likelihood=likelihood, data_mean=mean)
    z = jnp.zeros(MODELS[model].keywords["latent_dim"])
    first = jax.jit(vae.decode)(start(vae), z).mean()
    expected = np.clip(mean, 0.01, 0.99) if likelihood == "bernoulli" else mean
    np.testing.assert_allclose(first, expected, rtol=0, atol=1e-6)


def test_decoder_starts_at_the_data_mean_in_either_initialization():
    """Torch's hidden biases are not zero, but contribute nothing with a zero kernel."""
    mean = np.random.default_rng(2).random(6, dtype=np.float32)
    vae = MODELS["mlp (6,)"](initialization="torch", data_mean=mean, likelihood="gaussian")
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if path[-1].key == "kernel" else leaf, start(vae)
    )
    np.testing.assert_array_equal(vae.decode(params, jnp.ones(2)).mean(), mean)


@pytest.mark.parametrize("model", ["mlp (6,)", "conv (8, 8, 1)"])
def test_without_a_data_mean_the_output_bias_is_the_layers_own(model):
    vae = MODELS[model](likelihood="gaussian")
    first = vae.decode(start(vae), jnp.zeros(2)).mean()
    np.testing.assert_array_equal(first, np.zeros(data_shape(model)))


@pytest.mark.parametrize("model", ["mlp (6,)", "conv (8, 8, 1)"])
@pytest.mark.parametrize(
    ("sigma", "first"),
    [
        *[("learned", 0.25), ("per_channel", 0.25), ("per_pixel", 0.25)],
        *[("optimal", 0.25), (0.5, 0.5)],
    ],
)
def test_sigma_starts_at_the_data_scale_unless_it_is_fixed(model, sigma, first):
    mean = jnp.zeros(data_shape(model))
    vae = MODELS[model](likelihood="gaussian", sigma=sigma, data_scale=0.25, data_mean=mean)
    log_scale = jax.jit(vae.decode)(start(vae), jnp.zeros(2)).log_scale
    np.testing.assert_allclose(np.exp(log_scale), np.full(log_scale.shape, first), rtol=1e-6)


@pytest.mark.parametrize("likelihood", ["discretized_logistic", "poisson"])
def test_the_encoder_sees_the_network_input(likelihood):
    """It sees pixels in [-1, 1] and logarithms of counts."""
    vae, plain = (MODELS["mlp (6,)"](likelihood=name) for name in (likelihood, "gaussian"))
    params = randomized(plain)
    x = np.array([0, 1, 17, 128, 254, 255], np.float32)
    seen = x / 127.5 - 1 if likelihood == "discretized_logistic" else np.log1p(x)
    q, right = vae.encode(params, x), plain.encode(params, seen.astype(np.float32))
    np.testing.assert_allclose(q.loc, right.loc, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(q.log_scale, right.log_scale, rtol=1e-5, atol=1e-5)


def test_outputs_in_bfloat16_are_read_in_float32():
    """A network may compute in bfloat16; q and p have the same numbers in float32."""
    build = partial(MODELS["mlp (6,)"], likelihood="gaussian", sigma="per_pixel")
    vae, family = build(posterior="von_mises_fisher"), posterior_named("von_mises_fisher", 2, 0)
    low = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), randomized(vae))
    x = jnp.linspace(-1, 1, 6).astype(jnp.bfloat16)
    outputs = MLPEncoder(family.num_outputs, (8,)).apply(low["encoder"], x)
    assert outputs.dtype == jnp.bfloat16
    right = family.distribution({}, outputs.astype(jnp.float32))
    chex.assert_trees_all_close(vae.encode(low, x), right, rtol=1e-6)
    p = jax.eval_shape(vae.decode, low, jnp.zeros(2, jnp.bfloat16))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(p)} == {"float32"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("posterior", "prior"),
    [
        pytest.param(*pair, marks=[] if pair in SHORT_PAIRS else [pytest.mark.long])
        for pair in PAIRS
    ],
)
def test_every_posterior_goes_with_every_prior_over_its_latents(posterior, prior):
    """A finite bound of three samples, and finite gradients; each family's own parameters learn."""
    assert set(SHORT_PAIRS) <= set(PAIRS)
    vae = mlp_vae(
        data_shape=(4,),
        latent_dim=2,
        hidden=(8,),
        posterior=posterior,
        prior=prior,
        num_categories=3,
        num_components=2,
    )
    estimator = "vimco" if posterior == "categorical" else "reparameterized"

    def objective(params, key):
        x = jnp.array([0.0, 1.0, 1.0, 0.0])
        bound = jaxvae.iwae(key, x, **parts(vae, params), num_samples=3, estimator=estimator)
        return bound.objective

    params = randomized(vae)
    value, gradients = jax.jit(jax.value_and_grad(objective))(params, jax.random.key(0))
    assert np.isfinite(value)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all(), path
    for name in {"posterior", "prior"} & set(params):
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients[name])), name
    own = {"posterior": posterior in ("iaf", "coupling", "spline"), "prior": prior != "standard"}
    assert {name: name in params for name in own} == own
    assert set(params) - set(own) == {"encoder", "decoder", "likelihood"}


@models
def test_params_are_the_encoders_the_decoders_and_the_likelihoods(model):
    keys = {
        "bernoulli": set(),
        "gaussian": {"log_scale"},
        "negative_binomial": {"log_dispersion"},
    }
    for likelihood, names in keys.items():
        params = shapes(MODELS[model](likelihood=likelihood))
        assert set(params) == {"encoder", "decoder", "likelihood"}
        assert set(params["likelihood"]) == names
    assert shapes(MODELS[model](likelihood="gaussian", sigma=0.5))["likelihood"] == {}


def test_the_families_are_those_named_by_the_arguments():
    vae = MODELS["mlp (6,)"]()
    params = start(vae)
    chex.assert_trees_all_equal(vae.prior(params), Gaussian.standard(2))
    assert type(vae.encode(params, jnp.zeros(6))) is Gaussian
    assert type(vae.decode(params, jnp.zeros(2))) is Bernoulli
    gaussian = MODELS["mlp (6,)"](**GAUSSIAN)
    params = start(gaussian)
    assert type(gaussian.decode(params, jnp.zeros(2))) is Gaussian


def test_encoder_and_decoder_start_from_different_keys():
    """In this model all layers but one have the same shape."""
    params = wide("torch")
    layers = [
        params[part]["params"][f"Dense_{i}"]["kernel"]
        for part, i in [("encoder", 0), ("encoder", 1), ("decoder", 1)]
    ]
    for i in range(3):
        assert np.abs(layers[i] - layers[i - 1]).max() > 0.1


def test_only_an_optimal_sigma_can_be_set_from_outside():
    assert MODELS["mlp (6,)"]().with_log_scale is None
    assert MODELS["mlp (6,)"](**GAUSSIAN).with_log_scale is None
    vae = MODELS["mlp (6,)"](likelihood="gaussian", sigma="optimal")
    before = start(vae)
    after = vae.with_log_scale(before, jnp.float32(-2.5))
    assert vae.decode(after, jnp.zeros(2)).log_scale == -2.5
    assert vae.decode(before, jnp.zeros(2)).log_scale == 0.0
    chex.assert_trees_all_equal(after | {"likelihood": before["likelihood"]}, before)


def test_the_mlp_decoder_has_the_hidden_layers_reversed():
    vae = mlp_vae(data_shape=(9,), latent_dim=2, hidden=(8, 5))
    params = shapes(vae)
    kernels = lambda part: [layer["kernel"].shape for layer in params[part]["params"].values()]
    assert kernels("encoder") == [(9, 8), (8, 5), (5, 4)]
    assert kernels("decoder") == [(2, 5), (5, 8), (8, 9)]


@pytest.mark.parametrize(
    ("shape", "channels", "smallest"),
    [
        ((8, 8, 1), [32], (4, 4)),
        ((9, 12, 3), [32], (5, 6)),
        ((28, 28, 1), [32, 64], (7, 7)),
        ((28, 20, 1), [32, 64], (7, 5)),
        ((32, 33, 1), [32, 64, 128], (4, 5)),
        ((63, 64, 3), [32, 64, 128], (8, 8)),
        ((8, 64, 1), [32, 64, 128], (1, 8)),
    ],
)
def test_a_conv_vae_has_the_levels_that_its_image_needs(shape, channels, smallest):
    params = shapes(conv_vae(data_shape=shape))

    def kernels(part):
        layers = params[part]["params"]
        return [layer["kernel"].shape for name, layer in layers.items() if "Conv" in name]

    levels = list(zip([shape[2], *channels], channels, strict=False))
    assert kernels("encoder") == [(4, 4, before, after) for before, after in levels]
    assert kernels("decoder") == [(4, 4, after, before) for before, after in levels[::-1]]
    flat = (np.prod(smallest) * channels[-1], 256)
    assert params["encoder"]["params"]["Dense_0"]["kernel"].shape == flat
    assert params["decoder"]["params"]["Dense_1"]["kernel"].shape == flat[::-1]


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_torch_initialization_is_uniform_within_one_over_root_fan_in(part):
    """By Kolmogorov-Smirnov: its gap is above 2 / sqrt(n) once in 1,500 times."""
    for layer in wide("torch")[part]["params"].values():
        limit = 1 / np.sqrt(len(layer["kernel"]))
        for weights in (layer["kernel"].ravel(), layer["bias"]):
            assert np.abs(weights).max() <= limit
            ranks, num = (np.sort(weights) / limit + 1) / 2, len(weights)
            assert np.abs(ranks - (np.arange(num) + 0.5) / num).max() < 2 / np.sqrt(num)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_lecun_initialization_has_variance_one_over_fan_in(part):
    for layer in wide("lecun")[part]["params"].values():
        squares = np.square(layer["kernel"].astype(np.float64)).ravel()
        standard_error = squares.std() / np.sqrt(len(squares))
        assert abs(squares.mean() - 1 / len(layer["kernel"])) < 4 * standard_error
        np.testing.assert_array_equal(layer["bias"], np.zeros(len(layer["bias"])))


@models
def test_log_scales_stay_within_the_clamp_for_huge_inputs(model):
    """So a KL stays finite, e^14 per latent; an unclamped log scale of 1e6 would overflow."""
    vae = MODELS[model]()
    params = start(vae)
    for size in (1e6, -1e6):
        log_scale = jax.jit(vae.encode)(params, jnp.full(data_shape(model), size)).log_scale
        assert 6.9 < np.abs(log_scale).max() <= 7
        assert np.isfinite(jaxvae.kl(Gaussian(0 * log_scale, log_scale), vae.prior(params)))


# Transform


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp (5, 4, 1)", "conv (9, 12, 3)"])
def test_eager_jit_and_vmap_agree(model):
    vae = MODELS[model]()
    params = randomized(vae)
    xs = np.random.default_rng(1).random((3, *data_shape(model)), dtype=np.float32)

    def there_and_back(x):
        q = vae.encode(params, x)
        return q, vae.decode(params, q.mean())

    stacked = lambda fn: jax.tree.map(lambda *leaves: np.stack(leaves), *[fn(x) for x in xs])
    eager = stacked(there_and_back)
    chex.clear_trace_counter()
    jitted = jax.jit(chex.assert_max_traces(there_and_back, 1))
    chex.assert_trees_all_close(stacked(jitted), eager, rtol=1e-5, atol=1e-5)
    vmapped = jax.jit(jax.vmap(there_and_back))(xs)
    chex.assert_trees_all_close(vmapped, eager, rtol=1e-5, atol=1e-5)


# Failure


def test_anything_but_one_example_or_one_latent_is_rejected():
    vae = MODELS["mlp (5, 4, 1)"]()
    params = start(vae)
    for shape in [(20,), (7, 5, 4, 1), (4, 5, 1)]:
        with pytest.raises(ValueError, match=r"one example of shape \(5, 4, 1\), got \(\d.*vmap"):
            vae.encode(params, jnp.zeros(shape))
    for shape in [(), (2,), (7, 3)]:
        with pytest.raises(ValueError, match=r"one latent of shape \(3,\), got \(.*vmap"):
            jax.eval_shape(vae.decode, params, jnp.zeros(shape))
    vae = MODELS["mlp (6,)"](posterior="categorical", num_categories=4)
    with pytest.raises(ValueError, match=r"one latent of shape \(2, 4\), got \(8,\)"):
        jax.eval_shape(vae.decode, shapes(vae), jnp.zeros(8))


@pytest.mark.parametrize("build", [MODELS["mlp (6,)"], MODELS["conv (8, 8, 1)"]])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"likelihood": "normal"}, "likelihood must be one of bernoulli, .* got 'normal'"),
        ({"posterior": "normal"}, "posterior must be one of gaussian, .* got 'normal'"),
        ({"prior": "normal"}, "prior must be one of standard, .* got 'normal'"),
        ({"prior": "mixture", "num_components": 0}, "num_components must be at least 1, got 0"),
        ({"posterior": "categorical", "num_categories": 1}, "num_categories must be .*, got 1"),
        ({"posterior": "categorical", "prior": "flow"}, "prior=flow needs Euclidean latents"),
        (GAUSSIAN | {"sigma": "best"}, "sigma must be .* per_pixel or optimal, got 'best'"),
        ({"likelihood": "laplace", "sigma": "optimal"}, "sigma=optimal needs likelihood=gaussian"),
        (GAUSSIAN | {"sigma": -1.0}, "sigma must be a positive number.* got -1.0"),
        ({"latent_dim": 0}, r"every entry of latent_dim must be positive, got \(0,\)"),
        ({"hidden": (4, 0)}, r"every entry of hidden must be positive, got \(4, 0\)"),
        ({"data_mean": np.zeros(3)}, r"data_mean must have the shape of one example.*got \(3,\)"),
    ],
)
def test_wrong_arguments_are_rejected(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data_shape": (7, 8, 1)}, r"H and W from 8 to 64, got data_shape=\(7, 8, 1\).*mlp_vae"),
        ({"data_shape": (8, 65, 1)}, r"H and W from 8 to 64, got data_shape=\(8, 65, 1\)"),
        ({"data_shape": (28, 28)}, r"images \(H, W, C\).* got data_shape=\(28, 28\)"),
        ({"data_shape": (5, 28, 28, 1)}, r"images \(H, W, C\).* got data_shape=\(5, 28, 28, 1\)"),
        ({"data_shape": (28, 28, 2)}, r"1 or 3 channels, got 2 in .*mlp_vae"),
        ({"data_shape": (28, 28, 1), "width": 0}, r"every entry of width must be positive, got"),
    ],
)
def test_conv_vae_rejects_data_that_are_not_images(arguments, message):
    with pytest.raises(ValueError, match=message):
        conv_vae(**arguments)


def test_an_empty_side_is_rejected():
    with pytest.raises(ValueError, match=r"of data_shape must be positive, got \(0, 3\)"):
        mlp_vae(data_shape=(0, 3))


@pytest.mark.parametrize(
    ("argument", "name", "known"),
    [
        ("initialization", "keras", "lecun, torch"),
        ("activation", "gelu", "relu, tanh"),
        ("precision", "float16", "float32, bfloat16"),
    ],
)
def test_an_unknown_name_is_rejected(argument, name, known):
    with pytest.raises(ValueError, match=f"{argument} must be one of {known}, got '{name}'"):
        MODELS["mlp (6,)"](**{argument: name})
