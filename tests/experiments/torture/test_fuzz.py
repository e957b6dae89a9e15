"""Rejection of bad input in one line, and regression tests of each fault that fuzzing has found."""

import dataclasses
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import data as datasets
from experiments.encode import EncodeConfig, encode
from experiments.evaluate import EvaluateConfig, evaluate
from experiments.flags import memory
from experiments.flags.command import UserError, as_user_errors
from experiments.flags.config import TrainConfig
from experiments.flags.path_checks import require_folder, require_new_file
from experiments.flags.saved_flags import from_json, read, to_json
from experiments.machine import accelerators
from experiments.record.metrics import read_metrics
from experiments.replay import ReplayConfig, replay
from experiments.run import finish
from experiments.sample import SampleConfig, sample
from experiments.torture.case import Case
from experiments.torture.fuzz import CATEGORIES, bad_commands, bad_input
from experiments.torture.rejection import Ending, contents, why_lost
from experiments.train import train


@pytest.mark.slow
def test_commands_reject_90_cases_of_bad_input(tmp_path):
    outcome = bad_input(tmp_path, 90)
    assert outcome.survived == outcome.tries == 90, outcome.note
    assert all(f"{name};" in f"{outcome.note};".replace(",", ";") for name in CATEGORIES)


@pytest.mark.slow
def test_separate_processes_reject_bad_input(tmp_path):
    outcome = bad_commands(tmp_path, 3)
    assert outcome.survived == outcome.tries, outcome.note


CASE = Case("train", ("--seed=-1",), ("--seed",))
RIGHT = Ending(2, "", "error: --seed must be 0 or more, got -1.\n", 1.0, 1.0)


@pytest.mark.parametrize(
    ("ending", "after", "why"),
    [
        (RIGHT, {}, ""),
        (RIGHT._replace(errors="x\nFor full helptext, see"), {}, ""),
        (RIGHT._replace(code=0), {}, "exit code 0"),
        (RIGHT._replace(code=1), {}, "exit code 1"),
        (RIGHT._replace(errors="Traceback (most recent call last)\nKeyError: 3"), {}, "traceback"),
        (RIGHT, {"runs": "folder"}, "runs changed on disk"),
        (RIGHT._replace(errors="error: one\nerror: --seed."), {}, "not one line"),
        (RIGHT._replace(errors="a warning\nerror: --seed."), {}, "not one line"),
        (RIGHT._replace(errors=""), {}, "not one line"),
        (RIGHT._replace(errors="error: no."), {}, "does not name --seed"),
        (RIGHT._replace(errors="error: --seed: 'int' object is not iterable."), {}, "internals"),
        (RIGHT._replace(errors="error: --seed: [Errno 2] No such file."), {}, "internals"),
        (RIGHT._replace(errors="error: --seed"), {}, "not a sentence"),
        (RIGHT._replace(processor_seconds=6.0), {}, "rejected only after"),
        (RIGHT._replace(seconds=61.0), {}, "rejected only after"),
    ],
)
def test_why_lost_names_the_fault_of_a_rejection(ending, after, why):
    found = why_lost(CASE, ending, {}, after)
    assert why in found
    assert bool(found) == bool(why)


def test_contents_change_with_a_files_time_and_content(tmp_path):
    path = tmp_path / "a" / "file"
    path.parent.mkdir()
    path.write_text("one")
    (tmp_path / "link").symlink_to("nowhere")
    before = contents(tmp_path)
    assert set(before) == {"a", "a/file", "link"}
    os.utime(path, ns=(1, 1))
    touched = contents(tmp_path)
    assert touched["a/file"] != before["a/file"]
    path.write_text("two")
    os.utime(path, ns=(1, 1))
    assert contents(tmp_path)["a/file"] != touched["a/file"]


# Faults found by fuzzing


