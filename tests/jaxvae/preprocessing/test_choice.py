"""Choice of the likelihood: every kind of data, and doubts about a choice that does not suit."""

import numpy as np
import pytest

from jaxvae.preprocessing import RULES, Splits, choose_likelihood, doubt, preprocess
from tests.files import SHARED_DATA

RNG = np.random.default_rng(0)
BITS = RNG.integers(0, 2, (50, 8, 8, 1))
PHOTO = RNG.normal(120, 40, (50, 8, 8, 1)).clip(0, 255)
DRAWING = np.where(RNG.random((50, 8, 8, 1)) < 0.7, 0, PHOTO)
KINDS = {
    "bits": (BITS.astype(np.uint8), "bernoulli"),
    "black and white": ((255 * BITS).astype(np.uint8), "bernoulli"),
    "bits as floats": (BITS.astype(np.float32), "bernoulli"),
    "drawings": (DRAWING.astype(np.uint8), "bernoulli"),
    "drawings as whole floats": (DRAWING.astype(np.uint8).astype(np.float32), "bernoulli"),
    "drawings in [0, 1]": ((DRAWING / 255).astype(np.float32), "bernoulli"),
    "photographs": (PHOTO.astype(np.uint8), "logistic_mixture"),
    "photographs as integers": (PHOTO.astype(np.int32), "logistic_mixture"),
    "colours": (np.repeat(PHOTO, 3, 3).astype(np.uint8), "color_logistic_mixture"),
    "many channels": (np.repeat(PHOTO, 5, 3).astype(np.uint8), "logistic_mixture"),
    "colour drawings": (np.repeat(DRAWING, 3, 3).astype(np.uint8), "color_logistic_mixture"),
    "photographs in [0, 1]": ((PHOTO / 255).astype(np.float32), "gaussian"),
    "vectors": (RNG.normal(size=(50, 4)).astype(np.float32), "gaussian"),
    "counts": (RNG.poisson(300, (50, 4)).astype(np.int32), "negative_binomial"),
    "few counts": (RNG.poisson(3, (50, 4)).astype(np.int32), "negative_binomial"),
    "counts as floats": (RNG.poisson(300, (50, 4)).astype(np.float32), "negative_binomial"),
    "few counts of 8 bits": (RNG.poisson(3, (50, 4)).astype(np.uint8), "negative_binomial"),
    "rare counts up to 150": (
        150 * RNG.binomial(1, 0.1, (50, 4)).astype(np.int32),
        "logistic_mixture",
    ),
    "counts beyond float32": (RNG.poisson(3, (50, 4)).astype(np.int32) * 10**8, "gaussian"),
    "dark pictures": ((DRAWING // 9).astype(np.uint8), "logistic_mixture"),
    "small shares": (RNG.dirichlet(np.ones(99), 50).astype(np.float32), "gaussian"),
    "negative integers": (RNG.integers(-5, 5, (50, 4)).astype(np.int32), "gaussian"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_data_has_its_likelihood_and_can_be_prepared(kind):
    train, likelihood = KINDS[kind]
    choice = choose_likelihood(train)
    assert choice.likelihood == likelihood
    splits = Splits("x", train, train[:0], train[:3])
    _, preprocessing = preprocess(splits, likelihood=likelihood, binarize=choice.binarize)
    assert np.isfinite(preprocessing.mean).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_chosen_likelihood_is_never_doubted(kind):
    train, likelihood = KINDS[kind]
    assert doubt(likelihood, choose_likelihood(train)) is None


@pytest.mark.parametrize(
    ("kind", "likelihood", "reason"),
    [
        ("colours", "bernoulli", "turns the data, 8-bit colours, into random black and white"),
        ("photographs", "bernoulli", "8-bit grey levels, into random black and white pixels"),
        ("few counts of 8 bits", "bernoulli", "counts from 0 to 8, into random black"),
        ("bits", "gaussian", "does not suit data of only two values"),
    ],
)
def test_a_likelihood_that_does_not_suit_the_data_is_doubted(kind, likelihood, reason):
    assert likelihood in RULES
    assert reason in doubt(likelihood, choose_likelihood(KINDS[kind][0]))


def test_frey_faces_are_photographs():
    path = SHARED_DATA / "freyfaces.npz"
    if not path.exists():
        pytest.skip("needs the Frey faces")
    with np.load(path) as file:
        (train,) = [file[name] for name in file.files if file[name].ndim > 1][:1]
    assert choose_likelihood(train).likelihood == "logistic_mixture"
