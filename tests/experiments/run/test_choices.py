"""Flags that the data choose: the likelihood, its reason, and what flags of the user decide."""

import dataclasses

import numpy as np
import pytest

from experiments.data import Dataset
from experiments.flags.config import TrainConfig
from experiments.run.choices import choices_of, choose
from experiments.train import train
from jaxvae.training.sigma import SIGMA_RATE

RNG = np.random.default_rng(0)
BITS = RNG.integers(0, 2, (40, 8, 8, 1)).astype(np.uint8)
DRAWINGS = (BITS * RNG.integers(0, 256, BITS.shape)).astype(np.uint8)
PHOTOS = RNG.normal(120, 30, (40, 8, 8, 3)).clip(0, 255).astype(np.uint8)
VECTORS = RNG.normal(size=(40, 4)).astype(np.float32)


def chosen(train, **flags):
    """Flags and lines for a new run on these training rows."""
    dataset = Dataset("made up", train, train[:0], train[:2], "", {})
    return choose(TrainConfig(**flags), dataset)


@pytest.mark.parametrize(
    ("train", "flags", "expected"),
    [
        (BITS, {}, ("bernoulli", "auto", "learned", None)),
        (DRAWINGS, {}, ("bernoulli", "auto", "learned", None)),
        ((DRAWINGS / 255).astype(np.float32), {}, ("bernoulli", "dynamic", "learned", None)),
        (PHOTOS, {}, ("color_logistic_mixture", "auto", "learned", None)),
        (VECTORS, {}, ("gaussian", "auto", "per_channel", SIGMA_RATE)),
        (VECTORS, {"likelihood": "laplace"}, ("laplace", "auto", "per_channel", SIGMA_RATE)),
        (PHOTOS, {"likelihood": "gaussian"}, ("gaussian", "auto", "learned", SIGMA_RATE)),
        # Flags of one likelihood choose it.
        (DRAWINGS, {"sigma": 0.1}, ("gaussian", "auto", 0.1, None)),
        (VECTORS, {"sigma_rate": 2.0}, ("gaussian", "auto", "per_channel", 2.0)),
        (PHOTOS, {"binarize": "dynamic"}, ("bernoulli", "dynamic", "learned", None)),
        # The user's own value stays.
        (DRAWINGS, {"binarize": "none"}, ("bernoulli", "none", "learned", None)),
    ],
)
def test_data_fill_in_the_open_flags(train, flags, expected):
    config, _ = chosen(train, **flags)
    assert (config.likelihood, config.binarize, config.sigma, config.sigma_rate) == expected


def test_one_line_says_what_was_chosen_why_and_which_flag_changes_it():
    _, lines = chosen(PHOTOS)
    (line,) = lines
    assert line == (
        "likelihood: color_logistic_mixture, as the data are 8-bit colours "
        "(--likelihood chooses another)."
    )
    assert chosen(PHOTOS, likelihood="categorical")[1] == []


def test_a_choice_that_does_not_suit_the_data_is_a_warning():
    _, lines = chosen(PHOTOS, likelihood="bernoulli")
    assert lines[0].startswith("warning: --likelihood=bernoulli turns the data, 8-bit colours")


def test_flags_that_exclude_each_other_are_rejected_before_and_after_the_choice():
    with pytest.raises(ValueError, match="--sigma goes with --likelihood=gaussian or laplace"):
        TrainConfig(sigma=0.1, likelihood="bernoulli").check()
    with pytest.raises(ValueError, match="--sigma-rate has no effect"):
        chosen(VECTORS, sigma_rate=2.0, sigma=0.1)


def test_a_continued_run_has_what_it_was_started_with():
    started, _ = chosen(VECTORS)
    again = choices_of(started, TrainConfig())
    assert (again.likelihood, again.sigma) == ("gaussian", "per_channel")
    other = choices_of(started, TrainConfig(likelihood="laplace"))
    assert other.likelihood == "laplace"


@pytest.mark.long
def test_the_same_command_continues_a_run_that_the_data_have_chosen(small, tmp_path, capsys):
    config = dataclasses.replace(small, run=tmp_path / "run", num_steps=4, quiet=False)
    assert train(config) == 0
    assert "likelihood: bernoulli, as the data are grey levels" in capsys.readouterr().out
    assert train(dataclasses.replace(config, num_steps=6)) == 0
    assert "Continuing from step 4" in capsys.readouterr().out
