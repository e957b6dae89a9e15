"""Commands that use a trained run (evaluate, sample, encode), and the frame of all commands."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.encode import EncodeConfig, encode
from experiments.evaluate import EvaluateConfig, evaluate
from experiments.flags.command import UserError
from experiments.record.progress import without_announcements
from experiments.sample import SampleConfig, sample
from experiments.train import train
from jaxvae.checkpoints import load
from tests.files import ROOT


@pytest.mark.slow
def test_evaluate_writes_the_table_that_it_prints(whole_run, capsys):
    """It does not depend on batches and devices."""
    results, folder = [], whole_run.run / "evaluations"
    for batch_size, num_devices in ((33, 1), (10, 4)):
        sizes = {"batch_size": batch_size, "num_devices": num_devices}
        evaluate(EvaluateConfig(whole_run.run, num_samples=8, **sizes))
        with np.load(folder / "test-best-8.npz") as file:
            results.append({name: file[name] for name in file})
    one, arrays = results
    for name, values in one.items():
        np.testing.assert_allclose(arrays[name], values, rtol=2e-5, atol=2e-5, err_msg=name)
    numbers = json.loads((folder / "test-best-8.json").read_text())["test"]
    assert numbers["num_examples"] == len(arrays["elbo"]) == 33
    bound = arrays["log_likelihood"].astype(np.float64)
    assert numbers["log_likelihood"]["value"] == pytest.approx(bound.mean())
    error = bound.std(ddof=1) / np.sqrt(33)
    assert numbers["log_likelihood"]["standard_error"] == pytest.approx(error)
    bits = -bound.mean() / (64 * np.log(2))
    assert numbers["bits_per_dimension"]["value"] == pytest.approx(bits)
    assert "33 examples" in capsys.readouterr().out


def test_encode_gives_the_posterior_of_every_example(whole_run, tmp_path):
    path = tmp_path / "codes" / "all.npz"
    encode(EncodeConfig(whole_run.run, split="train", output=path, batch_size=100, num_devices=1))
    with np.load(path) as file:
        codes = {name: file[name] for name in file}
    assert {name: array.shape for name, array in codes.items()} == {
        "mean": (264, 2),
        "log_scale": (264, 2),
        "sample": (264, 2),
        "index": (264,),
    }
    standardized = (codes["sample"] - codes["mean"]) / np.exp(codes["log_scale"])
    count = standardized.size
    assert abs(standardized.mean()) < 4 / np.sqrt(count)
    assert abs(standardized.var() - 1) < 4 * np.sqrt(2 / count)


@pytest.mark.slow
def test_sample_draws_pictures_and_arrays(whole_run, tmp_path):
    sizes = {"num_samples": 5, "num_examples": 4, "num_steps": 3}
    sample(SampleConfig(whole_run.run, output=tmp_path / "out", **sizes))
    shapes = {
        path.stem: np.load(path)[path.stem].shape for path in (tmp_path / "out").glob("*.npz")
    }
    assert shapes["samples"] == (5, 8, 8, 1)
    assert shapes["originals"] == shapes["reconstructions"] == (4, 8, 8, 1)
    assert shapes["interpolations"] == (2, 3, 8, 8, 1)
    assert shapes["traversals"] == (2, 3, 8, 8, 1)
    vae, params = load(whole_run.run)
    with np.load(tmp_path / "out" / "originals.npz") as file:
        originals = file["originals"]
    mean = lambda x: vae.decode(params, vae.encode(params, x).mean()).mean()
    means = jax.jit(jax.vmap(mean))(originals)
    with np.load(tmp_path / "out" / "reconstructions.npz") as file:
        np.testing.assert_allclose(file["reconstructions"], means, rtol=1e-5, atol=1e-6)
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


@pytest.mark.parametrize(
    ("command", "config", "message"),
    [
        (evaluate, EvaluateConfig(Path("nowhere")), r"no run at nowhere: give the folder"),
        (evaluate, EvaluateConfig(Path(), num_samples=0), r"--num-samples must be at least 1"),
        (sample, SampleConfig(Path("nowhere")), r"no run at nowhere"),
        (sample, SampleConfig(Path(), num_steps=1), r"--num-steps must be at least 2, got 1"),
        (encode, EncodeConfig(Path("nowhere")), r"no run at nowhere"),
        (encode, EncodeConfig(Path(), batch_size=0), r"--batch-size must be at least 1"),
    ],
)
def test_invalid_flags_and_missing_runs_are_rejected(
    command, config, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        command(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_split_without_examples_is_rejected(small, tmp_path):
    run = tmp_path / "run"
    options = {"num_validation": 0, "num_steps": 1, "eval_samples": 1}
    train(dataclasses.replace(small, run=run, **options))
    before = set(run.rglob("*"))
    for command, config in ((evaluate, EvaluateConfig), (encode, EncodeConfig)):
        message = r"--split must be a split that has examples, got validation"
        with pytest.raises(UserError, match=message) as raised:
            command(config(run, split="validation", num_devices=1))
        assert "\n" not in str(raised.value)
    assert set(run.rglob("*")) == before


def test_data_of_another_shape_are_rejected(whole_run, tmp_path):
    path = tmp_path / "wide.npz"
    np.savez(path, images=np.full((20, 9, 8), 250, np.uint8))
    config = EncodeConfig(whole_run.run, dataset=f"npz:{path}", num_devices=1)
    with pytest.raises(UserError, match=r"examples of shape \[8, 8, 1\].* has \[9, 8, 1\]"):
        encode(dataclasses.replace(config))


@pytest.mark.parametrize("command", ["train", "evaluate", "sample", "encode"])
def test_help_describes_flags_and_starts_no_backend(command):
    program = (
        "import sys, runpy\n"
        f"sys.argv = ['{command}', '--help']\n"
        f"try: runpy.run_module('experiments.{command}', run_name='__main__')\n"
        "finally: print('jax' in sys.modules, file=sys.stderr)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert result.stderr.strip() == "False"
    assert f"python -m experiments.{command}" in result.stdout
    assert "--accelerator" in result.stdout


def test_a_user_error_gives_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "experiments.train", f"--run={tmp_path / 'run'}"]
    result = subprocess.run(
        [*command, "--dataset=npz:nowhere.npz"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 2
    errors = without_announcements(result.stderr)
    assert errors.startswith("error: ")
    assert len(errors.strip().splitlines()) == 1
