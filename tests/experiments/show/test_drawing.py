"""Drawings of `experiments.show.drawing`, checked with decoders that return the latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import Dataset
from experiments.show.drawing import Drawing, draw, prepared_head, shown_split, write_pictures
from jaxvae import Gaussian
from jaxvae.distributions import (
    Flow,
    OneHotCategorical,
    RelaxedCategorical,
    UniformSphere,
    VonMisesFisher,
)
from jaxvae.models.vae import VAE
from jaxvae.preprocessing import Splits, preprocess

KEY = jax.random.key(0)


@jax.tree_util.register_static
class Shift:
    """Flow transform z -> z + 1."""

    def forward(self, z):
        return z + 1, jnp.zeros(())


def transparent(encode, prior):
    """Model whose p(x|z) has z itself as its mean."""
    return VAE(
        init=lambda key: {},
        encode=lambda params, x: encode(x),
        decode=lambda params, z: Gaussian(z, jnp.array(0.0)),
        prior=lambda params: prior,
    )


def drawing_of(encode, prior, xs, **sizes):
    vae = transparent(encode, prior)
    return draw(vae, {}, np.asarray(xs, np.float32), KEY, num_samples=5, **sizes)


def vectors(count=7):
    """Examples [N, 3] whose last latent varies most and whose first varies least."""
    return np.random.default_rng(0).normal(size=(count, 3)) * np.array([0.1, 1.0, 5.0])


def rows_of_probabilities(count=6):
    """Examples [N, 2, 3] whose second row varies most."""
    weights = np.random.default_rng(1).random((count, 2, 3)) ** np.array([1.0, 6.0])[:, None]
    return weights / weights.sum(axis=-1, keepdims=True)


# Law


def test_reconstructions_start_from_posterior_means():
    xs = vectors()
    drawing = drawing_of(lambda x: Gaussian(x, 0 * x), Gaussian.standard(3), xs, num_shown=4)
    np.testing.assert_allclose(drawing.originals, xs[:4], rtol=1e-6)
    np.testing.assert_allclose(drawing.reconstructions, xs[:4], rtol=1e-6)
    assert drawing.samples.shape == (5, 3)
    assert len(np.unique(drawing.samples)) == 15


def test_interpolations_are_straight_between_pairs():
    xs = vectors(5)  # the fifth has no partner
    drawing = drawing_of(
        lambda x: Gaussian(x, 0 * x), Gaussian.standard(3), xs, num_shown=5, num_steps=4
    )
    t = np.linspace(0, 1, 4)[None, :, None]
    right = (1 - t) * xs[0:4:2, None] + t * xs[1:4:2, None]
    assert right.shape == (2, 4, 3)
    np.testing.assert_allclose(drawing.interpolations, right, rtol=1e-5, atol=1e-6)


def test_a_single_example_is_interpolated_with_itself():
    xs = vectors(1)
    drawing = drawing_of(lambda x: Gaussian(x, 0 * x), Gaussian.standard(3), xs, num_steps=3)
    np.testing.assert_allclose(drawing.interpolations, np.tile(xs[:, None], (1, 3, 1)), rtol=1e-6)


def test_traversals_change_one_latent_of_the_first_example():
    """The latent that varies most over all examples, shown or not, comes first."""
    xs = vectors()
    drawing = drawing_of(
        lambda x: Gaussian(x, 0 * x),
        Gaussian.standard(3),
        xs,
        num_shown=2,
        num_steps=5,
        num_latents=2,
    )
    assert drawing.latents.tolist() == [2, 1]
    np.testing.assert_array_equal(drawing.values, [-3, -1.5, 0, 1.5, 3])
    right = np.tile(xs[0], (2, 5, 1))
    right[0, :, 2] = right[1, :, 1] = drawing.values
    np.testing.assert_allclose(drawing.traversals, right, rtol=1e-6)


def test_on_a_sphere_everything_has_length_one():
    """Codes are mean directions, paths the shorter arcs; traversals rescale other coordinates."""
    xs = vectors()
    directions = xs / np.linalg.norm(xs, axis=1, keepdims=True)
    drawing = drawing_of(
        lambda x: VonMisesFisher(x / jnp.linalg.norm(x), jnp.array(0.0)),
        UniformSphere(3),
        xs,
        num_shown=4,
        num_steps=5,
    )
    for array in drawing[:1] + drawing[2:5]:
        lengths = np.linalg.norm(array, axis=-1)
        np.testing.assert_allclose(lengths, np.ones(lengths.shape), rtol=1e-5)
    np.testing.assert_allclose(drawing.reconstructions, directions[:4], rtol=1e-5, atol=1e-6)
    ends = drawing.interpolations[:, [0, -1]].reshape(4, 3)
    np.testing.assert_allclose(ends, directions[:4], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(drawing.values, [-0.95, -0.475, 0, 0.475, 0.95], rtol=1e-6)
    assert sorted(drawing.latents) == [0, 1, 2]
    for row, i in zip(drawing.traversals, drawing.latents, strict=True):
        np.testing.assert_allclose(row[:, i], drawing.values, rtol=1e-5, atol=1e-6)
        others = [j for j in range(3) if j != i]
        ratio = directions[0, others[0]] / directions[0, others[1]]
        np.testing.assert_allclose(row[:, others[0]], ratio * row[:, others[1]], rtol=1e-4)
        assert np.sign(row[0, others[0]]) == np.sign(directions[0, others[0]])


def test_a_one_hot_latent_takes_each_category_in_turn():
    """num_steps has no effect; the other rows stay at the first example's probabilities."""
    xs = rows_of_probabilities()
    drawing = drawing_of(
        lambda x: OneHotCategorical(jnp.log(x)),
        OneHotCategorical(jnp.zeros((2, 3))),
        xs,
        num_shown=4,
        num_steps=7,
    )
    np.testing.assert_allclose(drawing.reconstructions, xs[:4], rtol=1e-5)
    assert drawing.samples.shape == (5, 2, 3)
    assert set(np.unique(drawing.samples)) == {0, 1}
    assert drawing.interpolations.shape == (2, 7, 2, 3)
    sums = drawing.interpolations.sum(axis=-1)
    np.testing.assert_allclose(sums, np.ones(sums.shape), rtol=1e-6)
    assert drawing.latents.tolist() == [1, 0]
    assert drawing.values.tolist() == [0, 1, 2]
    right = np.tile(xs[0], (2, 3, 1, 1))
    right[0, :, 1] = right[1, :, 0] = np.eye(3)
    np.testing.assert_allclose(drawing.traversals, right, rtol=1e-5)


