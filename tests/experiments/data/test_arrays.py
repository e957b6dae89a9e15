"""The user's own data in npz and npy files: splits, types and errors."""

from pathlib import Path

import numpy as np
import pytest

from experiments.data import load, load_rows
from tests.splits import numbered, whole


@pytest.mark.parametrize(
    ("count", "num_validation"),
    [(2, None), (2, 0), (9, None), (9, 7), (10, None), (57, None), (57, 0), (57, 3)],
)
def test_random_splits_are_disjoint_and_complete(
    tmp_path: Path, count: int, num_validation: int | None
) -> None:
    np.save(tmp_path / "a.npy", numbered(count))
    dataset = load(f"npy:{tmp_path}/a.npy", num_validation=num_validation)
    assert len(dataset.test) == max(1, count // 10)
    assert len(dataset.validation) == (count // 10 if num_validation is None else num_validation)
    np.testing.assert_array_equal(np.sort(whole(dataset)[:, 0]), numbered(count)[:, 0])
    other = load(f"npy:{tmp_path}/a.npy", num_validation=0)
    np.testing.assert_array_equal(other.test, dataset.test)
    np.testing.assert_array_equal(other.train, np.concatenate([dataset.train, dataset.validation]))


def test_labels_follow_their_examples(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=numbered(50), labels=np.arange(50))
    dataset = load(f"npz:{tmp_path}/a.npz")
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(dataset, split)[:, 0], 2 * dataset.labels[split])
        assert dataset.labels[split].dtype == np.int32


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("train", "validation", "test"), "{}_labels"),
        (("x_train", "x_val", "x_test"), "y_{}"),
    ],
)
def test_named_splits_become_the_splits_of_the_data_set(
    tmp_path: Path, names: tuple[str, str, str], labels: str
) -> None:
    parts = {names[0]: numbered(20)[:9], names[1]: numbered(20)[9:13], names[2]: numbered(20)[13:]}
    marks = {labels.format(name.removeprefix("x_")): np.arange(len(a)) for name, a in parts.items()}
    np.savez(tmp_path / "a.npz", **parts, **marks)
    dataset = load(f"npz:{tmp_path}/a.npz")
    for given, kept in zip(parts.values(), dataset[1:4], strict=True):
        np.testing.assert_array_equal(given, kept)
    assert {split: len(values) for split, values in dataset.labels.items()} == {
        "train": 9,
        "validation": 4,
        "test": 7,
    }


def test_validation_split_is_cut_from_the_end_of_a_named_train_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=numbered(30), x_test=numbered(34)[30:])
    dataset = load(f"npz:{tmp_path}/a.npz")
    np.testing.assert_array_equal(whole(dataset), numbered(34))
    assert [len(part) for part in dataset[1:4]] == [27, 3, 4]


@pytest.mark.parametrize(
    ("given", "dtype", "shape"),
    [
        (np.ones((10, 3), np.float64), np.float32, (3,)),
        (np.ones((10, 3), np.float16), np.float32, (3,)),
        (np.ones((10, 5, 4), np.uint8), np.uint8, (5, 4, 1)),
        (np.ones((10, 5, 4, 3), np.uint8), np.uint8, (5, 4, 3)),
        (np.ones((10, 5, 4), bool), np.uint8, (5, 4, 1)),
        (np.ones((10, 7), np.int64), np.int32, (7,)),
        (np.ones((10, 7), ">u2"), np.int32, (7,)),
    ],
)
def test_arrays_get_their_stored_type_and_rank(
    tmp_path: Path, given: np.ndarray, dtype: type, shape: tuple[int, ...]
) -> None:
    np.save(tmp_path / "a.npy", given)
    dataset = load(f"npy:{tmp_path}/a.npy")
    assert dataset.train.dtype == dtype
    assert dataset.train.dtype.isnative
    assert dataset.train.shape == (8, *shape)
    assert (dataset.train == 1).all()


