"""The training command: results, stopping and continuing, own models, and errors."""

import dataclasses
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import experiments.run.build
from experiments.evaluate import EvaluateConfig, evaluate
from experiments.flags.command import UserError
from experiments.record.metrics import read_metrics
from experiments.replay import ReplayConfig, replay
from experiments.run.loop import Loop, training
from experiments.train import train
from jaxvae.checkpoints import Checkpoints, load
from jaxvae.training.step import make_train_step
from tests.files import ROOT


def _rows(run):
    return [
        {name: value for name, value in row.items() if name != "timing"}
        for row in read_metrics(run / "metrics.jsonl")
    ]


def _advance(config, num_steps, num_devices=1):
    """Train up to a step and stop there, without final numbers and pictures."""
    config = dataclasses.replace(config, num_steps=num_steps, num_devices=num_devices)
    with training(config, jax.devices()[:num_devices]) as loop:
        assert loop.train() == 0


def _trained_and_continued(config):
    """Train 30 steps, continue the run, and return its results."""
    with training(config, jax.devices()[:1]) as loop:
        assert loop.train() == 0
    longer = {"num_epochs": 3.0} if config.num_epochs else {"num_steps": 40}
    assert train(dataclasses.replace(config, **longer)) == 0
    results = json.loads((config.run / "results.json").read_text())
    assert np.isfinite(results["test"]["elbo"]["value"])
    assert all(row["elbo"] is not None for row in _rows(config.run))
    return results


def _same_parameters(one, other):
    jax.tree.map(np.testing.assert_array_equal, load(one, "latest")[1], load(other, "latest")[1])


def test_a_run_writes_its_numbers_pictures_and_report(whole_run):
    run = whole_run.run
    results = json.loads((run / "results.json").read_text())
    assert results["test"]["num_examples"] == 33
    numbers = results["test"]
    total = numbers["reconstruction"]["value"] - numbers["kl"]["value"]
    assert numbers["elbo"]["value"] == pytest.approx(total, rel=1e-6)
    assert numbers["elbo"]["standard_error"] > 0
    assert (run / "report.html").stat().st_size > 10_000
    names = {path.stem for path in (run / "pictures").glob("*.png")}
    assert {"samples", "reconstructions", "interpolations", "traversals"} <= names
    steps = [row["step"] for row in _rows(run) if row["split"] == "train"]
    assert steps == list(range(5, 61, 5))
    assert [row["step"] for row in _rows(run) if row["split"] == "validation"] == [25, 50]


def test_training_raises_the_bound(whole_run):
    rows = [row for row in _rows(whole_run.run) if row["split"] == "train"]
    assert rows[-1]["elbo"] > rows[0]["elbo"] + 2


