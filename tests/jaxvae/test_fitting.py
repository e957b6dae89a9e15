"""fit: from an array to a usable model."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

import jaxvae
from jaxvae import elbo, fit, iwae
from jaxvae.checkpoints import load, load_trained
from jaxvae.cpu import blocks
from jaxvae.fitting.problem import make_problem
from jaxvae.preprocessing.description import read_description
from jaxvae.training.devices import make_mesh

SMALL = {"latent_dim": 2, "hidden": (16,), "num_steps": 40, "batch_size": 16, "progress": False}
ONE = jax.devices()[:1]
PREPARED = {"binarize": "auto", "standardize": "auto", "grey_probabilities": False}
OWN = jaxvae.mlp_vae(data_shape=(6,), latent_dim=2, hidden=(4,), likelihood="gaussian")


def bars(count=200):
    """8 x 8 binary images of horizontal and vertical bars."""
    rng = np.random.default_rng(0)
    rows, columns = rng.random((2, count, 8)) < 0.3
    return (rows[:, :, None] | columns[:, None, :]).astype(np.uint8)


def vectors(count=300):
    rng = np.random.default_rng(1)
    return 100 + 5 * rng.normal(size=(count, 2)) @ rng.normal(size=(2, 6))


@pytest.mark.slow
def test_fit_learns():
    few, many = (
        fit(bars(), devices=ONE, **SMALL | {"num_steps": steps}, optimizer=optax.adam(1e-2))
        for steps in (1, 300)
    )
    x = bars()[:50]
    gain = many.score(x).log_likelihood - few.score(x).log_likelihood
    assert gain.mean() > 5 * gain.std() / np.sqrt(len(x)) > 0


@pytest.mark.slow
def test_the_same_key_gives_the_same_parameters_and_another_key_others():
    flags = SMALL | {"devices": ONE, "num_steps": 5, "validation": 0}
    first, again, other = (
        fit(vectors(), key=jax.random.key(seed), **flags).params for seed in (3, 3, 4)
    )
    equal = jax.tree.map(lambda a, b: bool((a == b).all()), first, again)
    assert all(jax.tree.leaves(equal))
    assert not all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), first, other)))


@pytest.mark.slow
def test_devices_train_the_same_model():
    flags = SMALL | {"validation": 0}
    one, four = (fit(vectors(), devices=jax.devices()[:count], **flags).params for count in (1, 4))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), one, four)


@pytest.mark.slow
def test_a_folder_holds_the_model_that_fit_returns(tmp_path):
    trained = fit(bars(), devices=ONE, folder=tmp_path / "run", **SMALL)
    again = load_trained(tmp_path / "run", devices=ONE)
    x = bars()[:9]
    for name, values in trained.score(x)._asdict().items():
        np.testing.assert_allclose(getattr(again.score(x), name), values, atol=1e-3)
    inside = load_trained(tmp_path / "run" / "checkpoints", devices=ONE)
    np.testing.assert_array_equal(inside.score(x).quantile, again.score(x).quantile)
    np.testing.assert_array_equal(again.reconstruct(x), trained.reconstruct(x))
    assert repr(again) == repr(trained)
    assert "bernoulli" in repr(trained)
    vae, params = load(tmp_path / "run")
    assert vae.prior(params).mean().shape == (2,)
    with pytest.raises(ValueError, match=r"holds a run already\. Give a new folder"):
        fit(bars(), folder=tmp_path / "run", **SMALL)


@pytest.mark.long
@pytest.mark.parametrize(
    ("x", "likelihood"),
    [
        (bars(), "bernoulli"),
        (bars() * 255, "bernoulli"),
        (vectors(), "gaussian"),
        ((vectors() * 10).astype(int).clip(0), "negative_binomial"),
        (np.random.default_rng(0).integers(0, 255, (60, 8, 8, 3), dtype=np.uint8), "logistic_mix"),
    ],
)
def test_the_likelihood_suits_the_data(x, likelihood):
    trained = fit(x, devices=ONE, **SMALL | {"num_steps": 3})
    assert likelihood in trained.about["networks"]
    assert np.isfinite(trained.score(x[:3]).log_likelihood).all()
    assert trained.reconstruct(x[:3]).shape == trained.sample(jax.random.key(0), 3).shape


@pytest.mark.slow
def test_reconstructions_of_vectors_are_in_their_unit():
    trained = fit(vectors(), devices=ONE, optimizer=optax.adam(1e-2), **SMALL | {"num_steps": 400})
    errors = trained.reconstruct(vectors()) - vectors()
    assert np.square(errors).mean() < 0.3 * vectors().var(0).mean()


@pytest.mark.slow
def test_rows_drawn_once_are_scored_as_they_were_given():
    grey = np.where(bars() > 0, 250, 10).astype(np.uint8)
    trained = fit(grey, likelihood="bernoulli", binarize="static", devices=ONE, **SMALL)
    quantiles = trained.score(grey).quantile
    assert abs(quantiles.mean() - 0.5) < 5 * np.sqrt(1 / 12 / len(grey))
    assert trained.description.trained.high == 250


@pytest.mark.slow
def test_every_choice_is_a_keyword():
    seen = []
    trained = fit(
        bars(),
        **SMALL | {"progress": lambda *step: seen.append(step)},
        model="mlp",
        likelihood="bernoulli",
        posterior="full_covariance",
        prior="mixture",
        num_components=3,
        objective=partial(jaxvae.iwae, num_samples=3),
        optimizer=optax.sgd(1e-3),
        validation=bars()[:20],
        eval_every=16,
        average_decay=None,
        devices=jax.devices()[:2],
    )
    assert trained.about["bound"] == "iwae, num_samples=3"
    assert [step for step, _, elbo in seen if elbo is not None] == [16, 32, 40]


@pytest.mark.slow
def test_grey_levels_can_be_probabilities():
    grey = np.random.default_rng(0).random((64, 8, 8)).astype(np.float32)
    flags = SMALL | {"num_steps": 2, "likelihood": "bernoulli", "devices": ONE}
    with pytest.raises(ValueError, match="or grey_probabilities to take them as they are"):
        fit(grey, **flags)
    assert "grey levels" in str(fit(grey, grey_probabilities=True, **flags))


def test_a_cpu_computes_as_many_rows_at_once_as_its_cache_holds(monkeypatch):
    """Of 20 rows per device: the largest divisor whose values fit, and all in a larger cache."""
    arguments = {"latent_dim": 2, "hidden": (16,)}
    problem = make_problem(vectors(), 0.1, "mlp", "gaussian", PREPARED, arguments)
    one, two = make_mesh(ONE), make_mesh(jax.devices()[:2])
    assert problem.rows_at_once(elbo, one, 20) == 20
    monkeypatch.setattr(blocks, "VALUES_IN_CACHE", 9 * 16)
    monkeypatch.setattr(blocks, "WEIGHT_SHARE", 0)
    assert problem.rows_at_once(elbo, one, 20) == 5
    assert problem.rows_at_once(elbo, two, 20) == 5
    assert problem.rows_at_once(elbo, one, 19) is None  # a prime: one row at a time is slower
    assert problem.rows_at_once(partial(iwae, num_samples=4), one, 20) == 2  # 4 draws a row


@pytest.mark.slow
def test_your_own_vae_is_fitted_and_cannot_be_saved_by_recipe(tmp_path):
    """Without validation rows no ELBO is shown, and the last parameters count."""
    seen = []
    show = lambda *step: seen.append(step)
    flags = {"model": OWN, "num_steps": 3, "validation": 0, "eval_every": 2}
    trained = fit(vectors(), devices=ONE, progress=show, **flags)
    assert {elbo for _, _, elbo in seen} == {None}
    assert trained.reference.step == 3
    assert np.isfinite(trained.score(vectors()[:2]).elbo).all()
    with pytest.raises(ValueError, match=r"standardize=columns is for models by name"):
        fit(vectors(), model=OWN, standardize="columns")
    with pytest.raises(ValueError, match="folder needs a model by name"):
        fit(vectors(), model=OWN, num_steps=3, progress=False, folder=tmp_path / "r")


@pytest.mark.parametrize(
    ("x", "flags", "message"),
    [
        (np.ones(3), {}, r"x must be numbers of shape \[N, D\].* got \[3\] of float64"),
        (np.array([["a"]]), {}, "x must be numbers"),
        (np.full((4, 2), np.nan), {}, "x must be finite in float32"),
        (np.full((4, 2), 2**40), {}, "integers that fit 32 bits"),
        (
            vectors(),
            {"model": "vit"},
            "model must be mlp or conv or resnet, or a jaxvae.VAE; got 'vit'",
        ),
        (vectors(), {"validation": 1.0}, "validation must be a share from 0 to below 1"),
        (vectors(), {"validation": None}, "validation must be a share .* got None"),
        (vectors(), {"validation": bars()}, "validation must have rows of shape"),
        (
            vectors(),
            {"validation": vectors()[:0]},
            r"validation must be numbers .* got \[0, 6\]",
        ),
        (vectors(), {"validation": 1e6 * vectors()}, "validation: the rows must be on the scale"),
        (255 * bars(), {"validation": bars() / 255}, "validation: .* Give whole numbers"),
        (255 * bars(), {"validation": bars() > 0}, "must share one scale"),
        (np.ma.masked_less(vectors(), 100), {}, "x has masked values"),
        (vectors(), {"standardize": "column"}, "standardize must be auto, columns or none"),
        (vectors(), {"model": OWN}, "own model is built already, got latent_dim, hidden for it"),
        (bars(), {"sigma": 0.1}, "sigma is for likelihood=gaussian or laplace, .* is bernoulli"),
        (vectors(), {"likelihood": "bernoulli"}, r"bernoulli needs values in \[0, 1\]"),
        (
            vectors(),
            {"latent_dims": 3},
            "no argument 'latent_dims'. Remove it, or use one of latent",
        ),
        (vectors(), {"latent_dim": "3"}, "latent_dim must be an integer from 1 to .*, got '3'"),
        (vectors(), {"data_shape": (6,)}, "no argument 'data_shape'"),
        (vectors(), {"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        (vectors(), {"batch_size": 2.5}, "batch_size must be an integer of at least 1, got 2.5"),
        (vectors(), {"average_decay": 1.0}, r"average_decay must be in \(0, 1\) or None, got 1"),
        (vectors(), {"key": 3}, r"must be a random key: jax\.random\.key\(3\), got 3"),
        (vectors(), {"objective": "iwae"}, "objective must be a function like jaxvae.elbo"),
        (vectors(), {"optimizer": "adam"}, "optimizer must be of optax"),
        (vectors(), {"devices": []}, "at least one device"),
        (vectors(), {"devices": ONE[0]}, r"devices must be a list of devices, .* got CpuDevice"),
        (vectors(), {"posterior": "categorical"}, r"need another estimator: objective=partial\("),
        (vectors(), {"folder": "gs://bucket/run"}, "folder must be a local folder"),
    ],
)
def test_invalid_input_is_one_clear_error(x, flags, message):
    with pytest.raises(ValueError, match=message):
        fit(x, **SMALL | {"devices": ONE} | flags)


def _interrupt(at, done, num_steps, elbo):
    """Progress of a fit that Ctrl-C ends at a step."""
    if done >= at:
        raise KeyboardInterrupt


@pytest.mark.slow
def test_a_folder_of_a_fit_that_failed_can_be_used_again(tmp_path):
    """Numbers of numpy are arguments too, and validation rows count for the range of the data."""
    x, flags = vectors(), SMALL | {"devices": ONE, "folder": tmp_path / "run"}
    with pytest.raises(ValueError, match="finite"):
        fit(np.full((4, 2), np.nan), **flags)
    for step in (0, 1):  # before any evaluation
        with pytest.raises(KeyboardInterrupt):
            fit(x, **flags | {"progress": partial(_interrupt, step)})
    of_numpy = {"latent_dim": np.int64(2), "hidden": np.array([16]), "sigma": np.float32(0.5)}
    trained = fit(x, validation=x + 5, **flags | of_numpy | {"num_steps": 1})
    assert trained.sample(jax.random.key(0), np.int64(3)).shape == (3, 6)
    assert trained.description.trained.high == np.float32(x.max() + 5)
    assert (tmp_path / "run" / "reference.json").is_file()
    assert load_trained(tmp_path / "run", devices=ONE).reconstruct(x[:2]).shape == (2, 6)


@pytest.mark.slow
def test_models_whose_first_parameters_share_memory_are_fitted():
    """Steps donate their state: they must neither get a buffer twice, nor delete the model's."""
    flags = SMALL | {"num_steps": 2, "devices": ONE, "validation": 0}
    trained = fit(vectors(), posterior="coupling", **flags)
    assert np.isfinite(trained.score(vectors()[:2]).elbo).all()
    pretrained = OWN.init(jax.random.key(0))
    own = OWN._replace(init=lambda key: pretrained)
    first, again = (
        fit(vectors(), model=own, devices=ONE, num_steps=2, progress=False, validation=0)
        for _ in range(2)
    )
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)