WITH_NAN = numbered(10)
WITH_NAN[3, 1] = np.nan


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((0, 3)), r"with no empty axis; its shape is \[0, 3\]"),
        (np.zeros((1, 3)), "must have at least two examples.*it has 1. Give more"),
        (np.zeros(5), r"must be \[N, D\].*its shape is \[5\]. Reshape it"),
        (np.zeros((2, 2, 2, 2, 2)), r"its shape is \[2, 2, 2, 2, 2\]"),
        (np.zeros((9, 3), complex), "must be bool, integers or floats; it has type complex128"),
        (np.full((9, 3), "a"), "must be bool, integers or floats; it has type <U1"),
        (WITH_NAN, "must have finite float32 values; example 3 has NaN"),
        (np.array([[0.0, 1e39], [0, 0]]), "must have finite float32 values; example 0 has"),
        (np.array([[0, 2**31], [0, 0]]), "integers that fit 32 bits; .* from 0 to 2147483648"),
        (np.array([["a", 1], [None, 2]], object), "without Python objects; reading it gave: "),
    ],
)
def test_arrays_of_invalid_shape_type_or_value_are_rejected(
    tmp_path: Path, given: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "a.npy", given)
    with pytest.raises(ValueError, match=message):
        load(f"npy:{tmp_path}/a.npy")
    np.savez(tmp_path / "a.npz", x=given)
    with pytest.raises(ValueError, match=message):
        load(f"npz:{tmp_path}/a.npz")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"a": numbered(9), "b": numbered(3)},
            r"named x_train and x_test, or one named x; it holds a float32 \[9, 2\], b float32 "
            r"\[3, 2\]. Rename the data to x and labels to y",
        ),
        ({"x": numbered(9), "Images": numbered(8)}, r"x and Images have the same role; it holds x"),
        ({"x_train": numbered(9), "train": numbered(9)}, "x_train and train have the same role"),
        ({"x": numbered(9), "y": np.arange(9), "labels": np.arange(9)}, "y and labels have the sa"),
        ({"train": numbered(9), "val": numbered(9)}, "it has train, validation. Add what"),
        ({"train": numbered(9), "test": np.zeros((3, 5))}, r"train \[2\] float32, test \[5\]"),
        ({"train": numbered(9), "test": np.zeros((3, 2), bool)}, r"float32, test \[2\] uint8"),
        ({"x": np.array(1), "y": np.arange(9)}, r"its shape is \[\]. Reshape it"),
        ({"labels": np.arange(4)}, r"it holds labels int64 \[4\]. Rename"),
        ({}, "it holds no array. Rename"),
    ],
)
def test_npz_without_usable_arrays_is_rejected(
    tmp_path: Path, given: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "a.npz", **given)
    with pytest.raises(ValueError, match=message):
        load(f"npz:{tmp_path}/a.npz")


@pytest.mark.parametrize("form", ["npz", "npy"])
def test_damaged_array_files_are_rejected(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form}"
    if form == "npz":
        np.savez_compressed(path, x=np.random.default_rng(0).random((50, 20)))
    else:
        np.save(path, np.random.default_rng(0).random((50, 20)))
    right = path.read_bytes()
    flipped = right[:600] + bytes([right[600] ^ 255]) + right[601:]
    damages = {"cut": right[:-900], "empty": b"", "foreign": b"x" * 900, "text": b"1,2,3\n"}
    for damage in damages.values():
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=f"{path} must be a whole .{form} file of plain"):
            load(f"{form}:{path}")
    if form == "npz":
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=f"{path} must be a whole .npz file of plain"):
            load(f"npz:{path}")


def test_array_files_of_the_other_format_are_rejected(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", numbered(9))
    np.savez(tmp_path / "a.npz", x=numbered(9))
    with pytest.raises(ValueError, match=f"a.npy is an .npy. Use npy:{tmp_path}"):
        load(f"npz:{tmp_path}/a.npy")
    with pytest.raises(ValueError, match=f"a.npz is an .npz. Use npz:{tmp_path}"):
        load(f"npy:{tmp_path}/a.npz")


def test_missing_array_files_and_folders_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*no.npz. Correct the path"):
        load(f"npz:{tmp_path}/no.npz")
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder.*npy:.*folder:{tmp_path}"):
        load(f"npz:{tmp_path}")
    with pytest.raises(ValueError, match=f"npy:{tmp_path} must have arrays named x_train.npy and"):
        load(f"npy:{tmp_path}")


@pytest.mark.parametrize(
    ("kept", "values"), [(np.uint8, np.uint8), (np.uint8, bool), (np.float32, np.float32)]
)
def test_folder_of_arrays_stays_on_disk(tmp_path: Path, kept: type, values: type) -> None:
    parts = {"train": np.arange(480), "test": np.arange(84)}
    parts = {name: (part % 5 // 2).astype(values).reshape(-1, 4, 3) for name, part in parts.items()}
    labels = {"train_labels": np.arange(40), "test_labels": np.arange(7)}
    for name, array in (parts | labels).items():
        np.save(tmp_path / f"{name}.npy", array)
    np.savez(tmp_path / "same.npz", **parts, **labels)
    mapped, same = load(f"npy:{tmp_path}"), load(f"npz:{tmp_path}/same.npz")
    for split in ("train", "validation", "test"):
        array = getattr(mapped, split)
        assert isinstance(array, np.memmap)
        assert array.dtype == kept
        np.testing.assert_array_equal(array, getattr(same, split))
        np.testing.assert_array_equal(mapped.labels[split], same.labels[split])


def test_folder_of_arrays_is_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "test.npy", np.zeros((3, 2), np.uint8))
    np.save(tmp_path / "train.npy", np.array([[{}], [{}]], object))
    with pytest.raises(ValueError, match=r"train.npy must be a whole .npy file .*without Python"):
        load(f"npy:{tmp_path}")


@pytest.mark.parametrize(
    "data",
    ["x", "X", "data", "images", "image", "imgs", "features", "arr_0", "inputs", "observations",
     "Obs", "anything"],
)  # fmt: skip
@pytest.mark.parametrize(
    "labels", ["y", "Y", "labels", "label", "targets", "target", "classes", None]
)
def test_names_of_whole_data_and_labels_are_recognised(
    tmp_path: Path, data: str, labels: str | None
) -> None:
    arrays = {data: numbered(9)} | ({} if labels is None else {labels: np.arange(9)})
    np.savez(tmp_path / "a.npz", **arrays)
    (tmp_path / "folder").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "folder" / f"{name}.npy", array)
    for source in (f"npz:{tmp_path}/a.npz", f"npy:{tmp_path}/folder"):
        rows = load_rows(source)
        np.testing.assert_array_equal(rows.examples, numbered(9))
        assert (rows.labels is None) == (labels is None)
        assert "left out" not in rows.about


@pytest.mark.parametrize(
    "form",
    ["x_{}", "X_{}", "{}", "{}_images", "images_{}", "{}_data", "x-{}", "{}X", "x{}", "{}.imgs"],
)
@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("y_{}", ("train", "valid", "test")),
        ("{}_labels", ("Train", "Val", "Test")),
        ("labels_{}", ("training", "validation", "testing")),
        ("{}Y", ("train", "dev", "test")),
    ],
)
def test_names_of_parts_are_recognised(
    tmp_path: Path, form: str, labels: str, words: tuple[str, str, str]
) -> None:
    counts = dict(zip(words, (4, 2, 3), strict=True))
    arrays = {form.format(word): numbered(9)[:count] for word, count in counts.items()}
    arrays |= {labels.format(word): np.arange(count) for word, count in counts.items()}
    np.savez(tmp_path / "a.npz", **arrays, ids=np.arange(9))
    dataset = load(f"npz:{tmp_path}/a.npz")
    assert [len(part) for part in dataset[1:4]] == [4, 2, 3]
    assert {split: len(codes) for split, codes in dataset.labels.items()} == {
        "train": 4,
        "validation": 2,
        "test": 3,
    }
    assert dataset.about.endswith("arrays left out: ids")


