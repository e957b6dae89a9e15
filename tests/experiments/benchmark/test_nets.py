"""The nets of the benchmarks: equal in every variant, with the right number of operations."""

import sys
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from experiments.benchmark import (
    evaluate,
    flax_script,
    layers,
    nets,
    profile,
    scanned_loop,
    startup,
    weights,
)
from experiments.benchmark.images import binary_images, check_images
from experiments.benchmark.judge import Judge
from experiments.benchmark.library_steps import chunked
from experiments.benchmark.nets import NETS, Net
from experiments.benchmark.real_training import ContinuedRun
from experiments.benchmark.setting import make_setting
from experiments.flags.config import TrainConfig

WHERE = {"accelerator": "cpu", "num_devices": 1, "dataset": "mnist_small", "manual_dir": None}
TINY = {
    "relu": Net("tiny", "mlp", (8,), 2, "relu", 10),
    "tanh": Net("tiny, tanh", "mlp", (8, 6), 3, "tanh", 10),
    "iwae": Net("tiny, 4 samples", "mlp", (8,), 2, "relu", 10, 4),
    "conv": Net("tiny, convolutional", "conv", (4, 6), 2, "relu", 10),
}
PYTORCH = {**TINY, "resnet": Net("tiny, residual", "resnet", (4, 6), 2, "relu", 10)}


@pytest.fixture(scope="module")
def tiny():
    """Make the setting of a tiny net from its name; each is made only once."""
    with pytest.MonkeyPatch.context() as patch:
        for name, net in PYTORCH.items():
            patch.setitem(NETS, name, net)
        yield cache(partial(make_setting, **WHERE))