def test_a_run_stopped_at_any_step_and_continued_equals_an_uninterrupted_run(
    whole_run, small, tmp_path
):
    """A killed process leaves rows after its last checkpoint, too, the last of them incomplete."""
    config = dataclasses.replace(small, run=tmp_path / "run")
    for num_steps in (1, 23, 25):
        _advance(config, num_steps)
    with (config.run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "split": "train", "elbo": 1.0, "timing": {}}\n{"step": 3')
    _advance(config, 60)
    assert _rows(config.run) == _rows(whole_run.run)
    _same_parameters(config.run, whole_run.run)


@pytest.mark.long
def test_other_device_counts_continue_the_run(whole_run, small, tmp_path):
    config = dataclasses.replace(small, run=tmp_path / "run")
    for num_steps, num_devices in ((20, 4), (40, 2), (60, 1)):
        _advance(config, num_steps, num_devices)
    ours, theirs = load(config.run, "latest")[1], load(whole_run.run, "latest")[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


def test_the_step_is_traced_once_and_read_once_per_dispatch(small, tmp_path, monkeypatch):
    traces, dispatches, reads = [], [], []

    def counted_step(*arguments, **options):
        step = make_train_step(*arguments, **options)
        return lambda *inputs: traces.append(1) or step(*inputs)

    def counted(self, chunk):
        dispatch(self, chunk)
        dispatches.append(len(self._unread))

    dispatch = Loop._dispatch
    monkeypatch.setattr(Loop, "_dispatch", counted)
    device_get = jax.device_get
    monkeypatch.setattr(experiments.run.build, "make_train_step", counted_step)
    monkeypatch.setattr(jax, "device_get", lambda tree: reads.append(1) or device_get(tree))
    config = dataclasses.replace(small, run=tmp_path / "run", num_steps=73, eval_every=100)
    with training(config, jax.devices()[:1]) as loop:
        before = len(reads)
        assert loop.train() == 0
        saves = 2  # the state, and what is on the host already
        assert len(reads) - before - saves == len(dispatches) > 1
        assert loop.images_per_second > 0
    assert max(dispatches) == 2  # one is read while the next one runs
    assert len(traces) == 1


@pytest.mark.slow
def test_simulated_devices_have_one_dispatch_at_a_time(small, tmp_path, monkeypatch):
    waiting = []

    def counted(self, chunk):
        dispatch(self, chunk)
        waiting.append(len(self._unread))

    dispatch = Loop._dispatch
    monkeypatch.setattr(Loop, "_dispatch", counted)
    config = dataclasses.replace(small, run=tmp_path / "run", num_steps=5)
    with training(config, jax.devices()[:2]) as loop:
        assert loop.train() == 0
    assert max(waiting) == 1


@pytest.mark.slow
def test_parameters_that_an_update_made_infinite_are_never_saved(small, tmp_path, capsys):
    """All later steps are skipped, and the last checkpoint is finite."""
    config = dataclasses.replace(small, run=tmp_path / "run", num_steps=25)
    assert train(config) == 0

    longer = dataclasses.replace(config, num_steps=26, quiet=False)
    with training(longer, jax.devices()[:1]) as loop:
        infinite = jax.tree.map(lambda leaf: leaf + np.inf, loop.state.params)
        loop.state = loop.state._replace(params=infinite)
        assert loop.train() == 1
    assert "last checkpoint is step 25" in capsys.readouterr().out
    assert Checkpoints(config.run / "checkpoints").latest_step() == 25


@pytest.mark.slow
def test_a_signal_saves_and_the_same_command_continues(whole_run, small, tmp_path):
    flags = [f"--run={tmp_path / 'run'}", f"--dataset={small.dataset}", "--latent-dim=2"]
    flags += ["--hidden=16", "--batch-size=20", "--eval-every=25", "--log-every=5"]
    flags += ["--eval-samples=4", "--num-steps=1000000", "--learning-rate=0.01"]
    command = [sys.executable, "-m", "experiments.train", *flags]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_bytes()) > 2000):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert b"Traceback" not in errors
    step = Checkpoints(tmp_path / "run" / "checkpoints").latest_step()
    config = dataclasses.replace(small, run=tmp_path / "run", num_steps=max(60, step), quiet=False)
    assert train(config) == 0
    rows = _rows(config.run)
    assert rows[: len(_rows(whole_run.run))] == _rows(whole_run.run)
    steps = [row["step"] for row in rows if row["split"] == "train"]
    assert steps == list(range(5, config.num_steps + 1, 5))


@pytest.mark.long
def test_own_model_functions_train_and_are_rebuilt(small, tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "import jaxvae\n"
        "def tiny(data_shape, latent_dim):\n"
        "    return jaxvae.mlp_vae(data_shape=data_shape, latent_dim=latent_dim, hidden=(4,))\n"
    )
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(
        small, run=tmp_path / "run", model="my_networks:tiny", hidden=None, num_steps=5
    )
    assert train(config) == 0
    with pytest.raises(ValueError, match="built by 'my_networks:tiny', which is not one of"):
        load(config.run)
    models = {"my_networks:tiny": importlib.import_module("my_networks").tiny}
    _, params = load(config.run, models=models)
    assert params["encoder"]["params"]["Dense_0"]["kernel"].shape == (64, 4)
    named = {"num_samples": 2, "num_devices": 1, "model": "my_networks:tiny"}
    evaluate(EvaluateConfig(config.run, **named))
    with pytest.raises(UserError, match="add --model='my_networks:tiny'"):
        evaluate(EvaluateConfig(config.run, **named | {"model": None}))
    replay(ReplayConfig(config.run, 5, model="my_networks:tiny"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"model": "conv", "hidden": (4,)},
        {"model": "resnet", "hidden": None, "channels": (4, 8), "latent_channels": 2,
         "latent_dim": 32, "rows_at_once": 5},
        {"likelihood": "gaussian", "sigma": "optimal", "optimizer": "sgd", "gradient_clip": 1.0,
         "learning_rate": 1e-3},
        {"binarize": "static", "num_validation": 0, "optimizer": "adamax", "num_epochs": 2.0,
         "posterior": "categorical", "num_categories": 3, "estimator": "vimco", "num_samples": 2},
    ],
)  # fmt: skip
def test_flags_train_to_finite_numbers_and_continue(changes, small, tmp_path):
    config = dataclasses.replace(small, run=tmp_path / "run", num_steps=30, **changes)
    results = _trained_and_continued(config)
    assert ("sigma_squared" in results["test"]) == (config.likelihood == "gaussian")