class Opened:
    """Object that makes a folder if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_array_files_are_never_unpickled(tmp_path):
    trap = tmp_path / "unpickled"
    objects = np.array([[Opened(trap), 1]], object)
    np.save(tmp_path / "a.npy", objects)
    np.savez(tmp_path / "a.npz", x=objects)
    np.savez(tmp_path / "labels.npz", x=np.zeros((4, 2)), y=objects)
    (tmp_path / "whole.npy").write_bytes(pickle.dumps(objects))
    (tmp_path / "whole.npz").write_bytes(pickle.dumps(objects))
    for name in ("npy:a.npy", "npz:a.npz", "npz:labels.npz", "npy:whole.npy", "npz:whole.npz"):
        form, _, file = name.partition(":")
        with pytest.raises(ValueError, match="plain arrays, without Python objects"):
            datasets.load(f"{form}:{tmp_path / file}")
    assert not trap.exists()
    np.load(tmp_path / "a.npy", allow_pickle=True)
    assert trap.exists()  # the trap works


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("latent_dim", "32", r'run/config.json: latent_dim must be an integer, got "32"'),
        ("latent_dim", True, "latent_dim must be an integer, got true"),
        ("latent_dim", -3, r"config.json: --latent-dim must be at least 1, got -3"),
        ("beta", None, "beta must be a number, got null"),
        ("quiet", 1, "quiet must be true or false, got 1"),
        ("hidden", [4, "x"], r"hidden must be a list of integers or null, got \[4, "),
        ("likelihood", "gauss", "likelihood must be auto or bernoulli or .*, got \"gauss\""),
        ("sigma", [], "sigma must be a number or auto or learned or .*"),
        ("run", 3, "run must be text or null, got 3"),
        ("processes", {}, "has 'processes', which this release does not know"),
        ("seed", 2**31, "--seed must be below 2,147,483,648"),
        ("learning_rate", float("nan"), "--learning-rate must be positive, got nan"),
    ],
)  # fmt: skip
def test_error_for_an_edited_config_names_file_and_field(name, value, message, tmp_path):
    path = tmp_path / "run" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(to_json(TrainConfig()) | {name: value}))
    with pytest.raises(ValueError, match=message):
        read(path)


def test_config_accepts_an_integer_as_a_number_and_any_run_folder():
    values = to_json(TrainConfig()) | {"beta": 2, "run": ".", "sigma": "learned"}
    assert from_json(values).beta == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"3", b"\xff", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"],
)
def test_error_for_a_config_that_is_not_an_object_names_the_file(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json must be a JSON object, .* gave: "):
        read(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"seed": 2**31}, "--seed must be below 2,147,483,648"),
        ({"hidden": (4, 10**12)}, "--hidden must be below"),
        ({"learning_rate": 1e39}, "--learning-rate must be a number below 3.4e"),
        ({"sigma": float("nan"), "likelihood": "gaussian"}, "--sigma must be a number below"),
        ({"run": Path("")}, "--run must be a folder of its own, with a name"),
        ({"run": Path("runs/..")}, "--run must be a folder of its own, with a name"),
    ],
)
def test_flags_reject_numbers_beyond_32_bits_and_unnamed_runs(flags, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**flags).check()


@pytest.mark.parametrize(
    ("dataset", "model"),
    [("npz:../../x.npz", "mlp"), ("folder:a\\..\\b", "../../evil:f"), ("..", "a\\b:f"), (":", "/")],
)
def test_default_folder_is_in_runs_for_all_flags(dataset, model):
    folder = TrainConfig(dataset=dataset, model=model).folder
    assert folder.parent == Path("runs")
    assert folder.name not in ("", ".", "..")
    assert "\\" not in folder.name


@pytest.mark.parametrize(
    "name", ["file", "file/run", "loop", "loop/run", "x" * 300, "a/" + "y" * 300]
)
def test_require_folder_rejects_an_impossible_folder_and_makes_none(name, tmp_path):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "loop").symlink_to("loop")
    before = contents(tmp_path)
    with pytest.raises(
        ValueError, match=r"--run must be a folder, or a path where .* is not: .*Fix"
    ):
        require_folder(tmp_path / name, "--run")
    assert contents(tmp_path) == before
    require_folder(tmp_path / "new" / "run", "--run")
    assert contents(tmp_path) == before


def test_commands_reject_an_unwritable_output_before_they_compute(whole_run, tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UserError, match=r"--output must be a file; .* is something else"):
        encode(EncodeConfig(whole_run.run, output=tmp_path))
    with pytest.raises(UserError, match=r"--output must be a folder, .*file is not a folder"):
        sample(SampleConfig(whole_run.run, output=tmp_path / "file"))
    require_new_file(tmp_path / "new.npz", "--output")


def test_as_user_errors_turns_an_os_error_into_words(tmp_path):
    with pytest.raises(UserError) as raised, as_user_errors():
        (tmp_path / "nowhere" / "deeper").mkdir()
    assert "Errno" not in str(raised.value)
    assert "cannot use " in str(raised.value)
    assert "deeper: No such file or directory. Fix it" in str(raised.value)


@pytest.mark.parametrize("form", ["npy", "npz"])
def test_readers_reject_a_pipe_without_waiting(form, tmp_path):
    os.mkfifo(tmp_path / f"pipe.{form}")
    with pytest.raises(ValueError, match=r"pipe.* must be a file"):
        datasets.load(f"{form}:{tmp_path}/pipe.{form}")
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"1 of 1 are not: .*a.png must be a file"):
        datasets.load(f"folder:{tmp_path}")
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match=r"metrics.jsonl must be a file"):
        read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("shape", ["(" + "9" * 30 + ", 2)", "(", "[" * 5000])
def test_npy_reader_rejects_headers_that_crash_numpy(shape, tmp_path):
    """numpy raises OverflowError, an error of tokenize, and MemoryError."""
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + "}\n"
    length = len(header).to_bytes(2, "little")
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + length + header.encode())
    with pytest.raises(ValueError, match=r"a.npy must be a whole .npy file of plain arrays"):
        datasets.load(f"npy:{tmp_path}/a.npy")


def test_npz_reader_rejects_labels_beyond_32_bits(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2)), y=np.arange(4) + 2**40)
    with pytest.raises(
        ValueError, match=r"The labels y of x in .* must have integers that fit 32 bits"
    ):
        datasets.load(f"npz:{tmp_path}/a.npz")


def test_folder_accepts_a_large_picture_and_rejects_an_absurd_one(tmp_path, monkeypatch):
    for i in range(2):
        Image.fromarray(np.full((20, 30), i, np.uint8)).save(tmp_path / f"{i}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Pillow warns, an error in these tests
    assert datasets.load(f"folder:{tmp_path}").train.shape == (1, 20, 30, 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(ValueError, match="2 of 2 are not"):
        datasets.load(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    "row",
    [{"step": "3"}, {"step": None}, {"step": True}, {"step": -1}, {"split": None}, {"split": []},
     {"elbo": "x"}, {"elbo": float("nan")}],
)  # fmt: skip
def test_commands_reject_edited_metrics_before_they_write(row, whole_run, tmp_path):
    config = dataclasses.replace(whole_run, run=tmp_path / "run")
    shutil.copytree(whole_run.run, config.run)
    path = config.run / "metrics.jsonl"
    right = {"step": 1, "split": "validation", "elbo": -3.0}
    path.write_text(json.dumps(right | row) + "\n" + path.read_text())
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"a line must be .*, line 1 of .*metrics.jsonl is"):
        train(config)
    with pytest.raises(UserError, match=r"line 1 of .*metrics.jsonl"):
        replay(ReplayConfig(config.run, 5))
    assert contents(tmp_path) == before


def test_commands_reject_a_run_with_a_missing_file_and_write_nothing(whole_run, tmp_path):
    config = dataclasses.replace(whole_run, run=tmp_path / "run")
    shutil.copytree(whole_run.run, config.run)
    (config.run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"has no metrics\.jsonl"):
        replay(ReplayConfig(config.run, 5))
    (config.run / "config.json").unlink()
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"must have its config\.json"):
        train(config)
    with pytest.raises(UserError, match="no run at"):
        evaluate(EvaluateConfig(config.run))
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_train_measures_unreadable_results_again(whole_run, tmp_path, monkeypatch):
    config = dataclasses.replace(whole_run, run=tmp_path / "run")
    shutil.copytree(whole_run.run, config.run)
    monkeypatch.setattr(finish, "_measure", lambda *_: {"device": "measured again"})
    for text in ('{"steps": 60, "eval', "[]"):
        (config.run / "results.json").write_text(text)
        assert train(config) == 0
        results = json.loads((config.run / "results.json").read_text())
        assert results.pop("data")["train"]["shape"] == [264, 8, 8, 1]
        assert results == {"steps": 60, "eval_samples": 4, "device": "measured again"}


@pytest.mark.parametrize("count", [0, -1, 257, 10**9])
def test_start_rejects_an_impossible_number_of_devices(count):
    with pytest.raises(ValueError, match=f"--num-devices must be from 1 to 256, got {count}"):
        accelerators.start("auto", count)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(:", "invalid syntax"),
        ("raise RuntimeError('at import')", "at import"),
        (
            "def f():\n    return None",
            "must return a jaxvae.VAE when called with nothing; it returned",
        ),
        (
            "def f(data_shape):\n    raise KeyError('no')",
            "called with data_shape; it gave: KeyError",
        ),
        ("def f(more):\n    return None", "it gave: TypeError"),
        ("f = 3", "is not a callable object"),
    ],
)
def test_train_rejects_an_invalid_user_defined_model(source, message, small, tmp_path, monkeypatch):
    name = f"own_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"--model={name}:f.*{message}"):
        train(
            dataclasses.replace(
                small, model=f"{name}:f", hidden=None, latent_dim=TrainConfig.latent_dim
            )
        )
    assert not (tmp_path / "runs").exists()


def test_train_shows_the_library_error_for_dip_with_a_flow(small, tmp_path):
    flags = {"regularizer": "dip_i", "posterior": "iaf"}
    with pytest.raises(UserError, match=r"dip: the posterior must have a mean in closed form"):
        train(dataclasses.replace(small, run=tmp_path / "run", **flags))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"latent_dim": 10**9}, "parameters and .* Lower --latent-dim, --hidden"),
        ({"hidden": (4, 10**9)}, "parameters and .* Lower --latent-dim, --hidden"),
        (
            {"model": "resnet", "hidden": None, "channels": (2**15,), "latent_channels": 1}
            | {"latent_dim": TrainConfig.latent_dim},
            "Lower --latent-channels, --channels or --blocks",
        ),
        ({"posterior": "full_covariance", "latent_dim": 2**31 - 1}, "--latent-dim=2147483647 must"),
        ({"batch_size": 2**30}, "--batch-size=1073741824 must fit .* Lower --batch-size"),
        ({"prior": "vamp", "num_components": 2**30}, "--num-components=1073741824 must fit"),
        ({"objective": "iwae", "num_samples": 2**31 - 1}, "--num-samples=2147483647 must fit"),
    ],
)
def test_train_rejects_what_exceeds_memory_before_it_makes_a_folder(
    flags, message, small, tmp_path, monkeypatch
):
    monkeypatch.setattr(memory, "memory_bytes", lambda: 2**33)
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(small, run=tmp_path / "run", **flags))
    assert not (tmp_path / "run").exists()
