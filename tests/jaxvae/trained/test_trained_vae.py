"""TrainedVAE: known scores of an exactly solvable model, rows in order, scale and shape checks."""

import dataclasses
import json
import subprocess
import sys
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxvae
from jaxvae.preprocessing.conversion import Conversion
from jaxvae.preprocessing.description import Description
from jaxvae.preprocessing.support import REALS, Support, Trained, check_rows
from jaxvae.testing import LinearGaussian
from jaxvae.trained import Reference, TrainedVAE

DIM = 3
MODEL = LinearGaussian(
    jnp.array([[1.0, 0.5], [0.0, 1.0], [-1.0, 2.0]]), jnp.array([0.0, 1.0, -1.0]), jnp.array(-0.5)
)
GREY = Description(
    Conversion("binarized", 255),
    Support(0, 255, True),
    Trained("uint8", 0, 255),
    True,
    "dynamic binarization",
    "binary pixels",
    0.0,
    False,
)


@cache
def exact(wider=0.0):
    """Trained model whose log p(x) is known; its q is the posterior, or one that is wider.

    As `grey_model`, it is one object for all tests, so that its programs are compiled once.
    """

    def encode(params, x):
        q = params.posterior(x)
        return dataclasses.replace(q, scale_tril=q.scale_tril * jnp.exp(wider))

    vae = jaxvae.VAE(
        init=lambda key: MODEL,
        encode=encode,
        decode=lambda params, z: params.decode(z),
        prior=lambda params: params.prior(),
    )
    about = Description(
        Conversion("scaled", 1), REALS, Trained("float32", -12, 12), False, "", "", 0.0, False
    )
    return TrainedVAE(vae, MODEL, (DIM,), about, {"data": "drawn"}, devices=DEVICES)


DEVICES = jax.devices()[:1]


def drawn(seed, count):
    """Rows [N, 3] from the model."""

    def one(key):
        key_z, key_x = jax.random.split(key)
        return MODEL.decode(MODEL.prior().sample(key_z)).sample(key_x)

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), count)))


@cache
def grey_model(**fields):
    """Untrained model of 8 x 8 grey images."""
    vae = jaxvae.mlp_vae(data_shape=(8, 8, 1), latent_dim=2, hidden=(4,))
    params = vae.init(jax.random.key(0))
    return TrainedVAE(vae, params, (8, 8, 1), GREY, {}, devices=DEVICES, **fields)


def images(count, side=8):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 1), dtype=np.uint8)


def test_scores_of_the_exact_posterior_are_exact():
    x = drawn(1, 30)
    truth = jax.jit(jax.vmap(MODEL.log_prob))(x)
    found = exact().log_likelihood(jax.random.key(2), x, 10)
    np.testing.assert_allclose(found.value, truth, atol=1e-4)
    assert (found.standard_error < 1e-3).all()


def test_monte_carlo_errors_are_those_of_repeated_estimates():
    """At 400 samples the estimate is nearly normal: z has mean 0 and standard deviation 1."""
    x = np.repeat(drawn(3, 1), 1000, axis=0)
    found = exact(wider=0.4).log_likelihood(jax.random.key(0), x, 400)
    z = (found.value - float(MODEL.log_prob(x[0]))) / found.standard_error
    assert abs(z.mean()) < 5 / np.sqrt(len(z))
    assert abs(z.std() - 1) < 0.15  # 5 standard errors, 1 / sqrt(2 N), and the spread of the errors


def test_quantiles_of_rows_from_the_model_are_uniform():
    trained = exact().with_reference(drawn(4, 2000), num_samples=2, step=7)
    quantiles = trained.score(drawn(5, 2000)).quantile
    assert trained.reference.step == 7
    # Two samples of 2,000: the critical distance at 1e-6 of Kolmogorov and Smirnov.
    assert scipy.stats.ks_1samp(quantiles, scipy.stats.uniform.cdf).statistic < 2.7 / np.sqrt(1000)


def test_without_a_reference_the_quantile_is_not_known():
    assert np.isnan(exact().score(drawn(0, 2)).quantile).all()


def test_each_row_comes_out_in_its_place_whatever_follows_it():
    x = images(37)
    trained = grey_model(batch_size=16)
    whole, some = trained.reconstruct(x), trained.reconstruct(x[:5])
    np.testing.assert_allclose(whole[:5], some, rtol=1e-5)
    assert len(whole) == len(trained.encode(x).mean()) == len(trained.score(x).elbo) == 37