@pytest.mark.slow
def test_numbers_include_a_fixed_sigma_and_a_discriminator(small, tmp_path):
    options = {"likelihood": "gaussian", "sigma": 0.3, "regularizer": "density_ratio"}
    options |= {"schedule": "cosine", "warmup_steps": 5, "beta": 0.5, "beta_warmup_steps": 10}
    options |= {"average_decay": None, "accumulate_steps": 2}
    config = dataclasses.replace(small, run=tmp_path / "run", num_steps=30, **options)
    number = _trained_and_continued(config)["test"]["sigma_squared"]
    trained = [row for row in _rows(config.run) if row["split"] == "train"]
    assert all(np.isfinite(row["discriminator_loss"]) for row in trained)
    assert number["value"] == pytest.approx(0.09, rel=1e-6)
    page = (config.run / "report.html").read_text()
    assert re.search(r"sigma² of p\(x\|z\)</th>(<td[^>]*><span>0\.09.*){2}", page)


@pytest.mark.long
def test_a_flow_and_a_learned_prior_are_trained_and_rebuilt(small, tmp_path):
    """The checkpoint is enough: the initial pseudo-inputs are no argument of the recipe."""
    options = {"objective": "iwae", "estimator": "dreg", "num_samples": 3, "posterior": "iaf"}
    options |= {"prior": "vamp", "num_components": 4, "likelihood": "discretized_logistic"}
    options |= {"optimizer": "adamw", "weight_decay": 0.01}
    config = dataclasses.replace(small, run=tmp_path / "run", num_steps=30, **options)
    trained = _trained_and_continued(config)["test"]
    evaluate(EvaluateConfig(config.run, num_samples=4, num_devices=1))
    path = config.run / "evaluations" / "test-best-4.json"
    numbers = json.loads(path.read_text())["test"]
    for name in ("elbo", "log_likelihood"):  # other draws of the same model
        error = np.hypot(numbers[name]["standard_error"], trained[name]["standard_error"])
        assert abs(numbers[name]["value"] - trained[name]["value"]) < 4 * error


def test_a_run_that_skips_every_step_is_stopped(small, tmp_path, capsys):
    config = dataclasses.replace(
        small, run=tmp_path / "run", learning_rate=1e38, max_skipped=5, quiet=False
    )
    assert train(config) == 1
    output = capsys.readouterr().out
    assert int(re.search(r"(\d+) steps in a row", output)[1]) >= 5
    assert "--learning-rate" in output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_dim": 3}, r"holds another run: --latent-dim is 3 now and 2 there"),
        ({"seed": 1, "beta": 2.0}, r"--beta is 2.0 now and 1.0 there; --seed is 1 now and 0"),
        ({"batch_size": 21, "num_devices": 8}, r"--batch-size is 21 now"),
        ({"precision": "bfloat16"}, r"--precision is bfloat16 now and float32 there"),
    ],
)
def test_a_folder_with_another_configuration_is_rejected(changes, message, whole_run):
    before = {path: path.stat().st_mtime_ns for path in whole_run.run.rglob("*")}
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(whole_run, **changes))
    assert {path: path.stat().st_mtime_ns for path in whole_run.run.rglob("*")} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, r"--num-samples must be at least 1, got 0"),
        ({"learning_rate": -1.0}, r"--learning-rate must be positive, got -1"),
        ({"objective": "iwae", "beta": 2.0}, r"--beta goes with --objective=elbo"),
        ({"weight_decay": 0.1}, r"--weight-decay goes with --optimizer=adamw"),
        ({"sigma": 0.1, "likelihood": "bernoulli"}, r"--sigma goes with --likelihood=gaussian"),
        ({"likelihood": "gaussian", "sigma": -0.1}, r"sigma must be a positive number"),
        ({"model": "conv", "activation": "tanh"}, r"--activation goes with --model=mlp, not conv"),
        ({"model": "transformer"}, r"--model must be mlp, conv, resnet or package.module:function"),
        ({"model": "nowhere:f"}, r"No module named 'nowhere'.*package.module:function"),
        ({"accelerator": "tpu"}, r"--accelerator=tpu, but jax finds only cpu x 8"),
        ({"num_devices": 9}, r"--num-devices=9, but there are only cpu x 8"),
        ({"batch_size": 30, "num_devices": 4}, r"28 or 32"),
        ({"dataset": "npz:/nowhere.npz"}, r"nowhere.npz"),
        ({"estimator": "dreg"}, r"Use 'stl'"),
        ({"objective": "iwae", "estimator": "stl"}, r"biased"),
        ({"posterior": "categorical"}, r"carry no gradient"),
        ({"objective": "miwae", "num_samples": 4, "num_groups": 3}, r"num_groups must divide"),
        (
            {"beta_schedule": "cyclical"},
            r"--beta-schedule has no effect without --beta-warmup",
        ),
        ({"regularizer_weight": 2.0}, r"--regularizer-weight has no effect without --regularizer"),
    ],
)
def test_invalid_flags_give_one_line_and_write_nothing(changes, message, small, tmp_path):
    config = dataclasses.replace(small, run=tmp_path / "run", **changes)
    with pytest.raises(UserError, match=message) as raised:
        train(config)
    assert "\n" not in str(raised.value)
    assert not config.run.exists()
