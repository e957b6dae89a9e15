"""The benchmark: what it counts, how it measures, what it writes; never how fast anything is."""

import dataclasses
import json
import sys
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from experiments.benchmark import (
    __main__,
    evaluate,
    flax_script,
    layers,
    nets,
    peers,
    rounds,
    scaling,
    scanned_loop,
    startup,
    step,
    tables,
    weights,
)
from experiments.benchmark.comparison import Comparison, compare
from experiments.benchmark.images import binary_images, check_images
from experiments.benchmark.library_steps import chunked
from experiments.benchmark.nets import NETS, Net
from experiments.benchmark.quality import with_differences
from experiments.benchmark.real_training import ContinuedRun
from experiments.benchmark.scaling import Point
from experiments.benchmark.setting import make_setting
from experiments.benchmark.timed import Fastest, Timed, Work, calls_that_take
from experiments.benchmark.workers import Variant, WorkerFailed, Workers, ask_once
from experiments.command import Refused
from experiments.config import TrainConfig

TRIVIAL = "tests.trivial_variants"
WHERE = {"accelerator": "cpu", "num_devices": 1, "dataset": "mnist_small", "manual_dir": None}
MACHINE = {"devices": "cpu x 1", "platform": "cpu", "num_devices": 1, "num_processes": 1,
           "process_index": 0, "versions": {"jax": "0"}}  # fmt: skip
TINY = {
    "relu": Net("tiny", "mlp", (8,), 2, "relu", 10),
    "tanh": Net("tiny, tanh", "mlp", (8, 6), 3, "tanh", 10),
    "iwae": Net("tiny, 4 samples", "mlp", (8,), 2, "relu", 10, 4),
    "conv": Net("tiny, convolutional", "conv", (4, 6), 2, "relu", 10),
}


@pytest.fixture(scope="module")
def tiny():
    """Makes the setting of a tiny net, by its name, once."""
    with pytest.MonkeyPatch.context() as patch:
        for name, net in TINY.items():
            patch.setitem(NETS, name, net)
        yield cache(partial(make_setting, **WHERE))


