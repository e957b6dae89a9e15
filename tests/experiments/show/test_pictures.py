"""Laws and failures of experiments.show.pictures."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from experiments.show import pictures

BLUE, ORANGE = (0, 114, 178), (213, 94, 0)


def decoded(png):
    return np.asarray(Image.open(png).convert("RGB")).astype(int)


def near(picture, colour, within=40):
    """Mask [h, w] of the pixels of a picture [h, w, 3] that have about this colour."""
    return (np.abs(picture.astype(int) - colour) <= within).all(axis=-1)


def levels(*values, shape=(8, 8, 1)):
    """One image of each grey value."""
    return np.stack([np.full(shape, value) for value in values])


def tile(picture, row, column, size=64, left=0, top=0):
    """A tile of a picture of square tiles with gaps of two pixels."""
    y, x = top + 2 + row * (size + 2), left + 2 + column * (size + 2)
    return picture[y : y + size, x : x + size]


def test_a_grid_is_filled_row_by_row_with_gaps_between():
    picture = pictures.grid(levels(0.0, 0.2, 0.4, 0.6, 0.8), columns=3)
    assert picture.dtype == np.uint8
    assert picture.shape == (2 + 2 * 66, 2 + 3 * 66, 3)
    for i, level in enumerate([0, 51, 102, 153, 204]):
        assert (tile(picture, i // 3, i % 3) == level).all()
    assert (tile(picture, 1, 2) == 255).all()
    assert (picture[:2] == 255).all()
    assert (picture[:, 66:68] == 255).all()


def test_fewer_examples_than_columns_leave_no_empty_columns():
    assert pictures.grid(levels(0.0, 1.0), columns=10).shape == (68, 2 + 2 * 66, 3)


@pytest.mark.parametrize(("side", "factor"), [(8, 8), (28, 3), (32, 2), (64, 1), (100, 1)])
def test_small_images_grow_by_whole_factors_and_keep_their_pixels(side, factor):
    image = np.random.default_rng(side).integers(0, 256, (1, side, side, 3)) / 255
    shown = pictures.grid(image)[2:-2, 2:-2]
    assert shown.shape == (side * factor, side * factor, 3)
    np.testing.assert_array_equal(shown[::factor, ::factor], (image[0] * 255).round())
    np.testing.assert_array_equal(shown[factor - 1 :: factor], shown[::factor])


def test_images_need_not_be_square():
    assert pictures.grid(np.zeros((1, 28, 20, 1))).shape == (28 * 3 + 4, 20 * 3 + 4, 3)


def test_limits_become_black_and_white_and_values_beyond_are_cut():
    values = levels(-5.0, -1.0, 0.0, 1.0, 5.0)
    picture = pictures.grid(values, limits=(-1, 1))
    assert [tile(picture, 0, i)[0, 0, 0] for i in range(5)] == [0, 0, 128, 255, 255]


def test_equal_limits_are_accepted():
    assert (tile(pictures.grid(levels(3.0, 4.0), limits=(3, 3)), 0, 0) == 0).all()


def test_pixels_that_are_not_finite_stand_out():
    image = levels(0.5)
    image[0, 0, 0, 0], image[0, 7, 7, 0] = np.nan, np.inf
    shown = tile(pictures.grid(image), 0, 0)
    assert (shown[0, 0] == ORANGE).all()
    assert (shown[-1, -1] == ORANGE).all()
    assert (shown[32, 32] == 128).all()


@pytest.mark.parametrize("shape", [(1,), (2,), (50,), (28, 28), (4, 4, 2), (3, 4, 4, 1)])
@pytest.mark.parametrize("number", [1, 7, 57])
def test_examples_that_are_not_images_are_drawn_as_lines(shape, number):
    examples = np.random.default_rng(0).normal(size=(number, *shape))
    picture = pictures.grid(examples, columns=7)
    rows, columns = -(-number // 7), min(number, 7)
    assert picture.shape == (2 + rows * 68, 2 + columns * 86, 3)
    last = picture[-68:-2, 2:86]
    assert near(last, BLUE).sum() >= 4


def test_a_line_rises_where_the_data_rise_and_all_share_one_scale():
    picture = pictures.grid(np.stack([np.linspace(0, 1, 40), np.linspace(0, 2, 40)]))
    for left, end in ((2, 0.5), (88, 0.0)):
        shown = near(picture[2:68, left : left + 84], BLUE, within=90)
        heights = [np.flatnonzero(shown[:, column]).mean() for column in (9, 74)]
        np.testing.assert_allclose(heights, [58, 8 + 50 * end], atol=3)


def test_lines_stay_in_their_tile_and_break_at_nan():
    wild = np.array([[0.5, 0.5, 1e9, -1e9, np.nan, np.inf], [0.0] * 6])
    picture = pictures.grid(wild, columns=1, limits=(0, 1))
    assert not near(picture[70:120], BLUE, within=60).any()
    assert pictures.grid(np.full((1, 5), np.nan)).shape == (70, 88, 3)
    assert pictures.grid(np.ones((1, 5))).shape == (70, 88, 3)


def test_each_original_is_above_its_reconstruction():
    originals, means = levels(0.2, 0.4, 0.6), levels(0.0, 0.8, 1.0)
    picture = pictures.reconstructions(originals, means, columns=2)
    assert picture.shape[0] == 2 * (2 + 2 * 66)
    left = picture.shape[1] - (2 + 2 * 66)
    shown = [
        [tile(picture, row, column, left=left, top=top)[0, 0, 0] for column in range(2)]
        for top in (0, 134)
        for row in range(2)
    ]
    assert shown == [[51, 102], [0, 204], [153, 255], [255, 255]]


def test_reconstructions_are_labelled():
    picture = pictures.reconstructions(levels(0.0), levels(0.0))
    left = picture.shape[1] - 68
    assert near(picture[2:66, :left], BLUE).sum() > 20
    assert near(picture[68:132, :left], ORANGE).sum() > 20


def test_reconstructed_lines_are_drawn_over_their_originals():
    rising = np.linspace(0, 1, 20)[None]
    picture = pictures.reconstructions(rising, 1 - rising)[:, -86:-2]
    above, below = picture[2:68], picture[70:136]
    light_blue = (146, 192, 219)
    assert near(above[40:, :30], BLUE).any()
    assert not near(above, ORANGE).any()
    assert near(below[:30, :30], ORANGE).any()
    assert near(below[40:, :30], light_blue, within=15).any()
    assert not near(below[40:, :30], ORANGE).any()


def test_originals_and_reconstructions_share_one_scale():
    rising = np.linspace(0, 1, 20)[None]
    picture = pictures.reconstructions(rising, 2 * rising)[:, -86:-2]
    end = [np.flatnonzero(near(picture[2:68, 74], BLUE, within=90)).mean()]
    np.testing.assert_allclose(end, 33, atol=3)


def test_rows_of_interpolations_run_from_start_to_end():
    rows = levels(0.0, 0.2, 0.4, 0.6, 0.8, 1.0).reshape(2, 3, 8, 8, 1)
    picture = pictures.interpolations(rows)
    top = picture.shape[0] - (2 + 2 * 66)
    assert [tile(picture, i // 3, i % 3, top=top)[0, 0, 0] for i in range(6)] == [
        *(0, 51, 102),
        *(153, 204, 255),
    ]
    written = [near(picture[:top, 66 * i : 66 * (i + 1)], (95, 102, 112)).any() for i in range(3)]
    assert written == [True, False, True]
    assert pictures.interpolations(rows[:, :1]).shape[1] == 68


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8, 3), (50,), (4, 5)])
def test_traversals_have_a_labelled_row_for_each_latent(shape):
    picture = pictures.traversals(np.zeros((2, 3, *shape)), [7, 31], [-3.0, 0.0, 3.0])
    plain = pictures.interpolations(np.zeros((2, 3, *shape)))
    left = picture.shape[1] - plain.shape[1]
    assert left > 20
    assert near(picture[:, :left], (95, 102, 112)).any()
    np.testing.assert_array_equal(picture[30:, left:], plain[30:])


def test_a_picture_comes_back_from_its_file(tmp_path):
    picture = pictures.grid(np.random.default_rng(0).random((3, 9, 5, 3)))
    pictures.save_png(tmp_path / "a.png", picture)
    np.testing.assert_array_equal(decoded(tmp_path / "a.png"), picture)


def metrics(number, validation=(), **changes):
    values = {"elbo": -100.0, "reconstruction": -80.0, "kl": 20.0, "gradient_norm": 3.0, **changes}
    rows = [{"step": step, "split": "train", **values, "timing": {}} for step in range(number)]
    held_out = {"split": "validation", "elbo": -101.0, "standard_error": 0.5, "active_units": 9}
    return rows + [{"step": step, **held_out} for step in validation]


def curves(rows):
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures.curves(rows, png)
    return decoded(png)


@pytest.mark.parametrize("number", [1, 500])
def test_curves_show_train_in_blue_and_validation_in_orange(number):
    train = curves(metrics(number))
    both = curves(metrics(number, validation=(0, number)))
    assert train.shape[1] == both.shape[1] == 1800
    assert near(train, BLUE).any()
    assert not near(train, ORANGE).any()
    assert near(both, ORANGE).any()


def test_curves_need_no_training_rows():
    drawn = curves(metrics(0, validation=(3,)))
    assert near(drawn, ORANGE).any()
    assert not near(drawn, BLUE).any()


def test_curves_have_a_panel_for_each_quantity_in_the_rows():
    heights = [
        curves([{"step": 1, "split": "train", **dict.fromkeys(names, 1.0)}]).shape[0]
        for names in (["elbo"], ["elbo", "kl", "gradient_norm"], ["kl", "other"])
    ]
    assert heights[0] < heights[1] == heights[2]


@pytest.mark.parametrize("value", [None, float("nan"), -1.0])
def test_curves_accept_nan_and_values_that_are_not_positive(value):
    rows = metrics(60)
    for row in rows[10:20]:
        row.update(elbo=value, gradient_norm=value)
    assert near(curves(rows), BLUE).any()
    curves([{"step": 1, "split": "train", "elbo": value, "gradient_norm": value}])


def test_equal_rows_give_equal_files():
    first, second = io.BytesIO(), io.BytesIO()
    for png in (first, second):
        pictures.curves([{"step": 1, "split": "train", "elbo": -1.0}], png)
    assert first.getvalue() == second.getvalue()


def test_curves_without_a_row_are_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"at least one row of metrics, got none. Train first"):
        pictures.curves([], tmp_path / "curves.png")


def test_smoothing_keeps_lines_and_ignores_gaps():
    line = np.linspace(-5.0, 5.0, 200)
    np.testing.assert_allclose(pictures._smoothed(line)[10:-10], line[10:-10], atol=1e-12)
    level = np.full(200, -90.0)
    level[50:60] = np.nan
    np.testing.assert_allclose(pictures._smoothed(level), level, atol=1e-9)
    noise = np.random.default_rng(0).normal(size=2000)
    assert pictures._smoothed(noise).std() < 0.25


def test_latents_are_ordered_by_their_kl():
    png = io.BytesIO()
    pictures.latent_kl_bars([0.5, 3.0, np.nan, 0.0, 1.5], png)
    bars = near(decoded(png), BLUE).sum(axis=0)
    edges = np.flatnonzero(np.diff((bars > 0).astype(int)) == 1)
    heights = bars[edges + 20]
    assert len(heights) >= 3
    assert (np.diff(heights) < 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pictures.grid(np.zeros((0, 8, 8, 1))), r"grid: .*got shape \(0, 8, 8, 1\). Stack"),
        (lambda: pictures.grid(np.zeros(5)), r"grid: there must be at least one example"),
        (
            lambda: pictures.reconstructions(levels(0.0), levels(0.0, 1.0)),
            r"same shape, got \(1, 8, 8, 1\) and \(2, 8, 8, 1\). Decode",
        ),
        (
            lambda: pictures.interpolations(np.zeros((5, 3))),
            r"interpolations: .*got shape \(5, 3\)",
        ),
        (
            lambda: pictures.traversals(np.zeros((2, 3, 5)), [1], [0.0, 1.0, 2.0]),
            r"got \(2, 3\) with 1 latents and 3 values",
        ),
    ],
)
def test_wrong_shapes_are_rejected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