def some_params(vae):
    """Return random parameters, none of them zero."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(vae.init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: np.float32(0.2) * rng.normal(size=leaf.shape).astype("f"), shapes
    )


def test_step_flops_equal_a_count_by_hand():
    # Forward products of net a, one image: 784-400, 400-40, 20-400, 400-784.
    forward = 784 * 400 + 400 * 40 + 20 * 400 + 400 * 784
    assert nets.step_flops(NETS["a"]) == 128 * 2 * (3 * forward - 784 * 400)
    encoder, decoder = 784 * 200 + 200 * 200 + 200 * 100, 50 * 200 + 200 * 200 + 200 * 784
    assert nets.step_flops(NETS["b"]) == 100 * 2 * (3 * (encoder + decoder) - 784 * 200)
    assert nets.step_flops(NETS["b20"]) * 5 == nets.step_flops(NETS["b"])
    assert nets.step_flops(NETS["c"]) == 100 * 2 * (3 * (encoder + 50 * decoder) - 784 * 200)
    levels = 14 * 14 * 16 * 32 + 7 * 7 * (16 * 32) * 64
    dense = 7 * 7 * 64 * 256
    encoder, decoder = levels + dense + 256 * 64, 32 * 256 + dense + levels
    assert nets.step_flops(NETS["d"]) == 128 * 2 * (3 * (encoder + decoder) - 14 * 14 * 16 * 32)
    assert nets.large_product_flops() == 2 * 2048**3


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_jax_variants_of_a_net_equal_the_library(tiny, name):
    """With the same weights: posterior of an image, logits of a latent, and bound."""
    setting = tiny(name)
    net, vae = setting.net, setting.vae
    pixels = jnp.asarray(binary_images(setting.dataset.train[:3]))
    # Without noise every draw of q is its mean, and all K samples of a bound are equal.
    zeros = lambda key, shape: jnp.zeros(shape)
    draws = scanned_loop.Draws(lambda key, shape: jnp.full(shape, 0.5), zeros)

    def library(params, x):
        q = vae.encode(params, x)
        p = vae.decode(params, q.loc)
        rate = 0.5 * (jnp.exp(2 * q.log_scale) + q.loc**2 - 1 - 2 * q.log_scale)
        if net.num_samples > 1:
            rate = 0.5 * q.loc**2 - q.log_scale
        return q.loc, q.log_scale, p.logits, rate.sum() - p.log_prob(x)

    @jax.jit
    def all_of_them(params, pixels):
        xs = pixels / 255
        ours = jax.vmap(partial(library, params))(xs)
        flat = layers.encoder_outputs(params, net, xs.reshape(3, -1))
        logits = layers.decoder_logits(params, net, ours[0]).reshape(xs.shape)
        loss = scanned_loop.negative_bound(params, net, draws, jax.random.key(0), pixels)
        loc, log_scale = flax_script.Encoder(net).apply(params["encoder"], xs)
        logits_of_flax = flax_script.Decoder(net).apply(params["decoder"], loc)
        by_hand = (flat[:, : net.latent_dim], logits, loss)
        return ours, by_hand, (loc, log_scale, logits_of_flax)

    ours, by_hand, by_flax = all_of_them(some_params(vae), pixels)
    loc, log_scale, logits, losses = ours
    for found, expected in zip(by_hand, (loc, logits, losses.mean()), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for found, expected in zip(by_flax, (loc, log_scale, logits), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PYTORCH)
def test_pytorch_net_equals_the_library(tiny, name):
    torch = pytest.importorskip("torch", reason="PyTorch is optional")
    from experiments.benchmark.pytorch import nets as pytorch_nets
    from experiments.benchmark.pytorch import weights as pytorch_weights

    setting = tiny(name)
    vae, params = setting.vae, jax.tree.map(np.float64, some_params(setting.vae))
    given = weights.named(params)
    model = pytorch_nets.Autoencoder(setting.net).double()
    pytorch_weights.load(model, given)
    xs = binary_images(setting.dataset.train[:3]) / 255

    @jax.jit
    @jax.vmap
    def ours(x):
        q = vae.encode(params, x)
        p = vae.decode(params, q.loc)
        return q, p.logits, p.log_prob(x)

    with jax.enable_x64(True):
        q, logits, expected = ours(xs)
    with torch.no_grad():
        x = torch.from_numpy(xs.reshape(3, -1))
        loc, log_scale = model.encoder(x)
        flat = model.decoder(loc)
        fits = [
            likelihood(flat, x).numpy()
            for likelihood in (
                pytorch_nets.from_logits,
                pytorch_nets.from_softplus,
                pytorch_nets.from_probabilities,
            )
        ]
    np.testing.assert_allclose(loc.numpy(), q.loc, atol=1e-12)
    np.testing.assert_allclose(log_scale.numpy(), q.log_scale, atol=1e-12)
    np.testing.assert_allclose(flat.numpy().reshape(xs.shape), logits, atol=1e-12)
    for fit in fits:
        np.testing.assert_allclose(fit, expected, rtol=1e-12)
    back = pytorch_weights.dump(model)
    assert back.keys() == given.keys()
    for key, value in given.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_pytorch_log_likelihood_equals_the_library_up_to_noise(tiny):
    torch = pytest.importorskip("torch", reason="PyTorch is optional")
    from experiments.benchmark.pytorch import nets as pytorch_nets
    from experiments.benchmark.pytorch import weights as pytorch_weights
    from experiments.benchmark.pytorch.log_likelihood import Estimator
    from experiments.benchmark.pytorch.settings import Choice
    from jaxvae.evaluation import log_likelihood

    setting = tiny("relu")
    vae, params = setting.vae, some_params(setting.vae)
    model = pytorch_nets.Autoencoder(setting.net)
    pytorch_weights.load(model, weights.named(params))
    xs = binary_images(setting.dataset.test[:20]) / np.float32(255)

    def ours(key, x):
        parts = {"encode": partial(vae.encode, params), "decode": partial(vae.decode, params)}
        return log_likelihood(key, x, prior=vae.prior(params), num_samples=300, **parts)

    exact = jax.jit(jax.vmap(ours))(jax.random.split(jax.random.key(0), 20), xs)
    torch.manual_seed(0)
    flat = torch.from_numpy(xs.reshape(20, -1))
    for rows in (70, 1000):  # fewer than the samples of one image, and those of three images
        theirs = Estimator(model, 300, Choice(0, rows=rows))(flat).tolist()
        found = evaluate.compare_estimates(exact.tolist(), theirs)
        assert abs(found["difference"]) < 5 * found["standard_error"] < 1.0


@pytest.mark.long
def test_command_trains_from_given_weights_and_writes_raw_ones(tiny, tmp_path, monkeypatch):
    """Adam's first step changes raw weights by the learning rate, and their average by less."""
    setting = tiny("relu")
    monkeypatch.setattr("experiments.benchmark.real_training.PERIOD_SECONDS", 0.1)
    run = ContinuedRun(setting, tmp_path)
    initial, final = str(tmp_path / "initial.npz"), str(tmp_path / "final.npz")
    first = weights.named(setting.initial_params(seed=3))
    weights.save(initial, first)
    run.advance(2)
    run.train(initial, [(1, final)], 3)
    for name, value in weights.load(final).items():
        step = np.abs(value - first[name]).max()
        assert step == pytest.approx(setting.config.learning_rate, rel=0.01), name
    assert run.about["compile_seconds"] > 0
    weights.save(initial, first | {name: value + 1 for name, value in first.items()})
    with pytest.raises(ValueError, match="starts from its own seed"):
        run.train(initial, [(1, final)], 3)
    run.close()


