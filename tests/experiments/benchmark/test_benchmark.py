"""The benchmark command: its tables, files and errors; speed itself is not tested."""

import dataclasses
import json
import sys

import pytest
import tyro

from experiments.benchmark import (
    __main__,
    evaluate,
    nets,
    peers,
    picture_readers,
    reading,
    scaling,
    startup,
    step,
    tables,
)
from experiments.benchmark.flags import Measurement
from experiments.benchmark.nets import NETS
from experiments.benchmark.quality import Training, verify, with_differences
from experiments.benchmark.scaling import Point
from experiments.benchmark.workers import Variant
from experiments.data.pictures import source
from experiments.flags.command import UserError

TRIVIAL = "tests.trivial_variants"
WHERE = {"accelerator": "cpu", "num_devices": 1, "dataset": "mnist_small", "manual_dir": None}
MACHINE = {"devices": "cpu x 1", "platform": "cpu", "num_devices": 1, "num_processes": 1,
           "process_index": 0, "versions": {"jax": "0"}}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,300"), (999.6, "1,000"), (10.0, "10.0"), (1.0, "1.00"), (0.5, "0.5"),
     (0.0001234, "0.000123"), (0, "0"), (None, "-")],
)  # fmt: skip
def test_numbers_are_written_to_three_digits(value, text):
    assert tables.number(value) == text


def test_variants_agree_when_they_are_near_the_median_of_all():
    found = with_differences(
        {
            "x": {"bounds": [-100.0, -99.0, -90.0]},
            "y": {"bounds": [-100.4, -99.4, -99.4]},
            "z": {"bounds": [-102.0, -98.7, -99.0]},
            "w": {"error": "e"},
        }
    )
    assert [found[name].get("agrees") for name in "xyzw"] == [True, True, True, None]
    assert [found[name]["difference"] for name in "xyz"] == pytest.approx([0.4, -0.4, 0.0])
    assert [found[name]["bound"] for name in "xyz"] == [-99.0, -99.4, -99.0]
    assert not with_differences({"x": {"bounds": [-1.0]}, "y": {"bounds": [-2.1]}})["x"]["agrees"]


class _Trained:
    """Stand-in for `Workers`: the judged bound of each run of a variant comes from a list."""

    def __init__(self, bounds):
        self._bounds = {name: iter(runs) for name, runs in bounds.items()}
        self.seeds = []

    def prepare(self, variant):
        assert variant.name == "judge"

    def ask(self, name, method, **arguments):
        if method == "train":
            self._last = name
            self.seeds.append(arguments["seed"])
        if method == "bound":
            return {"value": next(self._bounds[self._last])}
        return {}


@pytest.mark.parametrize(
    ("others", "runs", "agrees"),
    [
        ([-100.4], 1, True),
        ([-104.0, -100.0, -100.0], 3, True),
        ([-104.0, -100.0, -101.0], 3, False),
    ],
)
def test_all_variants_train_again_only_if_one_bound_is_off(others, runs, agrees):
    again = [-100.0] * 3
    workers = _Trained({"x": again, "y": again, "z": others})
    found = verify(workers, ["x", "y", "z"], Training(100, runs=3), {}, "net")
    assert found["z"]["agrees"] == agrees
    assert found["z"]["bounds"] == others
    assert workers.seeds == [seed for seed in range(runs) for _ in "xyz"]


OF_MODELS = ("--accelerator", "--dataset", "--manual-dir")


@pytest.mark.parametrize(
    ("name", "own"),
    [*((name, OF_MODELS) for name in ("step", "peers", "scaling", "evaluate", "startup")),
     ("reading", ("--num-images",))],
)  # fmt: skip
def test_help_says_what_is_measured_and_lists_the_shared_flags(name, own, capsys):
    with pytest.raises(SystemExit, match="0"):
        tyro.cli(__main__.Flags, args=[name, "--help"], config=(tyro.conf.OmitArgPrefixes,))
    text = capsys.readouterr().out
    for flag in ("--rounds", "--output", *own):
        assert flag in text
    assert "Measure" in text.split("─")[0]  # the description, above the boxes of flags


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
    """Replace every variant of a subcommand by a trivial one of the same name."""

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
    # Trivial variants process 100 and 101 images, or products, a second.
    share = 100.5 / 128 * nets.step_flops(NETS["a"]) / (101 * 2 * 2048**3)
    assert found["results"]["a"]["share_of_peak"][step.CHOSEN] == pytest.approx(share)
    assert found["results"]["a"]["flops_per_step"] == nets.step_flops(NETS["a"])
    text = capsys.readouterr().out
    assert "% of peak" in text
    assert f"d: {step.NATIVE}" in text


