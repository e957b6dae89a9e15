"""Laws and failures of experiments.show.pictures."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from experiments.show import pictures, plots

BLUE, ORANGE = (0, 114, 178), (213, 94, 0)


def decoded(png):
    return np.asarray(Image.open(png).convert("RGB")).astype(int)


def on_white(function):
    """The pictures of a function as they look on a white page: [h, w, 3]."""

    def seen(*arguments, **options):
        picture = function(*arguments, **options)
        white = Image.new("RGBA", picture.shape[1::-1], "white")
        return np.asarray(Image.alpha_composite(white, Image.fromarray(picture)).convert("RGB"))

    return seen


grid, reconstructions, interpolations, traversals = map(
    on_white,
    (pictures.grid, pictures.reconstructions, pictures.interpolations, pictures.traversals),
)


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
    picture = grid(levels(0.0, 0.2, 0.4, 0.6, 0.8), columns=3)
    assert picture.dtype == np.uint8
    assert picture.shape == (2 + 2 * 66, 2 + 3 * 66, 3)
    for i, level in enumerate([0, 51, 102, 153, 204]):
        assert (tile(picture, i // 3, i % 3) == level).all()
    assert (tile(picture, 1, 2) == 255).all()
    assert (picture[:2] == 255).all()
    assert (picture[:, 66:68] == 255).all()


def test_fewer_examples_than_columns_leave_no_empty_columns():
    assert grid(levels(0.0, 1.0), columns=10).shape == (68, 2 + 2 * 66, 3)


@pytest.mark.parametrize(("side", "factor"), [(8, 8), (28, 3), (32, 2), (64, 1), (100, 1)])
def test_small_images_grow_by_whole_factors_and_keep_their_pixels(side, factor):
    image = np.random.default_rng(side).integers(0, 256, (1, side, side, 3)) / 255
    shown = grid(image)[2:-2, 2:-2]
    assert shown.shape == (side * factor, side * factor, 3)
    np.testing.assert_array_equal(shown[::factor, ::factor], (image[0] * 255).round())
    np.testing.assert_array_equal(shown[factor - 1 :: factor], shown[::factor])


def test_images_need_not_be_square():
    assert grid(np.zeros((1, 28, 20, 1))).shape == (28 * 3 + 4, 20 * 3 + 4, 3)


def test_limits_become_black_and_white_and_values_beyond_are_cut():
    values = levels(-5.0, -1.0, 0.0, 1.0, 5.0)
    picture = grid(values, limits=(-1, 1))
    assert [tile(picture, 0, i)[0, 0, 0] for i in range(5)] == [0, 0, 128, 255, 255]


def test_equal_limits_are_accepted():
    assert (tile(grid(levels(3.0, 4.0), limits=(3, 3)), 0, 0) == 0).all()


def test_pixels_that_are_not_finite_stand_out():
    image = levels(0.5)
    image[0, 0, 0, 0], image[0, 7, 7, 0] = np.nan, np.inf
    shown = tile(grid(image), 0, 0)
    assert (shown[0, 0] == ORANGE).all()
    assert (shown[-1, -1] == ORANGE).all()
    assert (shown[32, 32] == 128).all()


@pytest.mark.parametrize("shape", [(1,), (2,), (50,), (28, 28), (4, 4, 2), (3, 4, 4, 1)])
@pytest.mark.parametrize("number", [1, 7, 57])
def test_examples_that_are_not_images_are_drawn_as_lines(shape, number):
    examples = np.random.default_rng(0).normal(size=(number, *shape))
    picture = grid(examples, columns=7)
    rows, columns = -(-number // 7), min(number, 7)
    assert picture.shape == (2 + rows * 68, 2 + columns * 86, 3)
    last = picture[-68:-2, 2:86]
    assert near(last, BLUE).sum() >= 4


def test_a_line_rises_where_the_data_rise_and_all_share_one_scale():
    picture = grid(np.stack([np.linspace(0, 1, 40), np.linspace(0, 2, 40)]))
    for left, end in ((2, 0.5), (88, 0.0)):
        shown = near(picture[2:68, left : left + 84], BLUE, within=90)
        heights = [np.flatnonzero(shown[:, column]).mean() for column in (9, 74)]
        np.testing.assert_allclose(heights, [58, 8 + 50 * end], atol=3)


def test_lines_stay_in_their_tile_and_break_at_nan():
    wild = np.array([[0.5, 0.5, 1e9, -1e9, np.nan, np.inf], [0.0] * 6])
    picture = grid(wild, columns=1, limits=(0, 1))
    assert not near(picture[70:120], BLUE, within=60).any()
    assert grid(np.full((1, 5), np.nan)).shape == (70, 88, 3)
    assert grid(np.ones((1, 5))).shape == (70, 88, 3)


def test_each_original_is_above_its_reconstruction():
    originals, means = levels(0.2, 0.4, 0.6), levels(0.0, 0.8, 1.0)
    picture = reconstructions(originals, means, columns=2)
    assert picture.shape[0] == 2 * (2 + 2 * 66)
    left = picture.shape[1] - (2 + 2 * 66)
    shown = [
        [tile(picture, row, column, left=left, top=top)[0, 0, 0] for column in range(2)]
        for top in (0, 134)
        for row in range(2)
    ]
    assert shown == [[51, 102], [0, 204], [153, 255], [255, 255]]


def test_reconstructions_are_labelled():
    picture = reconstructions(levels(0.0), levels(0.0))
    left = picture.shape[1] - 68
    assert near(picture[2:66, :left], BLUE).sum() > 20
    assert near(picture[68:132, :left], ORANGE).sum() > 20


def test_reconstructed_lines_are_drawn_over_their_originals():
    rising = np.linspace(0, 1, 20)[None]
    picture = reconstructions(rising, 1 - rising)[:, -86:-2]
    above, below = picture[2:68], picture[70:136]
    light_blue = (146, 192, 219)
    assert near(above[40:, :30], BLUE).any()
    assert not near(above, ORANGE).any()
    assert near(below[:30, :30], ORANGE).any()
    assert near(below[40:, :30], light_blue, within=15).any()
    assert not near(below[40:, :30], ORANGE).any()


def test_originals_and_reconstructions_share_one_scale():
    rising = np.linspace(0, 1, 20)[None]
    picture = reconstructions(rising, 2 * rising)[:, -86:-2]
    end = [np.flatnonzero(near(picture[2:68, 74], BLUE, within=90)).mean()]
    np.testing.assert_allclose(end, 33, atol=3)


def test_rows_of_interpolations_run_from_start_to_end():
    rows = levels(0.0, 0.2, 0.4, 0.6, 0.8, 1.0).reshape(2, 3, 8, 8, 1)
    picture = interpolations(rows)
    top = picture.shape[0] - (2 + 2 * 66)
    assert [tile(picture, i // 3, i % 3, top=top)[0, 0, 0] for i in range(6)] == [
        *(0, 51, 102),
        *(153, 204, 255),
    ]
    written = [near(picture[:top, 66 * i : 66 * (i + 1)], (123, 131, 142)).any() for i in range(3)]
    assert written == [True, False, True]
    assert interpolations(rows[:, :1]).shape[1] == 68


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8, 3), (50,), (4, 5)])
def test_traversals_have_a_labelled_row_for_each_latent(shape):
    picture = traversals(np.zeros((2, 3, *shape)), [7, 31], [-3.0, 0.0, 3.0])
    plain = interpolations(np.zeros((2, 3, *shape)))
    left = picture.shape[1] - plain.shape[1]
    assert left > 20
    assert near(picture[:, :left], (123, 131, 142)).any()
    np.testing.assert_array_equal(picture[30:, left:], plain[30:])


def test_a_picture_comes_back_from_its_file(tmp_path):
    picture = pictures.grid(np.random.default_rng(0).random((3, 9, 5, 3)))
    pictures.save_png(tmp_path / "a.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture)


def test_pictures_are_transparent_around_their_examples():
    picture = pictures.traversals(np.zeros((2, 3, 8, 8, 1)), [7, 31], [-3.0, 0.0, 3.0])
    assert set(np.unique(picture[:, -2:, 3])) == {0}  # the gap at the right
    assert (picture[-66:-2, -66:-2, 3] == 255).all()
    assert set(np.unique(pictures.grid(np.zeros((1, 5)))[2:-2, 2:-2, 3])) > {31}


def test_columns_of_vectors_may_have_limits_of_their_own():
    one = np.array([[0.0, 1000.0, -5.0], [1.0, 3000.0, -4.0]])
    scaled = (one - one.min(0)) / (one.max(0) - one.min(0))
    own = grid(one, limits=(one.min(0), one.max(0)))
    np.testing.assert_array_equal(own, grid(scaled, limits=(0, 1)))


def test_a_note_stands_below_a_picture_within_its_width_or_a_readable_one():
    picture = pictures.grid(np.zeros((6, 8, 8, 1)))
    longer = pictures.noted(picture, "Across: columns x[0] to x[4], each upwards. " * 3)
    assert longer.shape[0] > picture.shape[0] + 50
    assert longer.shape[1] <= picture.shape[1] + 20
    np.testing.assert_array_equal(longer[: len(picture), : picture.shape[1]], picture)
    assert longer[len(picture) :, :, 3].any()


def metrics(number, validation=(), **changes):
    values = {"elbo": -100.0, "reconstruction": -80.0, "kl": 20.0, "gradient_norm": 3.0, **changes}
    rows = [{"step": step, "split": "train", **values, "timing": {}} for step in range(number)]
    held_out = {"split": "validation", "elbo": -101.0, "standard_error": 0.5, "active_units": 9}
    return rows + [{"step": step, **held_out} for step in validation]


def curves(rows, name="elbo"):
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.curves(rows, name, png)
    return decoded(png)


@pytest.mark.parametrize("number", [1, 500])
def test_curves_show_train_in_blue_and_validation_in_orange(number):
    train = curves(metrics(number))
    both = curves(metrics(number, validation=(0, number)))
    assert train.shape[1] == both.shape[1] == 1300
    assert near(train, BLUE).any()
    assert not near(train, ORANGE).any()
    assert near(both, ORANGE).any()


def test_curves_need_no_training_rows():
    drawn = curves(metrics(0, validation=(3,)))
    assert near(drawn, ORANGE).any()
    assert not near(drawn, BLUE).any()


def test_quantities_are_those_of_the_rows_and_the_elbo():
    row = {"step": 1, "split": "train", "kl": 1.0, "gradient_norm": 1.0, "other": 2.0}
    assert plots.quantities([row]) == ["elbo", "kl", "gradient_norm"]
    assert near(curves([row], "kl"), BLUE).any()
    assert curves([row], "kl").shape[1] == 900


@pytest.mark.parametrize("value", [None, float("nan"), -1.0])
def test_curves_accept_nan_and_values_that_are_not_positive(value):
    rows = metrics(60)
    for row in rows[10:20]:
        row.update(elbo=value, gradient_norm=value)
    for name in ("elbo", "gradient_norm"):
        assert near(curves(rows, name), BLUE).any()
        curves([{"step": 1, "split": "train", name: value}], name)


def test_equal_rows_give_equal_files():
    first, second = io.BytesIO(), io.BytesIO()
    for png in (first, second):
        plots.curves([{"step": 1, "split": "train", "elbo": -1.0}], "elbo", png)
    assert first.getvalue() == second.getvalue()


def test_quantities_without_a_row_are_rejected():
    with pytest.raises(ValueError, match=r"at least one row of metrics, got none. Train first"):
        plots.quantities([])


def test_smoothing_keeps_lines_and_ignores_gaps():
    line = np.linspace(-5.0, 5.0, 200)
    np.testing.assert_allclose(plots._smoothed(line)[10:-10], line[10:-10], atol=1e-12)
    level = np.full(200, -90.0)
    level[50:60] = np.nan
    np.testing.assert_allclose(plots._smoothed(level), level, atol=1e-9)
    noise = np.random.default_rng(0).normal(size=2000)
    assert plots._smoothed(noise).std() < 0.25


@pytest.mark.parametrize("captions", [list("abcdefg"), ["a wide caption\nof two lines"] * 7])
def test_captioned_examples_stand_above_their_captions(captions):
    images = levels(*np.linspace(0, 1, 7))
    picture = pictures.captioned([images, images], captions, columns=3)
    assert picture.shape[1] >= 2 + 3 * 66
    opaque = picture[..., 3] == 255
    assert (opaque.all(axis=2) if opaque.ndim == 3 else opaque).sum() >= 14 * 64 * 64
    labels = (np.abs(picture[..., :3].astype(int) - (123, 131, 142)) < 9).all(-1) & opaque
    tops = np.flatnonzero(labels.any(axis=1))
    assert len(np.flatnonzero(np.diff(tops) > 100)) == 2  # three rows of captions
    twice = pictures.captioned([images], captions, columns=3)
    assert picture.shape[0] - twice.shape[0] == 3 * 66


def scatter(points, names, classes):
    png = io.BytesIO()
    plots.latent_plot(np.asarray(points, float), names, classes, png)
    return decoded(png)


def test_classes_have_colours_and_rows_that_are_not_finite_are_left_out():
    points = np.random.default_rng(0).normal(size=(200, 2))
    alone = scatter(points, ["z[0]", "z[3]"], None)
    assert near(alone, BLUE, 60).sum() > 2000
    assert not near(alone, (255, 127, 14), 60).any()
    classes = [("a", "b")[i % 2] for i in range(200)]
    both = scatter(points, ["z[0]", "z[3]"], classes)
    assert near(both, (255, 127, 14), 60).sum() > 1000
    rare = scatter(
        points, ["z[0]", "z[3]"], ["others" if name == "b" else name for name in classes]
    )
    assert not near(rare, (255, 127, 14), 60).any()
    points[0] = np.nan
    scatter(points, ["z[0]", "z[3]"], classes)


def test_one_latent_is_drawn_as_a_histogram():
    points = np.random.default_rng(0).normal(size=(200, 1))
    assert near(scatter(points, ["z[0]"], None), BLUE).sum() > 20_000
    classes = [("a", "b")[i % 2] for i in range(200)]
    assert near(scatter(points, ["z[0]"], classes), (255, 127, 14), 20).sum() > 10_000


@pytest.mark.parametrize("name", ["$\\frac", "_hidden", "\u732b", "two\nlines", "x" * 100, ""])
def test_a_class_may_have_any_name(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scatter([[0, 1], [1, 2]], ["z[0]", "z[1]"], [name, "b"])


def test_numbers_are_sorted_by_value_and_the_others_come_last():
    names = ["others", "b", "10", "--5", "9", "-1"]
    assert sorted(names, key=plots._by_number) == ["-1", "9", "10", "--5", "b", "others"]


def test_the_place_of_the_largest_kl_is_the_brightest():
    centers = []
    for place in ((0, 1), (2, 1)):
        kl, png = np.zeros((3, 3)), io.BytesIO()
        kl[place] = 2.0
        plots.latent_kl_places(kl, png)
        yellow = near(decoded(png), (253, 231, 37))
        rows, columns = np.nonzero(yellow[:, : yellow.shape[1] * 2 // 3])  # without the colour bar
        centers.append((rows.mean(), columns.mean()))
    (above, left), (below, same) = centers
    assert below > above + 50
    assert abs(same - left) < 2


def test_latents_are_ordered_by_their_kl():
    png = io.BytesIO()
    plots.latent_kl_bars([0.5, 3.0, np.nan, 0.0, 1.5], png)
    bars = near(decoded(png), BLUE).sum(axis=0)
    edges = np.flatnonzero(np.diff((bars > 0).astype(int)) == 1)
    heights = bars[edges + 20]
    assert len(heights) >= 3
    assert (np.diff(heights) < 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grid(np.zeros((0, 8, 8, 1))), r"grid: .*got shape \(0, 8, 8, 1\). Stack"),
        (lambda: grid(np.zeros(5)), r"grid: there must be at least one example"),
        (
            lambda: reconstructions(levels(0.0), levels(0.0, 1.0)),
            r"same shape, got \(1, 8, 8, 1\) and \(2, 8, 8, 1\). Decode",
        ),
        (
            lambda: interpolations(np.zeros((5, 3))),
            r"interpolations: .*got shape \(5, 3\)",
        ),
        (
            lambda: traversals(np.zeros((2, 3, 5)), [1], [0.0, 1.0, 2.0]),
            r"got \(2, 3\) with 1 latents and 3 values",
        ),
    ],
)
def test_wrong_shapes_are_rejected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