@pytest.mark.slow
def test_chunked_step_reports_its_images_and_steps_per_call(tiny):
    work = chunked(tiny("relu"))
    work.advance(2)
    assert (work.images_per_step, work.steps_per_call) == (10, 20)
    assert work.about["compile_seconds"] > 0


@pytest.mark.slow
def test_profile_finds_every_part_of_a_step(tiny):
    tiny("relu")
    parts = profile.Profile("relu", **WHERE).about["parts"]
    assert parts.keys() == {*profile.PARTS, profile.REST}
    assert all(milliseconds > 0 for milliseconds in parts.values())
    assert list(parts.values()) == sorted(parts.values(), reverse=True)


@pytest.mark.slow
def test_bare_loop_and_flax_script_learn_from_given_weights(tiny, tmp_path):
    setting = tiny("relu")
    loops = (
        scanned_loop.Loop(setting, scanned_loop.one_key_per_example()),
        flax_script.Script(setting),
    )
    initial, early, final = (str(tmp_path / f"{name}.npz") for name in ("initial", "early", "late"))
    first = weights.named(setting.initial_params())
    weights.save(initial, first)
    for loop in loops:
        loop.advance(1)
        loop.train(initial, [(5, early), (25, final)], 1)
        taken = [weights.load(path) for path in (early, final)]
        for loaded, steps in zip(taken, (5, 25), strict=True):
            moved = [np.abs(value - first[name]) for name, value in loaded.items()]
            assert all(0 < change.max() <= steps * 1.5e-3 for change in moved)  # steps of Adam
        loop.train(initial, [(25, final)], 1)  # the same steps without a snapshot on the way
        for name, value in weights.load(final).items():
            np.testing.assert_allclose(value, taken[1][name], atol=1e-5, err_msg=name)


