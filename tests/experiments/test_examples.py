"""Examples run unchanged, and the number that each prints is within its known bounds."""

import re
import runpy
from pathlib import Path

import jax
import pytest

import experiments.examples

FOLDER = Path(experiments.examples.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
CLUSTERS = (-2.6, -1.3)  # between a poor ELBO and log p(x) = -2 log 2 of four equal clusters
PRINTED = {
    "completion": (0.8, 1.0),  # the best of 4 columns without the condition's row: 1 of 8
    "conditional": (-0.03, 0.01),  # the model can be exact; 0.02 is what 3,000 rows leave
    "equinox_model": CLUSTERS,
    "haiku_model": CLUSTERS,
    "missing_data": (0.5, 0.7),  # 0.5 is the noise, 1.6 the error of a column's mean
    "mixed_columns": (-4.2, -3.0),
    "nnx_dropout": CLUSTERS,
    "numpyro_distributions": (-4.8721, -4.8719),  # exact at the true posterior
    "optax_loop": (-8.3, -7.9),  # log p(x) is -8.01
    "own_model": (-4.92, -4.88),  # log p(x) is -4.872, less KL of q against the true posterior
    "ragged_sequences": (0.0, 0.88),  # 0.88 is the density of the noise alone
    "semi_supervised": (0.95, 1.01),  # 0.33 by chance
    "several_devices": CLUSTERS,
    "two_levels": (0.0, 0.1),  # positive, and what the diagonal q(z_2|z_1, x) loses
    "sharded_batch": CLUSTERS,
}
"""Example -> bounds of the first number with decimals in the last line that it prints."""


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_example_prints_number_within_its_known_bounds(name, capsys):
    with jax.numpy_rank_promotion("allow"):  # as in a program that does not forbid it
        runpy.run_module(f"experiments.examples.{name}", run_name="__main__")
    last = capsys.readouterr().out.splitlines()[-1]
    low, high = PRINTED[name]
    assert low < float(re.search(r"-?\d+\.\d+", last)[0]) < high, last


@pytest.mark.parametrize("name", NAMES)
def test_example_is_short_and_names_its_command(name):
    text = (FOLDER / f"{name}.py").read_text()
    assert f"python -m experiments.examples.{name}" in text
    assert len([line for line in text.splitlines() if line.strip()]) <= 80