def test_a_rare_value_in_the_validation_rows_is_on_the_scale_of_the_data():
    x = np.random.default_rng(0).normal(size=(8, 2))
    for row in range(8):  # one of the shares of 50 % has it
        rare = x.copy()
        rare[row, 0] = 1e4
        problem = make_problem(rare, 0.5, "mlp", "gaussian", PREPARED, {})
        description = read_description(problem.about)
        assert description is not None
        assert description.trained.high == np.float32(1e4)


@pytest.mark.slow
def test_a_loss_that_is_never_finite_is_an_error():
    with pytest.raises(
        FloatingPointError, match=r"not finite in 40 steps in a row\. Use a smaller"
    ):
        fit(vectors(), devices=ONE, objective=_not_finite, **SMALL)


@pytest.mark.slow
def test_ctrl_c_gives_the_best_parameters_so_far_even_if_they_cannot_be_saved(
    tmp_path, monkeypatch
):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxvae.checkpoints.write_reference", fails, raising=False)
    flags = SMALL | {"devices": ONE, "eval_every": 10, "progress": partial(_interrupt, 20)}
    with (
        pytest.warns(UserWarning, match="was not saved: .*No space left on device"),
        pytest.warns(UserWarning, match=r"interrupted\. The result is that of step (10|20)"),
    ):
        trained = fit(vectors(), folder=tmp_path / "run", **flags)
    assert trained.reference.step in (10, 20)
    assert np.isfinite(trained.score(vectors()[:2]).elbo).all()


def _not_finite(*arguments, **options):
    bound = jaxvae.elbo(*arguments, **options)
    return bound._replace(objective=bound.objective * np.nan)