def test_numbers_do_not_depend_on_devices():
    x = images(20)
    trained = grey_model(batch_size=16)
    one = trained.score(x)
    four = dataclasses.replace(trained, devices=jax.devices()[:4]).score(x)
    np.testing.assert_allclose(one.log_likelihood, four.log_likelihood, rtol=1e-5)


def test_reconstructions_are_in_the_unit_of_the_rows():
    x = images(4)
    trained = grey_model()
    vae, params = trained.vae, trained.params
    for i, found in enumerate(trained.reconstruct(x)):
        key, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), i))
        z = vae.encode(params, GREY.conversion.prepare(key, x[i])).mean()
        np.testing.assert_allclose(found, 255 * vae.decode(params, z).mean(), rtol=1e-4)


def test_all_methods_see_the_same_draw_of_a_row():
    x, key = images(5), jax.random.key(3)
    trained = grey_model()
    z = trained.encode(x, key=key).mean()
    np.testing.assert_allclose(trained.decode(z), trained.reconstruct(x, key=key), rtol=1e-5)


@pytest.mark.parametrize("dtype", [">i8", ">u2", "int16", "uint64", ">f4", "float16"])
def test_numbers_may_be_stored_in_any_way(dtype):
    x = images(16)  # as many as in a batch, so that none is added
    expected = grey_model().reconstruct(x)
    np.testing.assert_array_equal(grey_model().reconstruct(x.astype(dtype)), expected)
    turned = np.asfortranarray(x.astype(dtype))
    turned.flags.writeable = False
    np.testing.assert_array_equal(grey_model().reconstruct(turned), expected)


def test_a_posterior_on_the_sphere_is_represented_by_its_mean_direction():
    vae = jaxvae.mlp_vae(
        data_shape=(8, 8, 1), latent_dim=3, hidden=(4,), posterior="von_mises_fisher"
    )
    params = vae.init(jax.random.key(0))
    trained, x = dataclasses.replace(grey_model(), vae=vae, params=params), images(1)
    key, *_ = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 4)
    z = vae.encode(params, GREY.conversion.prepare(key, x[0])).loc
    np.testing.assert_allclose(
        trained.reconstruct(x)[0], 255 * vae.decode(params, z).mean(), rtol=1e-4
    )


def test_samples_have_the_moments_of_the_model():
    x = exact().sample(jax.random.key(0), 4000, noise=True)
    covariance = MODEL.weight @ MODEL.weight.T + jnp.exp(2 * MODEL.log_scale) * jnp.eye(DIM)
    error = np.sqrt(np.diag(covariance) / len(x))
    assert (np.abs(x.mean(0) - MODEL.bias) < 5 * error).all()
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=5 * 6 * np.sqrt(2 / len(x)))
    cold = exact().sample(jax.random.key(0), 10, temperature=0.0)
    np.testing.assert_allclose(cold, np.tile(MODEL.bias, (10, 1)), atol=1e-6)


def test_images_of_another_size_are_resized_if_training_resized():
    trained = grey_model()
    resized = trained.rows(images(3, side=20))
    assert resized.shape == (3, 8, 8, 1)
    small = images(3, side=5)  # enlarged, so that the cubic goes below 0 and above 255
    for dtype in (np.int64, np.float64):
        np.testing.assert_array_equal(trained.rows(small.astype(dtype)), trained.rows(small))
    with pytest.raises(ValueError, match="at least one row"):
        trained.score(images(0, side=20))
    kept = dataclasses.replace(trained, description=GREY._replace(resizes=False))
    with pytest.raises(ValueError, match=r"must have shape \[N, 8, 8, 1\], got \[3, 20, 20, 1\]"):
        kept.reconstruct(images(3, side=20))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (images(2) / 255, "uint8 from 0 to 255; they are float64 from .* Give whole numbers"),
        (images(2) * 2.0, "Rescale them"),
        (np.ones((2, 8, 8, 1)), "Multiply them by 255"),
        (np.full((2, 8, 8, 1), np.nan), "not finite"),
        (images(2)[0], r"must have shape \[N, 8, 8, 1\], got \[8, 8, 1\]. For one example"),
        (images(0), "at least one row"),
        (np.full((1, 8, 8, 1), "a"), "rows must be numbers"),
        (images(2) > 9, "Multiply them by 255"),
        (np.ma.masked_less(images(2), 9), "masked values"),
        (np.float32(3), r"must have shape \[N, 8, 8, 1\], got \[\]"),
    ],
)
def test_rows_of_another_kind_are_rejected(rows, message):
    with pytest.raises(ValueError, match=message):
        grey_model().score(rows)