def test_pytorch_learns_from_given_weights(tiny, tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is optional")
    from experiments.benchmark.pytorch import settings as pytorch_settings
    from experiments.benchmark.pytorch import training as pytorch_training

    setting, taken = tiny("relu"), []

    def counted(*arguments):
        trainer = pytorch_training.usual(*arguments)
        return trainer._replace(step=lambda: taken.append(trainer.step()))

    monkeypatch.setattr(pytorch_settings, "RACE_SECONDS", 0.01)
    monkeypatch.setitem(pytorch_training.STYLES, "eager", counted)
    variant = pytorch_training.prepare("relu", 0.01, "eager", **WHERE)
    initial, early, final = (str(tmp_path / f"{name}.npz") for name in ("initial", "early", "late"))
    first = weights.named(setting.initial_params())
    weights.save(initial, first)
    before = len(taken)
    variant.train(initial, [(1, early), (25, final)], 1)
    assert len(taken) - before == 25
    for name, value in weights.load(early).items():  # Adam's first step is the learning rate
        assert np.abs(value - first[name]).max() == pytest.approx(1e-3, rel=0.01), name
    for name, value in weights.load(final).items():
        assert np.abs(value - first[name]).max() <= 25 * 1.5e-3, name


@pytest.mark.slow
def test_judge_uses_the_training_bound_and_the_mean_of_the_weights(tiny, tmp_path):
    """For the same weights the bound of 4 samples is tighter than the ELBO."""
    given = weights.named(some_params(tiny("relu").vae))
    shifts = {"low": -0.25, "high": 0.25, "mean": 0.0}
    paths = {name: str(tmp_path / f"{name}.npz") for name in shifts}
    for name, shift in shifts.items():
        weights.save(paths[name], {key: value + np.float32(shift) for key, value in given.items()})
    one, four = (Judge(name, **WHERE) for name in ("relu", "iwae"))
    loose, tight = (judge.bound([paths["mean"]])["value"] for judge in (one, four))
    assert loose < tight < 0
    assert one.bound([paths["low"], paths["high"]])["value"] == pytest.approx(loose, rel=1e-5)


def test_binary_images_are_drawn_with_the_pixels_as_probabilities():
    grey = np.full((200, 28, 28, 1), 51, np.uint8)
    drawn = binary_images(grey)
    assert set(np.unique(drawn)) == {0, 255}
    count = drawn.size
    assert abs((drawn > 0).mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / count)
    np.testing.assert_array_equal(drawn, binary_images(grey))


def test_weights_survive_a_round_trip_through_a_tree(tmp_path):
    tree = {"encoder": {"kernel": np.ones((2, 3))}, "likelihood": {}}
    weights.save(tmp_path / "w.npz", weights.named(tree))
    back = weights.as_tree(weights.load(tmp_path / "w.npz"), tree)
    assert back["likelihood"] == {}
    np.testing.assert_array_equal(back["encoder"]["kernel"], tree["encoder"]["kernel"])
    with pytest.raises(ValueError, match=r"encoder/kernel.*not in both"):
        weights.as_tree({}, tree)


@pytest.mark.parametrize("name", NETS)
def test_command_line_of_a_net_parses_to_its_flags(name, tmp_path):
    config = startup.StartupConfig(dataset="mnist", manual_dir="there")
    words = startup.command_line(config, name, tmp_path / "run", tmp_path / "cache")
    assert words[:3] == [sys.executable, "-m", "experiments.train"]
    flags = tyro.cli(TrainConfig, args=words[3:], config=(tyro.conf.OmitArgPrefixes,))
    flags.check()
    net = NETS[name]
    widths = flags.channels if net.model == "resnet" else flags.hidden
    assert (widths, flags.latent_dim, flags.batch_size, flags.model) == (
        net.hidden,
        net.latent_dim,
        net.batch_size,
        net.model,
    )
    assert flags.num_samples == net.num_samples
    assert (flags.objective == "iwae") == (net.num_samples > 1)
    assert flags.activation == net.activation
    assert (flags.dataset, flags.manual_dir) == ("mnist", "there")


def test_check_images_rejects_other_shapes_and_types():
    with pytest.raises(ValueError, match=r"8-bit images of shape \(28, 28, 1\), got uint8 \(8,"):
        check_images(np.zeros((3, 8, 8, 1), np.uint8), "a")
    with pytest.raises(ValueError, match="got float32"):
        check_images(np.zeros((3, 28, 28, 1), np.float32), "a")
    with pytest.raises(ValueError, match=r"shape \(64, 64, 3\), got uint8 \(28, .*shapes:64"):
        check_images(np.zeros((3, 28, 28, 1), np.uint8), "e")
