"""Labels of every kind: numbers, booleans and text, with the names of their classes."""

import numpy as np
import pytest

from experiments.data import load, load_rows
from experiments.encode import EncodeConfig, encode
from tests.splits import numbered


def rows_of(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return load_rows(f"npz:{tmp_path}/a.npz")


@pytest.mark.parametrize(
    ("labels", "codes", "names"),
    [
        (np.array([3, -1, 3]), [3, -1, 3], None),
        (np.array([3, 1, 3], np.uint8), [3, 1, 3], None),
        (np.array([3, 1, 3], ">i2"), [3, 1, 3], None),
        (np.array([[3], [1], [3]]), [3, 1, 3], None),
        (np.array([3.0, -1.0, 0.0]), [3, -1, 0], None),
        (np.array([True, False, True]), [1, 0, 1], ("False", "True")),
        (np.array(["dog", "cat", "dog"]), [1, 0, 1], ("cat", "dog")),
        (np.array(["é 数", "b", "a"]), [2, 1, 0], ("a", "b", "é 数")),
        (np.array(["é".encode(), b"b", b"b"]), [1, 0, 0], ("b", "é")),
    ],
)
def test_labels_become_int32_with_names(labels, codes, names, tmp_path):
    rows = rows_of(tmp_path, x=numbered(3), y=labels)
    assert rows.labels.dtype == np.int32
    assert rows.labels.tolist() == codes
    assert rows.label_names == names


def test_names_are_shared_by_all_parts_and_follow_their_examples(tmp_path):
    words = np.array([f"class {i % 7}" for i in range(50)])
    np.savez(tmp_path / "a.npz", x_train=numbered(50), x_test=numbered(3), y_train=words,
             y_test=np.array(["class 9", "class 0", "other"]))  # fmt: skip
    dataset = load(f"npz:{tmp_path}/a.npz")
    assert dataset.label_names == (*(f"class {i}" for i in range(7)), "class 9", "other")
    for split in ("train", "validation"):
        rows = dataset.rows(split)
        assert rows.label_names == dataset.label_names
        named = np.array(rows.label_names)[rows.labels]
        assert named.tolist() == [f"class {i // 2 % 7}" for i in rows.examples[:, 0].astype(int)]
    assert load_rows(f"npz:{tmp_path}/a.npz").label_names == dataset.label_names
    np.savez(tmp_path / "b.npz", x=numbered(50), y=words)
    whole = load(f"npz:{tmp_path}/b.npz")
    for split in ("train", "test"):
        named = np.array(whole.label_names)[whole.labels[split]]
        assert named.tolist() == words[whole.indices[split]].tolist()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.arange(8)}, r"The labels y of x in .*one for each example; they are int64 \[8\]"),
        ({"y": np.arange(9) / 2}, r"must be whole numbers; label 1 is 0.5. Convert them"),
        ({"y": np.full(9, np.nan)}, r"must be whole numbers; label 0 is nan"),
        ({"y": np.eye(9)}, r"text \[9\], one for each example; they are float64 \[9, 9\]"),
        ({"y": np.full(9, 1j)}, r"they are complex128 \[9\]. Convert them, or give them a name"),
        ({"y": np.arange(9) + 2**40}, "must have integers that fit 32 bits"),
        ({"y": np.full(9, 1e12)}, "must have integers that fit 32 bits"),
        ({"y": np.array("a")}, r"they are <U1 \[\]"),
    ],
)
def test_labels_that_are_none_are_named(arrays, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        rows_of(tmp_path, x=numbered(9), **arrays)


def test_labels_of_two_kinds_are_rejected(tmp_path):
    with pytest.raises(
        ValueError, match=r"one kind in all parts; they are text \(train\), numbers"
    ):
        rows_of(tmp_path, x_train=numbered(2), x_test=numbered(1), y_train=np.array(["a", "b"]),
                y_test=np.array([1]))  # fmt: skip


def test_names_are_absent_where_labels_are(tmp_path):
    rows = rows_of(tmp_path, x_train=numbered(2), x_test=numbered(1), y_test=np.array(["a"]))
    assert (rows.labels, rows.label_names) == (None, None)
    dataset = load(f"npz:{tmp_path}/a.npz", num_validation=0)
    assert dataset.rows("train").label_names is None
    assert dataset.rows("test").label_names == ("a",)


@pytest.mark.slow
def test_codes_have_the_names_of_the_classes(whole_run, tmp_path):
    words = np.array(["bird", "ant", "cow", "ant"])
    np.savez(tmp_path / "new.npz", x=np.zeros((4, 8, 8), np.uint8) + 250, y=words)
    output = tmp_path / "codes.npz"
    encode(EncodeConfig(whole_run.run, dataset=f"npz:{tmp_path}/new.npz", output=output))
    with np.load(output) as codes:
        assert codes["labels"].tolist() == words.tolist()
