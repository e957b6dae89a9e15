"""Preparation of pictures: sizes, channels, unreadable files, and the bound on what is held."""

import threading

import numpy as np
import pytest
from PIL import Image

from experiments.data import PictureOptions, load, load_rows
from experiments.data.pictures import prepare
from experiments.data.pictures.decode import TRANSPOSE, decode_as_shown
from tests.splits import whole

SKIP = PictureOptions(skip_unreadable=True)


def smooth(height, width, seed=0):
    """Colours without detail, which every good resampling preserves."""
    small = np.random.default_rng(seed).integers(40, 216, (4, 5, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def expected(image, size):
    """Crop the centre to the proportions of `size`, then resample: whole pixels only."""
    height, width = size
    scale = min(image.width / width, image.height / height)
    w, h = width * scale, height * scale
    left, top = (image.width - w) / 2, (image.height - h) / 2
    box = (left, top, left + w, top + h)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box), int)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize(
    ("stored", "size"),
    [
        ((96, 128), (32, 32)),
        ((128, 96), (32, 32)),
        ((97, 131), (20, 31)),
        ((10, 12), (20, 24)),
        ((9, 40), (12, 7)),
        ((800, 1000), (16, 64)),
        ((32, 32), (32, 32)),
        ((1, 1), (3, 2)),
    ],
)
def test_resize_covers_and_crops_the_centre(tmp_path, suffix, stored, size):
    image = smooth(*stored)
    options = {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": 0}
    image.save(tmp_path / f"a.{suffix}", **({} if suffix in ("png", "tif") else options))
    shown = decode_as_shown(tmp_path / f"a.{suffix}", size=size).pixels
    assert shown.shape == (*size, 3)
    difference = np.abs(shown.astype(int) - expected(image, size))
    assert difference.max() <= (5 if suffix == "jpg" else 1)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("orientation", [1, *TRANSPOSE])
def test_resize_of_turned_pictures_is_that_of_the_upright_ones(tmp_path, suffix, orientation):
    image = smooth(300, 437)
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    image.save(tmp_path / f"a.{suffix}", exif=exif(orientation), **options)
    upright = image.transpose(TRANSPOSE[orientation]) if orientation > 1 else image
    shown, notes = decode_as_shown(tmp_path / f"a.{suffix}", size=(24, 17))
    difference = np.abs(shown.astype(int) - expected(upright, (24, 17)))
    assert difference.max() <= (5 if suffix == "jpg" else 1)
    assert bool(notes) == (orientation > 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_is_resized_smoothly(tmp_path, mode):
    """Palettes and single bits are converted first: between two of them there is no colour."""
    half = np.zeros((40, 40), np.uint8)
    half[:, :20] = 255
    image = Image.fromarray(half)
    if mode == "I;16":
        image = Image.fromarray(half.astype(np.uint16) * 257)
    suffix = "tif" if mode == "CMYK" else "png"
    (image if mode in ("L", "I;16") else image.convert(mode)).save(tmp_path / f"a.{suffix}")
    pixels = decode_as_shown(tmp_path / f"a.{suffix}", channels=1, size=(5, 5)).pixels[..., 0]
    assert (np.abs(pixels[:, 0].astype(int) - 255) <= 20).all()
    assert ((pixels[:, 2] > 100) & (pixels[:, 2] < 155)).all()
    assert (pixels[:, 4] <= 20).all()


def test_pictures_of_several_sizes_need_resize(tmp_path):
    for name, size in {"a.png": (8, 8), "b.png": (8, 8), "c.jpg": (9, 8), "d.png": (7, 8)}.items():
        smooth(*size).save(tmp_path / name)
    message = r"a.png is 8 x 8 and .*c.jpg is 8 x 9. Add --resize H W \(--resize 8 8, for example"
    with pytest.raises(ValueError, match=message):
        load_rows(f"folder:{tmp_path}")
    rows = load_rows(f"folder:{tmp_path}", pictures=PictureOptions(resize=(4, 6)))
    assert rows.examples.shape == (4, 4, 6, 3)
    assert "scaled and cropped to 4 x 6" in rows.about


def test_channels_may_be_asked_for(tmp_path):
    smooth(8, 8).save(tmp_path / "a.png")
    smooth(8, 8).convert("L").save(tmp_path / "b.png")
    grey = load_rows(f"folder:{tmp_path}", pictures=PictureOptions(channels=1))
    assert grey.examples.shape == (2, 8, 8, 1)
    assert np.abs(grey.examples[0].astype(int) - grey.examples[1]).max() == 0
    assert "1 in colour, converted to grey" in grey.about
    (tmp_path / "a.png").unlink()
    colour = load_rows(f"folder:{tmp_path}", pictures=PictureOptions(channels=3))
    assert colour.examples.shape == (1, 8, 8, 3)
    assert "converted" not in colour.about
    assert load_rows(f"folder:{tmp_path}").examples.shape == (1, 8, 8, 1)


@pytest.fixture
def pictures(tmp_path):
    """200 colour PNGs of 96 x 128: some broken in header or pixels, some turned, in two classes."""
    folder = tmp_path / "pictures"
    broken = {}
    for number in range(200):
        path = folder / f"class {number % 2}" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = smooth(96, 128, number)
        if number % 20 == 3:
            turned = image.transpose(Image.Transpose.ROTATE_90)
            turned.save(path, exif=exif(6), compress_level=1)
        else:
            image.save(path, compress_level=1)
        if number % 50 == 7:
            path.write_bytes(path.read_bytes()[:-2000])
        elif number % 50 == 8:
            path.write_bytes(b"no picture")
        if number % 50 in (7, 8):
            broken[number] = path.relative_to(folder).as_posix()
    return folder, broken


def test_folder_of_200_pictures_with_broken_and_turned_ones(pictures):
    folder, broken = pictures
    with pytest.raises(ValueError, match=r"; 8 of 200 are not: .*and 5 more.*unreadable to leave"):
        load(f"folder:{folder}")
    rows = load_rows(f"folder:{folder}", pictures=SKIP)
    assert rows.examples.shape == (192, 96, 128, 3)
    assert "8 unreadable pictures skipped: class 0/008.png, class 0/058.png, " in rows.about
    assert " and 3 more" in rows.about
    assert "10 turned as their EXIF orientation says" in rows.about
    assert not set(broken.values()) & set(rows.files)
    for name, label, pixels in zip(rows.files, rows.labels, rows.examples, strict=True):
        number = int(name[-7:-4])
        assert label == number % 2
        np.testing.assert_array_equal(pixels, np.asarray(smooth(96, 128, number)))
    assert rows.label_names == ("class 0", "class 1")


def test_splits_with_skipped_pictures_have_their_files_and_labels(pictures):
    folder, _ = pictures
    rows = load_rows(f"folder:{folder}", pictures=SKIP)
    dataset = load(f"folder:{folder}", pictures=SKIP)
    assert [len(part) for part in dataset[1:4]] == [154, 19, 19]
    indices = np.concatenate([dataset.indices[split] for split in ("train", "validation", "test")])
    np.testing.assert_array_equal(np.sort(indices), np.arange(192))
    np.testing.assert_array_equal(whole(dataset), rows.examples[indices])
    for split in ("train", "validation", "test"):
        own = dataset.rows(split)
        assert own.files.tolist() == rows.files[own.indices].tolist()
        assert own.labels.tolist() == rows.labels[own.indices].tolist()


def test_order_of_the_splits_does_not_depend_on_how_they_are_read(pictures):
    """`load` decodes pictures in the order of the splits, `read` in that of the files."""
    from experiments.data import read
    from experiments.data.splits import assemble

    folder, broken = pictures
    for name in [None, *broken.values()]:
        if name:
            (folder / name).unlink()
        if name in (None, [*broken.values()][-1]):
            one = load(f"folder:{folder}", pictures=SKIP)
            other = assemble(read(f"folder:{folder}", pictures=SKIP), None)
            for split in ("train", "validation", "test"):
                np.testing.assert_array_equal(getattr(one, split), getattr(other, split))
                np.testing.assert_array_equal(one.indices[split], other.indices[split])
    # Without broken pictures the splits are those of every other data set of this size.
    order = np.random.default_rng(0).permutation(192)
    np.testing.assert_array_equal(one.indices["test"], order[-19:])


def test_not_all_pictures_may_be_skipped(tmp_path):
    for name in ("train/a.png", "train/b.png", "test/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"3 of 3 are not: .*Repair them or move them away\.$"):
        load(f"folder:{tmp_path}", pictures=SKIP)
    smooth(8, 8).save(tmp_path / "train" / "a.png")
    with pytest.raises(ValueError, match=r"test must have images that can be read; none of its 1"):
        load(f"folder:{tmp_path}", pictures=SKIP)


def test_folder_of_three_pictures(tmp_path):
    for number in range(3):
        smooth(8, 8, number).save(tmp_path / f"{number}.png")
    dataset = load(f"folder:{tmp_path}")
    assert [len(part) for part in dataset[1:4]] == [2, 0, 1]
    assert len(load_rows(f"folder:{tmp_path}").examples) == 3


def test_flags_of_pictures_are_rejected_for_other_data(tmp_path):
    for options in (PictureOptions(resize=(8, 8)), SKIP):
        with pytest.raises(ValueError, match=r"are for folder:PATH; the data set is 'mnist_small'"):
            load("mnist_small", pictures=options)
    assert len(load("mnist_small", pictures=PictureOptions(cache=tmp_path)).train)


def test_no_more_than_a_few_pictures_are_held(tmp_path, monkeypatch):
    """Decoding stops while the rows are not taken: memory does not grow with their number."""
    for number in range(300):
        Image.new("L", (4, 4), number % 256).save(tmp_path / f"{number:03}.png")
    decoded, lock = [], threading.Lock()

    def counting(path, channels, size):
        with lock:
            decoded.append(path)
        return decode_as_shown(path, channels, size)

    monkeypatch.setattr(prepare, "decode_as_shown", counting)
    monkeypatch.setattr(prepare, "MOST_AT_ONCE", 4)
    files = [f"{number:03}.png" for number in range(300)]
    rows = prepare.Rows(tmp_path, files, PictureOptions())
    threads = min(prepare.MOST_THREADS, prepare.os.cpu_count() or 1)
    taken = [pixels[0, 0, 0] for pixels, _ in zip(rows, range(50), strict=False)]
    assert taken == list(range(50))
    assert len(decoded) <= 51 + 4 * (prepare.PIECES_PER_THREAD * threads + 1)


def test_work_that_takes_long_shows_its_progress(tmp_path, monkeypatch):
    import contextlib

    shown = []

    @contextlib.contextmanager
    def counted(what, total, *, quiet):
        assert not quiet
        yield lambda done: shown.append((what, total, done))

    for number in range(3):
        smooth(8, 8, number).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(prepare, "counted", counted)
    load_rows(f"folder:{tmp_path}")
    assert ("Preparing pictures", 3, 2) in shown


@pytest.mark.parametrize("colour", [0, 2, 299])
def test_one_picture_in_colour_anywhere_makes_all_colour(tmp_path, colour):
    for number in range(300):
        Image.new("L", (4, 4), number % 256).save(tmp_path / f"{number:03}.png")
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / f"{colour:03}.png")
    rows = load_rows(f"folder:{tmp_path}")
    assert rows.examples.shape == (300, 4, 4, 3)
    assert rows.examples[colour, 0, 0].tolist() == [1, 2, 3]
    others = np.delete(rows.examples, colour, 0)
    assert (others == np.delete(np.arange(300) % 256, colour)[:, None, None, None]).all()
