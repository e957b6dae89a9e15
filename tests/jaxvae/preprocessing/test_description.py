"""Description of a preprocessing: it survives JSON, and rejects what training did not write."""

import json

import numpy as np
import pytest

from jaxvae.preprocessing import Conversion, Splits, preprocess
from jaxvae.preprocessing.description import ABOUT, describe, read_description
from jaxvae.preprocessing.support import Trained

GREY = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), dtype=np.uint8)
TRAINED = Trained("uint8", 0.0, 255.0)


def about(**changes):
    _, preprocessing = preprocess(Splits("x", GREY, GREY, GREY), likelihood="bernoulli")
    written = describe(preprocessing, TRAINED, resizes=True) | changes
    return json.loads(json.dumps({ABOUT: written}))


@pytest.mark.parametrize(
    ("likelihood", "flags"),
    [
        ("bernoulli", {}),
        ("bernoulli", {"binarize": "static"}),
        ("bernoulli", {"grey_probabilities": True}),
        ("gaussian", {}),
        ("logistic_mixture", {}),
        ("color_logistic_mixture", {}),
        ("poisson", {}),
    ],
)
def test_a_description_prepares_rows_as_training_did(likelihood, flags):
    splits = Splits("x", GREY, GREY, GREY)
    _, preprocessing = preprocess(splits, likelihood=likelihood, **flags)
    written = describe(preprocessing, TRAINED, resizes=False)
    found = read_description(json.loads(json.dumps({ABOUT: written})))
    static = flags.get("binarize") == "static"
    assert found.conversion == (Conversion("binarized", 255) if static else preprocessing[0])
    assert found.support == preprocessing.support
    assert found.trained == TRAINED
    expected = preprocessing.name + (", anew for other rows" if static else "")
    assert found.preprocessing((4, 4, 1))[1:4] == (expected, *preprocessing[2:4])


def test_a_checkpoint_of_an_earlier_release_has_no_description():
    assert read_description({}) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"conversion": {"kind": "eval", "top": 255}},
        {"conversion": {"kind": "scaled", "top": 0}},
        {"conversion": "scaled"},
        {"support": [0, 255]},
        {"support": ["a", 255, True]},
        {"support": [0, 10**400, True]},
        {"trained": {"dtype": "uint8"}},
        {"trained": {"dtype": 8, "low": 0.0, "high": 1.0}},
        {"trained": {"dtype": "uint8", "low": 0.0, "high": 1e999}},
        {"trained": {"dtype": "uint8", "low": 0.0, "high": 10**400}},
        {"name": "x" * 1000},
        {"offset_bits": "8"},
        {"resizes": 1},
    ],
)
def test_a_hostile_description_is_one_clear_error(changes):
    with pytest.raises(ValueError, match="must have the form that training writes"):
        read_description(about(**changes))