def test_array_of_python_objects_may_stand_beside_the_data(tmp_path: Path) -> None:
    objects = np.array([{}, None], object)
    np.savez(tmp_path / "a.npz", imgs=numbered(9), metadata=objects)
    assert load_rows(f"npz:{tmp_path}/a.npz").about.endswith("arrays left out: metadata")
    np.savez(tmp_path / "b.npz", a=numbered(9), metadata=objects)
    with pytest.raises(ValueError, match=r"a float32 \[9, 2\], metadata object \[2\]. Rename"):
        load_rows(f"npz:{tmp_path}/b.npz")
    np.savez(tmp_path / "c.npz", x=numbered(2), y=np.array(["a", "b"], object))
    with pytest.raises(ValueError, match=r"Convert text with array.astype\(str\), and save it"):
        load_rows(f"npz:{tmp_path}/c.npz")


@pytest.mark.parametrize("name", ["a.npy", "with spaces é 数.npy"])
@pytest.mark.parametrize(
    ("given", "dtype", "mapped"),
    [
        (np.arange(24.0).reshape(6, 4), np.float32, False),
        (np.arange(24, dtype=">f4").reshape(6, 4), np.float32, False),
        (np.arange(24, dtype=np.float32).reshape(6, 4), np.float32, True),
        (np.arange(24, dtype=np.int64).reshape(6, 4), np.int32, False),
        (np.arange(24, dtype=">i8").reshape(6, 4), np.int32, False),
        (np.arange(24, dtype=np.int32).reshape(6, 4), np.int32, True),
        (np.arange(24, dtype=np.uint8).reshape(6, 4), np.uint8, True),
        (np.arange(24).reshape(6, 4) % 3 == 0, np.uint8, True),
        (np.asfortranarray(np.arange(24, dtype=np.float32).reshape(6, 4)), np.float32, True),
        (np.asfortranarray(np.arange(24, dtype=np.uint8).reshape(6, 2, 2)), np.uint8, True),
        (np.asfortranarray(np.arange(24).reshape(6, 4) % 3 == 0), np.uint8, True),
        (np.arange(24, dtype=np.float32).reshape(1, 24), np.float32, True),
    ],
)
def test_every_form_of_npy_is_read_right(
    tmp_path: Path, name: str, given: np.ndarray, dtype: type, mapped: bool
) -> None:
    np.save(tmp_path / name, given)
    rows = load_rows(f"npy:{tmp_path}/{name}")
    assert rows.examples.dtype == dtype
    assert rows.examples.dtype.isnative
    assert isinstance(rows.examples, np.memmap) == mapped
    np.testing.assert_array_equal(rows.examples.reshape(given.shape), given)
    if len(given) > 1:
        dataset = load(f"npy:{tmp_path}/{name}")
        for split in ("train", "validation", "test"):
            expected = given[dataset.indices[split]]
            np.testing.assert_array_equal(getattr(dataset, split).reshape(expected.shape), expected)