def test_peers_prints_and_writes(trivially, monkeypatch, tmp_path, capsys):
    trivially(peers, peers._variants)
    judge = Variant("judge", f"{TRIVIAL}:Judge", {})
    monkeypatch.setattr("experiments.benchmark.quality.JUDGE", judge)
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


def test_interrupted_peers_writes_what_it_measured(trivially, monkeypatch, tmp_path, capsys):
    trivially(peers, peers._variants)

    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(peers, "verify", stopped)
    with pytest.raises(KeyboardInterrupt):
        peers.peers(peers.PeersConfig(nets=("a", "b"), rounds=2, output=tmp_path))
    results = _json(tmp_path, "peers")["results"]
    assert results.keys() == {"a"}
    assert results["a"]["ratios"][peers.TUNED] == [1.0, 1.0]
    assert results["a"]["learned"] == {}
    assert f"a: {peers.TUNED}" in capsys.readouterr().out


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


def test_reading_prints_and_writes(trivially, monkeypatch, tmp_path, capsys):
    trivially(reading, reading._variants)
    reading.reading(reading.ReadingConfig(num_images=2000, rounds=2, output=tmp_path))
    found = _json(tmp_path, "reading")
    _check_common(found, "reading", 2)
    assert found["results"]["variants"].keys() == {
        *(reading.FIRST, reading.CACHED, reading.PILLOW, reading.TORCH)
    }
    assert found["results"]["same_pixels"]
    text = capsys.readouterr().out
    assert "s for 2,000" in text
    assert "19.9" in text  # 2,000 images at 100.5 a second
    assert "different pixels" not in text


def test_readers_return_the_same_pixels(monkeypatch, tmp_path):
    monkeypatch.setattr(source, "FEW", 0)
    folder = str(tmp_path / "pictures")
    picture_readers.Pictures(folder, 230)
    first = picture_readers.Ours(folder, str(tmp_path / "first"), True)
    cached = picture_readers.Ours(folder, str(tmp_path / "cached"), False)
    segments = [reader.segment() for reader in (first, cached, picture_readers.PillowLoop(folder))]
    assert {segment["images"] for segment in segments} == {230}
    assert len({segment["sum"] for segment in segments}) == 1
    assert len(list((tmp_path / "first").iterdir())) == 2


def test_first_step_shows_the_error_of_a_training_command_that_ends_early(tmp_path):
    words = [sys.executable, "-c", "import sys; sys.exit('error: no such data')"]
    with pytest.raises(UserError, match="no such data"):
        startup.first_step(words, tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    ("command", "config", "message"),
    [
        (step.step, step.StepConfig(rounds=0), "--rounds must be at least 1, got 0"),
        (step.step, step.StepConfig(segment_seconds=0.0), "--segment-seconds must be positive"),
        (peers.peers, peers.PeersConfig(verify_steps=-1), "--verify-steps must be 0 or more"),
        (peers.peers, peers.PeersConfig(verify_runs=0), "--verify-runs must be at least 1"),
        (peers.peers, peers.PeersConfig(dataset="mnist"), "--dataset must be left out, or --nets"),
        (evaluate.evaluate, evaluate.EvaluateConfig(num_samples=()), "--num-samples must be"),
        (scaling.scaling, scaling.ScalingConfig(batch_size=0), "--batch-size must be at least 1"),
        (reading.reading, reading.ReadingConfig(num_images=1000), "--num-images must be at least"),
    ],
)
def test_subcommand_rejects_invalid_flags(command, config, message):
    with pytest.raises(UserError, match=message):
        command(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [config for config in __main__.COMMANDS if issubclass(config, Measurement)]
)
def test_subcommand_rejects_missing_data_before_it_measures(config, tmp_path, capsys):
    flags = {"dataset": f"npz:{tmp_path / 'none.npz'}", "accelerator": "cpu"}
    flags |= {"nets": ("a",)} if config is peers.PeersConfig else {}
    with pytest.raises(UserError, match=r"there is no .*none.npz. Correct the path.$"):
        __main__.COMMANDS[config](config(output=tmp_path / "benchmarks", **flags))
    assert not any(tmp_path.iterdir())
    printed = capsys.readouterr()
    assert printed.out == ""
    assert {*printed.err.splitlines()} <= {"Waiting for a worker process ..."}