def test_a_mean_without_a_closed_form_is_estimated_from_draws():
    xs = rows_of_probabilities()
    drawing = drawing_of(
        lambda x: RelaxedCategorical(jnp.log(x), jnp.array(0.5)),
        RelaxedCategorical(jnp.zeros((2, 3)), jnp.array(0.5)),
        xs,
        num_shown=4,
    )
    for array in (drawing.samples, drawing.reconstructions, drawing.interpolations):
        sums = array.sum(axis=-1)
        np.testing.assert_allclose(sums, np.ones(sums.shape), rtol=1e-5)
    xs = vectors()
    drawing = drawing_of(
        lambda x: Flow(Gaussian(x, 0 * x), (Shift(),)), Gaussian.standard(3), xs, num_shown=4
    )
    # Within 5 standard errors of the 64 draws of evaluation.MEAN_SAMPLES, of unit variance.
    assert (np.abs(drawing.reconstructions - xs[:4] - 1) < 5 / np.sqrt(64)).all()


# Failure, and the border to files


def test_the_examples_shown_are_the_first_of_the_test_split():
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    dataset = Dataset("made up", values, values[:0], values[4:], "", {})
    splits = Splits(dataset.name, dataset.train, dataset.validation, dataset.test)
    _, preprocessing = preprocess(splits, likelihood="gaussian")
    of_split = lambda data, most: prepared_head(
        getattr(data, shown_split(data)), preprocessing, most
    )
    np.testing.assert_array_equal(of_split(dataset, 1000), values[4:])
    np.testing.assert_array_equal(of_split(dataset, 1), values[4:5])
    np.testing.assert_array_equal(of_split(dataset._replace(test=values[:0]), 3), values[:3])


@pytest.mark.parametrize("values", [np.linspace(-3, 3, 4), np.arange(4.0)])
def test_four_pictures_are_written(tmp_path, values):
    images = np.random.default_rng(0).random((8, 6, 6, 1))
    drawing = Drawing(
        samples=images,
        originals=images[:4],
        reconstructions=images[4:],
        interpolations=images.reshape(2, 4, 6, 6, 1),
        traversals=images.reshape(2, 4, 6, 6, 1),
        latents=np.array([1, 0]),
        values=values,
    )
    write_pictures(drawing, tmp_path / "deep" / "folder")
    names = ("interpolations", "reconstructions", "samples", "traversals")
    written = sorted((tmp_path / "deep" / "folder").iterdir())
    assert [path.name for path in written] == [f"{name}.png" for name in names]
    assert all(path.stat().st_size > 100 for path in written)