def some_params(vae):
    """Parameters that are all different from zero."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(vae.init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: np.float32(0.2) * rng.normal(size=leaf.shape).astype("f"), shapes
    )


def trivial(name, **arguments):
    return Variant(name, f"{TRIVIAL}:Trivial", arguments)


# Golden


def test_operations_of_a_step_are_those_counted_by_hand():
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


def test_statistics_of_rounds():
    summary = rounds.summarize([4.0, 1.0, 2.0, 3.0, 100.0])
    assert summary == (3.0, 2.0, 4.0, 1.0)
    assert rounds.summarize([4.0, 1.0, 2.0], higher_is_better=False).worst == 4.0
    assert rounds.summarize([2.0]) == (2.0, 2.0, 2.0, 2.0)
    above, below = [{"x": 6.0}, {"x": 1.0}], [{"x": 2.0}, {"x": 4.0}]
    assert rounds.ratios(above, below, "x") == [3.0, 0.25]


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,300"), (999.6, "1,000"), (10.0, "10.0"), (1.0, "1.00"), (0.5, "0.5"),
     (0.0001234, "0.000123"), (0, "0"), (None, "-")],
)  # fmt: skip
def test_numbers_are_written_to_three_digits(value, text):
    assert tables.number(value) == text


# Law


def test_rounds_go_through_all_variants_in_turn_and_a_lost_one_is_dropped():
    order = []

    def measure(name):
        order.append(name)
        return None if name == "y" and order.count("y") == 2 else {"seconds": 1.0}

    found = rounds.interleaved(["x", "y", "z"], 3, measure)
    assert order == ["x", "y", "z", "z", "y", "x", "x", "z"]
    assert {name: len(values) for name, values in found.items()} == {"x": 3, "z": 3}


def test_segments_are_as_long_as_asked_for_and_processes_agree_on_it(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("experiments.benchmark.timed.time.perf_counter", lambda: now[0])

    def advance(calls):
        now[0] += 0.01 * calls

    assert calls_that_take(2.0, advance) == 200
    assert calls_that_take(0.001, advance) == 1
    assert calls_that_take(2.0, advance, agree=lambda taken: 2 * taken) == 100
    segment = Timed(Work(advance, 5, 128, {}), 2.0).segment()
    assert segment["steps"] == 1000
    assert segment["images"] == 128_000
    assert segment["images_per_second"] == pytest.approx(64_000)
    assert segment["peak_bytes"] > 10**6


def test_of_several_settings_the_fastest_of_each_round_counts(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("experiments.benchmark.timed.time.perf_counter", lambda: now[0])
    pace = {"one": 0.01, "two": 0.02}

    def advance(name, calls):
        now[0] += pace[name] * calls

    works = {name: Work(partial(advance, name), 1, 10, {"of": name}) for name in pace}
    both = Fastest({name: Timed(work, 1.0) for name, work in works.items()})
    first = both.segment()
    pace["one"] = 0.05
    second = both.segment()
    assert both.about == {"of": "one"}
    assert (first["setting"], second["setting"]) == ("one", "two")
    assert second["images_per_second"] == pytest.approx(500)
    found = Comparison({"x": [first, second, second]}, {"x": {"setting": "asked"}}, {})
    assert found.setting("x") == "two (2 of 3 rounds)"


@pytest.mark.parametrize("name", TINY)
def test_all_variants_of_a_net_are_the_library_s(tiny, name):
    """With its weights: the posterior of an image, the logits of a latent, and the bound."""
    setting = tiny(name)
    net, vae = setting.net, setting.vae
    pixels = jnp.asarray(binary_images(setting.dataset.train[:3]))
    # Without noise every draw of q is its mean, and the bounds have no sums left.
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


@pytest.mark.parametrize("name", TINY)
def test_the_net_in_pytorch_is_the_library_s(tiny, name):
    torch = pytest.importorskip("torch", reason="PyTorch is optional")
    from experiments.benchmark import pytorch_nets, pytorch_weights

    setting = tiny(name)
    vae, params = setting.vae, some_params(setting.vae)
    given = weights.named(params)
    model = pytorch_nets.Autoencoder(setting.net)
    pytorch_weights.load(model, given)
    xs = binary_images(setting.dataset.train[:3]) / np.float32(255)

    @jax.jit
    @jax.vmap
    def ours(x):
        q = vae.encode(params, x)
        p = vae.decode(params, q.loc)
        return q, p.logits, p.log_prob(x)

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
    np.testing.assert_allclose(loc.numpy(), q.loc, atol=2e-5)
    np.testing.assert_allclose(log_scale.numpy(), q.log_scale, atol=2e-5)
    np.testing.assert_allclose(flat.numpy().reshape(xs.shape), logits, atol=2e-5)
    for fit in fits:
        np.testing.assert_allclose(fit, expected, rtol=1e-4)
    back = pytorch_weights.dump(model)
    assert back.keys() == given.keys()
    for key, value in given.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_the_estimate_in_pytorch_is_the_library_s_to_its_noise(tiny):
    torch = pytest.importorskip("torch", reason="PyTorch is optional")
    from experiments.benchmark import pytorch_nets, pytorch_weights
    from experiments.benchmark.pytorch_log_likelihood import Estimator
    from experiments.benchmark.pytorch_settings import Choice
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
    for rows in (70, 1000):  # less than one image's samples, and those of three images
        theirs = Estimator(model, 300, Choice(0, rows=rows))(flat).tolist()
        found = evaluate.compare_estimates(exact.tolist(), theirs)
        assert abs(found["difference"]) < 5 * found["standard_error"] < 1.0


def test_a_run_starts_from_the_weights_that_the_others_are_given(tiny, tmp_path):
    """And gives its raw ones: Adam's first step is the learning rate, their average's is less."""
    setting = tiny("relu")
    run = ContinuedRun(setting, 0.01, tmp_path)
    initial, final = str(tmp_path / "initial.npz"), str(tmp_path / "final.npz")
    first = weights.named(setting.initial_params(seed=3))
    weights.save(initial, first)
    run.advance(2)
    run.train(initial, 1, final, 3)
    for name, value in weights.load(final).items():
        step = np.abs(value - first[name]).max()
        assert step == pytest.approx(setting.config.learning_rate, rel=0.01), name
    assert run.about["compile_seconds"] > 0
    weights.save(initial, first | {name: value + 1 for name, value in first.items()})
    with pytest.raises(ValueError, match="starts from its own seed"):
        run.train(initial, 1, final, 3)
    run.close()


def test_the_chosen_step_says_what_it_counts(tiny):
    work = chunked(tiny("relu"))
    work.advance(2)
    assert (work.images_per_step, work.steps_per_call) == (10, 20)
    assert work.about["compile_seconds"] > 0


def test_bare_loop_and_flax_script_learn_from_given_weights(tiny, tmp_path):
    setting = tiny("relu")
    loops = (
        scanned_loop.Loop(setting, scanned_loop.one_key_per_example()),
        flax_script.Script(setting),
    )
    initial, final = str(tmp_path / "initial.npz"), str(tmp_path / "final.npz")
    first = weights.named(setting.initial_params())
    weights.save(initial, first)
    for loop in loops:
        loop.advance(1)
        loop.train(initial, 20, final, 1)
        moved = [np.abs(value - first[name]) for name, value in weights.load(final).items()]
        assert all(0 < change.max() <= 20 * 1.5e-3 for change in moved)  # 20 steps of Adam


def test_binary_images_are_drawn_with_the_pixels_as_probabilities():
    grey = np.full((200, 28, 28, 1), 51, np.uint8)
    drawn = binary_images(grey)
    assert set(np.unique(drawn)) == {0, 255}
    count = drawn.size
    assert abs((drawn > 0).mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / count)
    np.testing.assert_array_equal(drawn, binary_images(grey))


def test_weights_go_to_a_tree_and_back(tmp_path):
    tree = {"encoder": {"kernel": np.ones((2, 3))}, "likelihood": {}}
    weights.save(tmp_path / "w.npz", weights.named(tree))
    back = weights.as_tree(weights.load(tmp_path / "w.npz"), tree)
    assert back["likelihood"] == {}
    np.testing.assert_array_equal(back["encoder"]["kernel"], tree["encoder"]["kernel"])
    with pytest.raises(ValueError, match=r"encoder/kernel.*not in both"):
        weights.as_tree({}, tree)


def test_variants_agree_when_they_are_near_the_median_of_all():
    found = with_differences(
        {
            "x": {"elbos": [-100.0, -99.0]},
            "y": {"elbos": [-100.4, -99.4]},
            "z": {"elbos": [-102.0, -99.4]},
            "w": {"error": "e"},
        }
    )
    assert [found[name].get("agrees") for name in "xyzw"] == [True, True, False, None]
    assert found["x"]["difference"] == pytest.approx(0.4)


# Workers


def test_a_worker_prepares_answers_and_ends():
    with Workers() as workers:
        assert workers.prepare(trivial("one", rate=7.0))["setting"] == "none"
        workers.prepare(trivial("two"))
        assert workers.ask("one", "segment")["images_per_second"] == 7.0
        assert workers.ask("one", "segment")["images_per_second"] == 8.0
        assert workers.ask("two", "segment")["images_per_second"] == 100.0
        processes = [worker._process for (worker,) in workers._processes.values()]
        assert len({process.pid for process in processes}) == 2
    assert all(process.returncode == 0 for process in processes)


def test_variants_may_share_a_process():
    with Workers(one_process=True) as workers:
        workers.prepare(trivial("one", rate=7.0))
        workers.prepare(trivial("two"))
        assert len(workers._processes) == 1
        assert workers.ask("one", "segment")["images_per_second"] == 7.0
        assert workers.ask("two", "segment")["images_per_second"] == 100.0


def test_one_of_several_processes_that_fails_is_not_waited_for():
    peers_of = ({"process_id": 0}, {"process_id": 1})
    with Workers() as workers:
        about = workers.prepare(Variant("both", f"{TRIVIAL}:OneOfTwo", {}, peers=peers_of))
        assert about["process_id"] == 0
        with pytest.raises(WorkerFailed, match=r"^both: RuntimeError: the second fails$"):
            workers.ask("both", "segment")


def test_what_a_worker_refuses_or_dies_of_is_one_line():
    with Workers() as workers:
        workers.prepare(trivial("one"))
        with pytest.raises(WorkerFailed, match=r"^one: ValueError: a reason in two lines$"):
            workers.ask("one", "refuse")
        with pytest.raises(WorkerFailed, match=r"^one died \(exit code 3\): last words$"):
            workers.ask("one", "die")
        with pytest.raises(WorkerFailed, match=r"^gone: ModuleNotFoundError: .*nowhere"):
            workers.prepare(Variant("gone", "nowhere:prepare", {}))


def test_a_variant_that_fails_is_left_out_and_said(capsys):
    arguments = {"net": "a", "segment_seconds": 1.0, "style": "eager", **WHERE}
    variants = [trivial("one"), Variant("PyTorch", f"{TRIVIAL}:without_torch", arguments)]
    with Workers() as workers:
        found = compare(workers, variants, 2, "net a")
    assert list(found.rounds) == ["one"]
    assert len(found.rounds["one"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert lines == [
        "net a: left out: PyTorch: PyTorch is not installed. "
        "python -m pip install -e '.[peers]' adds it."
    ]
    assert found.failed.keys() == {"PyTorch"}


def test_what_cannot_be_prepared_once_is_the_user_s_to_mend():
    with pytest.raises(Refused, match="nowhere"):
        ask_once(Variant("gone", "nowhere:prepare", {}))


# Subcommands


@pytest.mark.parametrize("name", ["step", "peers", "scaling", "evaluate", "startup"])
def test_help_teaches(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        tyro.cli(__main__.Flags, args=[name, "--help"], config=(tyro.conf.OmitArgPrefixes,))
    text = capsys.readouterr().out
    for flag in ("--rounds", "--output", "--accelerator", "--dataset", "--manual-dir"):
        assert flag in text
    assert "?" in text.split("─")[0]  # the question that it answers


def _json(folder, name):
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((folder / f"{name}.json").read_text())


def _check_common(found, name, rounds_wanted):
    assert found["benchmark"] == name
    assert found["question"].endswith("?")
    assert found["settings"]["rounds"] == rounds_wanted
    assert found["machine"]["devices"] == "cpu x 1"
    assert found["machine"]["versions"] == {"jax": "0"}
    assert found["machine"]["cpu_count"] >= 1


@pytest.fixture
def trivially(monkeypatch):
    """Every variant a trivial one, in its place in the table."""

    def replace(module, variants):
        def trivial_variants(*arguments):
            return [
                variant._replace(function=f"{TRIVIAL}:Trivial", arguments={}, process="all")
                for variant in variants(*arguments)
            ]

        monkeypatch.setattr(module, "ask_once", lambda variant: MACHINE | {"num_devices": 4})
        monkeypatch.setattr(module, "_variants", trivial_variants)

    return replace


def test_step_prints_and_writes(trivially, tmp_path, capsys):
    trivially(step, step._variants)
    step.step(step.StepConfig(nets=("a", "d"), rounds=2, output=tmp_path))
    found = _json(tmp_path, "step")
    _check_common(found, "step", 2)
    variants = found["results"]["a"]["variants"]
    assert {len(variant["rounds"]) for variant in variants.values()} == {2}
    assert variants.keys() | {step.NATIVE} == found["results"]["d"]["variants"].keys()
    # Trivial variants do 100 and 101 images, or products, a second.
    share = 100.5 / 128 * nets.step_flops(NETS["a"]) / (101 * 2 * 2048**3)
    assert found["results"]["a"]["share_of_peak"][step.CHOSEN] == pytest.approx(share)
    assert found["results"]["a"]["flops_per_step"] == nets.step_flops(NETS["a"])
    text = capsys.readouterr().out
    assert "% of peak" in text
    assert f"d: {step.NATIVE}" in text


def test_peers_prints_and_writes(trivially, monkeypatch, tmp_path, capsys):
    trivially(peers, peers._variants)
    judge = Variant("judge", f"{TRIVIAL}:Trivial", {})
    monkeypatch.setattr("experiments.benchmark.quality.JUDGE", judge)
    monkeypatch.setattr(peers, "_judge_arguments", lambda arguments: {})
    peers.peers(peers.PeersConfig(nets=("a",), rounds=3, output=tmp_path))
    found = _json(tmp_path, "peers")
    _check_common(found, "peers", 3)
    results = found["results"]["a"]
    assert results["ratios"][peers.TUNED] == [1.0, 1.0, 1.0]
    assert results["learned"][peers.EAGER]["agrees"]
    assert results["learned"].keys() == results["variants"].keys()
    text = capsys.readouterr().out
    assert "-100.00" in text
    assert "net a: the command takes +0 % time over the bare loop" in text


def test_evaluate_prints_and_writes(trivially, monkeypatch, tmp_path, capsys):
    trivially(evaluate, evaluate._variants)
    evaluate.evaluate(evaluate.EvaluateConfig(num_samples=(5, 50), rounds=2, output=tmp_path))
    found = _json(tmp_path, "evaluate")
    _check_common(found, "evaluate", 2)
    assert found["results"].keys() == {"5", "50"}
    assert found["results"]["50"]["agreement"]["difference"] == 0
    text = capsys.readouterr().out
    assert "s for 10,000 (extrapolated)" in text
    assert "99.5" in text  # 10,000 images at 100.5 a second


def test_scaling_prints_and_writes(trivially, tmp_path, capsys):
    trivially(scaling, scaling._variants)
    scaling.scaling(scaling.ScalingConfig(num_devices=4, rounds=2, output=tmp_path))
    found = _json(tmp_path, "scaling")
    _check_common(found, "scaling", 2)
    assert found["results"]["simulated"]
    points = {(point["kind"], point["devices"]): point for point in found["results"]["points"]}
    assert points.keys() == {(kind, n) for kind in ("strong", "weak") for n in (1, 2, 4)}
    assert points["strong", 4]["batch_size"] == 128
    assert points["weak", 4]["batch_size"] == 512
    assert points["weak", 4]["efficiency"] == pytest.approx([0.25, 0.25])
    assert points["weak", 4]["exchange_seconds"] == [0.125, 0.125]
    assert "simulated devices that share the cores" in capsys.readouterr().out


def test_scaling_measures_processes_of_this_machine_and_of_a_pod():
    here = scaling.ScalingConfig(num_devices=4, processes=scaling.Processes(num_processes=2))
    here.check()
    found = scaling._points(here, MACHINE | {"num_devices": 4})
    assert found == [Point(1, 1), Point(1, 2), Point(1, 4), Point(2, 1), Point(2, 2)]
    joined = scaling._peers(here, Point(2, 2))
    assert [peer["processes"]["process_id"] for peer in joined] == [0, 1]
    assert len({peer["processes"]["coordinator"] for peer in joined}) == 1
    pod = scaling.ScalingConfig(processes=scaling.Processes(distributed=True))
    pod.check()
    tpu = MACHINE | {"platform": "tpu", "num_devices": 32, "num_processes": 8}
    expected = [Point(1, 1), Point(8, 1), Point(8, 2), Point(8, 4)]
    assert scaling._points(pod, tpu) == expected
    assert scaling._peers(pod, Point(8, 4)) == (
        {"processes": dataclasses.asdict(scaling.Processes(distributed=True))},
    )


def test_startup_prints_and_writes(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(startup, "ask_once", lambda variant: MACHINE)
    monkeypatch.setattr(startup, "IMPORTS", ("json",))
    monkeypatch.setattr(
        startup,
        "command_line",
        lambda config, name, run, cache: [
            sys.executable,
            "-c",
            "import pathlib, sys, time; run = pathlib.Path(sys.argv[1]); run.mkdir(parents=True);"
            ' (run / \'metrics.jsonl\').write_text(\'{"step": 7, "split": "train"}\\n\');'
            " time.sleep(60)",
            str(run),
        ],
    )
    startup.startup(startup.StartupConfig(nets=("a",), rounds=2, later_step=7, output=tmp_path))
    found = _json(tmp_path, "startup")
    _check_common(found, "startup", 2)
    assert found["results"]["imports"].keys() == {"json"}
    starts = found["results"]["commands"]["a"]
    assert {kind: len(rounds_) for kind, rounds_ in starts.items()} == {"cold": 2, "cached": 2}
    assert all(round_["seconds"] > 0 for round_ in starts["cold"])
    assert "later_peak_bytes" in starts["cached"][-1]
    assert "train net a, first row of metrics, cached" in capsys.readouterr().out


def test_a_training_command_that_ends_before_its_first_step_is_said(tmp_path):
    words = [sys.executable, "-c", "import sys; sys.exit('error: no such data')"]
    with pytest.raises(Refused, match="no such data"):
        startup.first_step(words, tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("name", NETS)
def test_the_command_of_a_net_is_its_flags(name, tmp_path):
    config = startup.StartupConfig(dataset="mnist", manual_dir="there")
    words = startup.command_line(config, name, tmp_path / "run", tmp_path / "cache")
    assert words[:3] == [sys.executable, "-m", "experiments.train"]
    flags = tyro.cli(TrainConfig, args=words[3:], config=(tyro.conf.OmitArgPrefixes,))
    flags.check()
    net = NETS[name]
    assert (flags.hidden, flags.latent_dim, flags.batch_size, flags.model) == (
        net.hidden,
        net.latent_dim,
        net.batch_size,
        net.model,
    )
    assert flags.num_samples == net.num_samples
    assert (flags.objective == "iwae") == (net.num_samples > 1)
    assert flags.activation == net.activation
    assert (flags.dataset, flags.manual_dir) == ("mnist", "there")


# Failure


def test_other_images_are_refused():
    with pytest.raises(ValueError, match=r"8-bit images of shape \(28, 28, 1\), got uint8 \(8,"):
        check_images(np.zeros((3, 8, 8, 1), np.uint8))
    with pytest.raises(ValueError, match="got float32"):
        check_images(np.zeros((3, 28, 28, 1), np.float32))


@pytest.mark.parametrize(
    ("command", "config", "message"),
    [
        (step.step, step.StepConfig(rounds=0), "--rounds must be at least 1, got 0"),
        (step.step, step.StepConfig(segment_seconds=0.0), "--segment-seconds must be positive"),
        (peers.peers, peers.PeersConfig(verify_steps=-1), "--verify-steps must be 0 or more"),
        (peers.peers, peers.PeersConfig(verify_runs=0), "--verify-runs must be at least 1"),
        (evaluate.evaluate, evaluate.EvaluateConfig(num_samples=()), "--num-samples must be"),
        (scaling.scaling, scaling.ScalingConfig(batch_size=0), "--batch-size must be at least 1"),
    ],
)
def test_flags_that_mean_nothing_are_refused(command, config, message):
    with pytest.raises(Refused, match=message):
        command(config)
