"""Rows of other data sets: all rows in their order, with labels, files and indices."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.data import load, load_rows
from experiments.encode import EncodeConfig, encode
from experiments.evaluate import EvaluateConfig, evaluate
from experiments.flags.command import UserError
from tests.splits import numbered


def bars(count, seed=0):
    rng = np.random.default_rng(seed)
    images = np.zeros((count, 8, 8), np.uint8)
    images[np.arange(count), rng.integers(0, 8, count)] = 255
    return images


def test_rows_of_one_part_are_all_in_order_with_their_labels(tmp_path):
    np.savez(tmp_path / "a.npz", x=numbered(100), y=np.arange(100) + 7)
    rows = load_rows(f"npz:{tmp_path}/a.npz")
    np.testing.assert_array_equal(rows.examples, numbered(100))
    np.testing.assert_array_equal(rows.labels, np.arange(100) + 7)
    np.testing.assert_array_equal(rows.indices, np.arange(100))
    assert (rows.indices.dtype, rows.labels.dtype) == (np.int64, np.int32)
    assert rows.files is None
    assert rows.parts is None
    assert rows.about == f"own arrays, 100 rows; from {tmp_path}/a.npz"


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("form", ["npy", "npz", "npy folder", "named test"])
def test_load_rows_accepts_a_single_row(form, count, tmp_path):
    place = tmp_path / "a.npy"
    if form == "npy":
        np.save(place, numbered(count))
    elif form == "npy folder":
        place.mkdir()
        np.save(place / "train.npy", numbered(count))
    else:
        place = tmp_path / "a.npz"
        np.savez(place, **{"x_test" if form == "named test" else "x": numbered(count)})
    rows = load_rows(f"{form[:3] if form != 'named test' else 'npz'}:{place}")
    np.testing.assert_array_equal(rows.examples, numbered(count))


def test_parts_are_concatenated_in_order_with_their_names(tmp_path):
    np.savez(tmp_path / "a.npz", x_test=numbered(9)[5:], x_train=numbered(9)[:4],
             x_val=numbered(9)[4:5], y_train=np.arange(4), y_val=np.array([4]),
             y_test=np.arange(5, 9))  # fmt: skip
    rows = load_rows(f"npz:{tmp_path}/a.npz")
    np.testing.assert_array_equal(rows.examples, numbered(9))
    np.testing.assert_array_equal(rows.labels, np.arange(9))
    np.testing.assert_array_equal(rows.indices, [0, 1, 2, 3, 0, 0, 1, 2, 3])
    assert list(rows.parts) == ["train"] * 4 + ["validation"] + ["test"] * 4
    assert "9 rows (4 train + 1 validation + 4 test)" in rows.about
    rows = load_rows(f"npz:{tmp_path}/a.npz", "test")
    np.testing.assert_array_equal(rows.examples, numbered(9)[5:])
    np.testing.assert_array_equal(rows.labels, np.arange(5, 9))
    assert rows.parts is None


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (("x",), "test", r"no part test; it has all\. Leave out --split to take all rows"),
        (("x_train", "x_test"), "validation", r"no part validation; it has train, test\. Leave"),
    ],
)
def test_missing_part_is_rejected(names, split, message, tmp_path):
    np.savez(tmp_path / "a.npz", **{name: numbered(4) for name in names})
    with pytest.raises(ValueError, match=message):
        load_rows(f"npz:{tmp_path}/a.npz", split)


def test_parts_of_two_types_are_rejected(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=numbered(4), x_test=numbered(4).astype(np.uint8))
    with pytest.raises(ValueError, match=r"examples of the same shape and type; they"):
        load_rows(f"npz:{tmp_path}/a.npz")
    assert len(load_rows(f"npz:{tmp_path}/a.npz", "test").examples) == 4


def test_arrays_and_labels_that_are_left_out_are_listed(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=numbered(4), x_test=numbered(5), y_test=np.arange(5),
             ids=np.arange(3), x=numbered(3))  # fmt: skip
    rows = load_rows(f"npz:{tmp_path}/a.npz")
    assert rows.labels is None
    assert "arrays left out: ids, x" in rows.about
    assert "labels left out, as train has none" in rows.about
    assert "arrays left out: ids, x" in load(f"npz:{tmp_path}/a.npz").about
    np.savez(tmp_path / "b.npz", x=numbered(4), y=np.arange(4))
    assert "left out" not in load_rows(f"npz:{tmp_path}/b.npz").about


def test_indices_of_splits_are_positions_in_the_array(tmp_path):
    np.savez(tmp_path / "a.npz", x=numbered(50))
    dataset = load(f"npz:{tmp_path}/a.npz")
    for split in ("train", "validation", "test"):
        rows = dataset.rows(split)
        np.testing.assert_array_equal(rows.examples, numbered(50)[rows.indices])


def test_memory_mapped_rows_stay_on_disk(tmp_path):
    np.save(tmp_path / "train.npy", numbered(4))
    assert isinstance(load_rows(f"npy:{tmp_path}").examples, np.memmap)


@pytest.fixture
def pictures(tmp_path):
    """Folders of pictures whose first pixel is their number, and a file that is not a picture."""
    for number, name in enumerate(["b/2.png", "a.PNG", "b/10.png", "ü x.png", "b/1.png"]):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(path)
    (tmp_path / "pictures" / "notes.txt").write_text("none")
    return tmp_path / "pictures"


def test_pictures_have_their_file_names(pictures):
    rows = load_rows(f"folder:{pictures}")
    assert list(rows.files) == ["a.PNG", "b/1.png", "b/10.png", "b/2.png", "ü x.png"]
    assert list(rows.examples[:, 0, 0, 0]) == [1, 4, 2, 0, 3]
    assert rows.about == f"own images, 5 rows; from {pictures}; 1 file left out: 1 .txt"
    test = load(f"folder:{pictures}").rows("test")
    assert list(test.files) == [rows.files[i] for i in test.indices]


def test_pictures_in_folders_of_splits_have_their_part_in_the_name(tmp_path):
    for name in ("train/a.png", "test/a.png", "test/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    rows = load_rows(f"folder:{tmp_path}")
    assert list(rows.files) == ["train/a.png", "test/a.png", "test/b.png"]
    assert list(rows.parts) == ["train", "test", "test"]


def test_file_name_that_is_not_utf8_is_preserved(tmp_path):
    name = os.fsdecode(b"\xff.png")
    try:
        Image.new("L", (4, 4)).save(tmp_path / name)
    except OSError:
        pytest.skip("the file system has no such names")
    rows = load_rows(f"folder:{tmp_path}")
    np.savez(tmp_path / "codes.npz", files=rows.files)
    with np.load(tmp_path / "codes.npz") as codes:
        assert codes["files"].tolist() == [name]


@pytest.mark.slow
def test_codes_of_other_rows_are_all_in_order(whole_run, tmp_path):
    images = bars(85, seed=1)
    np.savez(tmp_path / "new.npz", x=images, y=np.arange(85) + 7)
    np.savez(tmp_path / "single.npz", x=images[3:4])
    codes = {}
    for name, flags in {
        "own": {},
        "new": {"dataset": f"npz:{tmp_path}/new.npz"},
        "single": {"dataset": f"npz:{tmp_path}/single.npz"},
    }.items():
        output = tmp_path / "codes" / f"{name}.npz"
        encode(EncodeConfig(whole_run.run, output=output, num_devices=1, **flags))
        with np.load(output) as file:
            codes[name] = {key: file[key] for key in file}
    new, single = codes["new"], codes["single"]
    assert new["index"].dtype == np.int64
    np.testing.assert_array_equal(new["index"], np.arange(85))
    np.testing.assert_array_equal(new["labels"], np.arange(85) + 7)
    # Binarization keeps black and white pixels, so that equal images have equal codes.
    _, first, which = np.unique(images, axis=0, return_index=True, return_inverse=True)
    np.testing.assert_allclose(new["mean"], new["mean"][first][which.ravel()], rtol=1e-5, atol=1e-6)
    assert len(np.unique(new["mean"].round(4), axis=0)) == len(first)
    np.testing.assert_allclose(single["mean"], new["mean"][3:4], rtol=1e-5, atol=1e-6)
    assert single["index"].tolist() == [0]
    dataset = load(whole_run.dataset)
    np.testing.assert_array_equal(codes["own"]["index"], dataset.indices["test"])


@pytest.mark.slow
def test_encoded_pictures_have_their_file_names(whole_run, pictures):
    for path in pictures.rglob("*.[pP][nN][gG]"):
        number = Image.open(path).getpixel((0, 0))
        Image.fromarray(bars(1, seed=number)[0]).save(path)
    encode(EncodeConfig(whole_run.run, dataset=f"folder:{pictures}", num_devices=1))
    (path,) = (whole_run.run / "codes").glob("all-*.npz")
    with np.load(path) as codes:
        assert list(codes["files"]) == ["a.PNG", "b/1.png", "b/10.png", "b/2.png", "ü x.png"]
        assert codes["mean"].shape == (5, 2)


def test_a_single_row_is_evaluated(whole_run, tmp_path, capsys):
    np.savez(tmp_path / "one.npz", x=bars(1))
    config = EvaluateConfig(
        whole_run.run, dataset=f"npz:{tmp_path}/one.npz", num_samples=2, output=tmp_path / "out"
    )
    evaluate(config)
    output = capsys.readouterr().out
    assert "not the run's data: own arrays, 1 row; from" in output
    assert "1 examples" in output
    assert "active units" not in output  # a single row has no variance
    (path,) = (tmp_path / "out").glob("all-best-2-one-*.npz")
    with np.load(path) as scores:
        assert scores["elbo"].shape == (1,)


def test_split_of_other_data_that_is_missing_is_rejected_by_the_commands(whole_run, tmp_path):
    np.savez(tmp_path / "one.npz", x=bars(3))
    name = f"npz:{tmp_path}/one.npz"
    for command, flags in ((evaluate, EvaluateConfig), (encode, EncodeConfig)):
        with pytest.raises(UserError, match=r"no part test; it has all\. Leave out --split"):
            command(flags(Path(whole_run.run), dataset=name, split="test"))
