"""Pictures below a folder: their order, their parts, and classes from subfolders."""

import numpy as np
import pytest
from PIL import Image

from experiments.data import load, load_rows
from experiments.data.pictures.find import classes, find


def lay(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(folder / name)


def test_subfolders_are_classes(tmp_path):
    lay(tmp_path, "dog/1.png", "cat/1.png", "ü x/1.png", "cat/2.png")
    rows = load_rows(f"folder:{tmp_path}")
    assert rows.label_names == ("cat", "dog", "ü x")
    assert rows.labels.dtype == np.int32
    assert rows.labels.tolist() == [0, 0, 1, 2]
    assert [name.split("/")[0] for name in rows.files] == ["cat", "cat", "dog", "ü x"]


@pytest.mark.parametrize(
    "names",
    [
        ("a/1.png", "b/1.png", "2.png"),
        ("a/1.png", "b/c/1.png"),
        ("a/1.png", "a/2.png"),
        ("1.png", "2.png"),
        ("train/1.png", "test/1.png"),
        ("train/a/1.png", "test/a/1.png"),
    ],
)
def test_other_folders_give_no_labels(tmp_path, names):
    lay(tmp_path, *names)
    rows = load_rows(f"folder:{tmp_path}")
    assert (rows.labels, rows.label_names) == (None, None)
    assert len(rows.examples) == len(names)


def test_classes_are_those_of_all_parts(tmp_path):
    lay(tmp_path, "train/b/1.png", "train/b/2.png", "test/c/1.png", "validation/a/1.png",
        "test/b/1.png")  # fmt: skip
    dataset = load(f"folder:{tmp_path}")
    assert dataset.label_names == ("a", "b", "c")
    assert {split: codes.tolist() for split, codes in dataset.labels.items()} == {
        "train": [1, 1],
        "validation": [0],
        "test": [1, 2],
    }
    assert load_rows(f"folder:{tmp_path}", "train").label_names == ("a", "b", "c")


def test_part_without_classes_has_no_labels(tmp_path):
    lay(tmp_path, "train/a/1.png", "train/b/1.png", "test/1.png")
    dataset = load(f"folder:{tmp_path}", num_validation=0)
    assert "test" not in dataset.labels
    assert dataset.rows("test").label_names is None
    assert "labels left out, as test has none" in load_rows(f"folder:{tmp_path}").about


def test_files_are_sorted_by_the_parts_of_their_paths(tmp_path):
    names = ["a b.png", "a/1.png", "a-b/1.png", "a.png", "B.png"]
    lay(tmp_path, *names)
    found = find(tmp_path)
    assert found.files == sorted(names, key=lambda name: tuple(name.split("/")))
    assert found.files == [
        path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.png"))
    ]
    assert classes(found).codes == {}


@pytest.mark.parametrize("word", ["val", "valid", "dev", "validation"])
def test_folders_of_splits_have_the_names_of_array_splits(tmp_path, word):
    lay(tmp_path, "train/1.png", "training.txt/2.png", f"{word}/3.png", "testing/4.png")
    found = find(tmp_path)
    assert found.parts == {
        "train": ["train/1.png"], "validation": [f"{word}/3.png"], "test": ["testing/4.png"],
    }  # fmt: skip
    assert "training.txt" in found.left_out[-1]


def test_two_folders_of_one_split_are_rejected(tmp_path):
    lay(tmp_path, "train/1.png", "val/2.png", "dev/3.png")
    with pytest.raises(ValueError, match=r"val and dev are the same split\. Rename or merge"):
        find(tmp_path)