def test_counts_of_0_and_1_are_on_the_scale_of_counts():
    counts = Support(0, 2**24, True)
    check_rows(np.array([[0.0, 1.0]]), counts, Trained("float32", 0, 10))


def test_real_rows_far_outside_the_training_range_are_rejected():
    with pytest.raises(ValueError, match="float32 from -12 to 12; they are float64 from 0 to 1000"):
        exact().encode(np.array([[0.0, 1.0, 1000.0]]))
    assert exact().encode(np.array([[0.0, 1.0, 100.0]])).mean().shape == (1, 2)


def test_integers_of_more_than_32_bits_keep_their_value():
    about = exact().description._replace(trained=Trained("float32", 0, 5e9))
    trained = dataclasses.replace(exact(), description=about)
    x = np.array([[3_000_000_000, 1, 2]])
    expected = trained.encode(x.astype(np.float32)).mean()
    np.testing.assert_array_equal(trained.encode(x).mean(), expected)
    assert np.abs(expected).max() > 1e8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, key: model.sample(key, 0), "n must be an integer of at least 1, got 0"),
        (lambda model, key: model.sample(0, 3), r"key must be a random key: jax.random.key\(0\)"),
        (
            lambda model, key: model.log_likelihood(key, drawn(0, 2), 0),
            "num_samples must be an int",
        ),
        (lambda model, key: model.log_likelihood(key, drawn(0, 2), 2.5), "at least 1, got 2.5"),
        (lambda model, key: model.decode(np.zeros(2)), r"z must have shape \[N, 2\], got \[2\]"),
    ],
)
def test_invalid_arguments_are_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call(exact(), jax.random.key(0))


def test_grey_images_need_no_axis_of_channels():
    np.testing.assert_array_equal(
        grey_model().reconstruct(images(2)[..., 0]), grey_model().reconstruct(images(2))
    )


def test_temperature_needs_a_gaussian_prior():
    vae = jaxvae.mlp_vae(data_shape=(3,), latent_dim=2, hidden=(4,), prior="mixture")
    trained = dataclasses.replace(exact(), vae=vae, params=vae.init(jax.random.key(0)))
    with pytest.raises(ValueError, match="the prior of this model is not a Gaussian"):
        trained.sample(jax.random.key(0), 2, temperature=0.5)


def test_a_reference_survives_json_and_rejects_what_it_did_not_write():
    reference = Reference(np.array([-2.0, -1.0], np.float32), 10, 3)
    again = Reference.from_json(json.loads(json.dumps(reference.to_json())))
    np.testing.assert_array_equal(again.log_likelihood, reference.log_likelihood)
    for bad in ({}, [], None, {**reference.to_json(), "log_likelihood": []}):
        with pytest.raises(ValueError, match="the reference must have"):
            Reference.from_json(bad)


READ = """
import json, sys
sys.modules["jaxvae"] = None  # importing it fails
import numpy as np
from jax import export
def read(name):
    with open(f"{sys.argv[1]}/{name}.jax_export", "rb") as file:
        return export.deserialize(bytearray(file.read())).call
x = np.load(sys.argv[1] + "/x.npy")
codes = read("encode")(x, np.uint32(0))
scores = read("log_likelihood")(x, np.uint32(0))
np.savez(sys.argv[1] + "/found.npz", x=read("decode")(codes["mean"]), **codes, **scores)
"""


@pytest.mark.slow
def test_exported_functions_give_the_same_numbers_without_jaxvae(tmp_path):
    pytest.importorskip("flatbuffers")
    trained, x = grey_model(), images(7)
    trained.export(tmp_path / "model", num_samples=5)
    np.save(tmp_path / "model" / "x.npy", x)
    subprocess.run([sys.executable, "-c", READ, str(tmp_path / "model")], check=True)
    found = np.load(tmp_path / "model" / "found.npz")
    likelihood = trained.log_likelihood(jax.random.key(0, impl="threefry2x32"), x, 5)
    np.testing.assert_allclose(found["value"], likelihood.value, rtol=1e-5)
    np.testing.assert_allclose(found["standard_error"], likelihood.standard_error, rtol=1e-4)
    np.testing.assert_allclose(found["x"], trained.decode(found["mean"]), rtol=1e-4)
    assert found["sample"].shape == (7, 2)
    about = json.loads((tmp_path / "model" / "metadata.json").read_text())
    assert about["functions"]["encode"]["inputs"] == ["uint8[n, 8, 8, 1]", "uint32[]"]
