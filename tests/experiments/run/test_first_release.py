"""Compatibility with a run of the first release, 0.1.0, stored in first_release.zip.

That release made it in an empty folder. It includes the evaluation, the samples and (as
later.jsonl) the rows of a copy that was continued to 30 steps:

python -c "import numpy as np; x = np.zeros((330, 8, 8), np.uint8); i = np.arange(330)
x[i, i % 8] = 250; np.savez_compressed('bars.npz', images=x)"
python -m experiments.train --run=run --dataset=npz:bars.npz --hidden 4 --latent-dim=2
    --batch-size=20 --learning-rate=0.01 --eval-every=10 --log-every=5 --eval-samples=4
    --num-devices=1 --accelerator=cpu --quiet --num-steps=20
python -m experiments.evaluate run --num-samples=4 --batch-size=33 --num-devices=1
python -m experiments.sample run --num-samples=5 --num-examples=4 --num-steps=3

Pictures, the report and all checkpoints except the last are left out.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.evaluate import EvaluateConfig, evaluate
from experiments.flags.command import UserError
from experiments.flags.config import TrainConfig
from experiments.record.metrics import read_metrics
from experiments.run.loop import training
from experiments.sample import SampleConfig, sample
from experiments.train import train
from jaxvae.checkpoints import FORMAT, Checkpoints, load
from jaxvae.checkpoints.manifest import digest

RUN = Path("run")
FLAGS = TrainConfig(
    run=RUN,
    dataset="npz:bars.npz",
    hidden=(4,),
    latent_dim=2,
    batch_size=20,
    learning_rate=0.01,
    eval_every=10,
    log_every=5,
    eval_samples=4,
    num_devices=1,
    accelerator="cpu",
    quiet=True,
    num_steps=30,
)
OF_PARAMETERS = "ed1ea1aa9d277e0bf2bf040427b5fac65a6a59f8876f062eec4b514605ff88ec"
"""SHA-256 of the running average, by `jaxvae.checkpoints.manifest.digest` of that release."""
RENAMED = {"log_likelihood": "reconstruction", "log_likelihood_bound": "log_likelihood"}
"""Arrays of an evaluation: name in that release -> today's name."""
NEW = {"log_likelihood_error"}
"""Arrays of an evaluation that that release did not have."""
ACROSS_MACHINES = {"rtol": 1e-4, "atol": 1e-4}
"""Tolerance for 30 steps in float32 with another order of summation."""


pytestmark = pytest.mark.usefixtures("first_release")


def contents(folder):
    """Contents of every file except the lock, by name."""
    files = {path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    return {str(path): path.read_bytes() for path in files}


def without_timing(path):
    return [{k: v for k, v in row.items() if k != "timing"} for row in read_metrics(path)]


def test_first_release_parameters_are_read_bit_for_bit_with_their_format():
    vae, params = load(RUN)
    assert digest(params) == OF_PARAMETERS
    assert vae.decode(params, np.zeros(2, np.float32)).mean().shape == (8, 8, 1)
    checkpoints = Checkpoints(RUN / "checkpoints", read_only=True)
    assert checkpoints.about(20)["format"] == 1 <= FORMAT
    checkpoints.close()


@pytest.mark.slow
def test_first_release_run_is_evaluated_and_sampled_as_then():
    again = Path("again")
    evaluate(EvaluateConfig(RUN, num_samples=4, batch_size=33, num_devices=1, output=again))
    sample(SampleConfig(RUN, num_samples=5, num_examples=4, num_steps=3, output=again))
    recorded = [*RUN.glob("evaluations/*.npz"), *RUN.glob("samples/*.npz")]
    assert len(recorded) == 8
    for path in recorded:
        with np.load(path) as before, np.load(again / path.name) as now:
            names = {name: RENAMED.get(name, name) for name in before}
            assert set(names.values()) == set(now) - NEW
            for name in before:
                np.testing.assert_allclose(now[names[name]], before[name], **ACROSS_MACHINES)


def test_first_release_run_continues_as_it_did_then():
    before = without_timing(RUN / "metrics.jsonl")
    assert before[-1]["step"] == 20
    with training(FLAGS, jax.devices()[:1]) as loop:  # without final numbers and pictures
        assert loop.train() == 0
    now, then = without_timing(RUN / "metrics.jsonl"), without_timing(Path("later.jsonl"))
    assert now[: len(before)] == before
    assert [(row["step"], row["split"]) for row in now] == [(r["step"], r["split"]) for r in then]
    for row, recorded in zip(now, then, strict=True):
        for name in recorded.keys() - {"split"}:
            assert row[name] == pytest.approx(recorded[name], rel=1e-4, abs=1e-4), name


def test_a_newer_format_is_rejected_by_every_command_without_changes():
    about = RUN / "checkpoints" / "20" / "about" / "metadata"
    values = json.loads(about.read_text())
    del values["digests"]  # a newer release may compute it in another way
    about.write_text(json.dumps(values | {"format": FORMAT + 1}))
    before = contents(RUN)
    for command, config in (
        (train, FLAGS),
        (evaluate, EvaluateConfig(RUN, num_devices=1)),
        (sample, SampleConfig(RUN)),
    ):
        message = rf"format {FORMAT + 1} is newer than .* reads \({FORMAT}\)\. Upgrade jaxvae"
        with pytest.raises(UserError, match=message) as raised:
            command(config)
        assert "\n" not in str(raised.value)
        assert contents(RUN) == before
