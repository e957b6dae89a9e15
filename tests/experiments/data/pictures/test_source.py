"""Folders of images: splits, colours and errors."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.data import load
from tests.splits import whole


def save_image(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def grey(value: int, width: int = 4) -> np.ndarray:
    return np.full((5, width), value, np.uint8)


def test_folder_of_grey_images(tmp_path: Path) -> None:
    for value in range(20):
        suffix = ("png", "bmp", "PNG")[value % 3]
        save_image(tmp_path / f"{value % 4}" / f"{value}.{suffix}", grey(value))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._0.png").write_text("what macOS leaves")
    dataset = load(f"folder:{tmp_path}")
    assert [len(part) for part in dataset[1:4]] == [16, 2, 2]
    assert dataset.train.shape[1:] == (5, 4, 1)
    assert sorted(whole(dataset)[:, 0, 0, 0]) == list(range(20))


def test_folder_with_one_colour_image_is_in_colour(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    save_image(tmp_path / "train" / "a.png", grey(7))
    save_image(tmp_path / "train" / "b.png", np.dstack([colour, grey(255)]))
    save_image(tmp_path / "test" / "c.jpg", grey(8))
    dataset = load(f"folder:{tmp_path}", num_validation=0)
    assert dataset.train.shape == (2, 5, 4, 3)
    np.testing.assert_array_equal(dataset.train[0], np.full((5, 4, 3), 7))
    np.testing.assert_array_equal(dataset.train[1], colour)
    assert (dataset.test == 8).all()


def test_folder_with_splits(tmp_path: Path) -> None:
    for split, values in (("train", (0, 1, 2)), ("validation", (3,)), ("test", (4, 5))):
        for value in values:
            save_image(tmp_path / split / f"{value}.png", grey(value))
    dataset = load(f"folder:{tmp_path}")
    assert [list(part[:, 0, 0, 0]) for part in dataset[1:4]] == [[0, 1, 2], [3], [4, 5]]


def test_folder_follows_links_once(tmp_path: Path) -> None:
    for value in range(3):
        save_image(tmp_path / "elsewhere" / f"{value}.png", grey(value))
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "linked again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(root)
    assert sorted(whole(load(f"folder:{root}"))[:, 0, 0, 0]) == [0, 1, 2]


def test_folder_whose_test_links_to_train_is_rejected(tmp_path: Path) -> None:
    save_image(tmp_path / "train" / "a.png", grey(1))
    (tmp_path / "test").symlink_to(tmp_path / "train")
    with pytest.raises(ValueError, match=r"test must have images .* that no other split has"):
        load(f"folder:{tmp_path}")


def test_missing_folder_and_invalid_images_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder. Correct the path"):
        load(f"folder:{tmp_path}/nowhere")
    with pytest.raises(ValueError, match=r"must have images \(.png, .jpg or another suffix"):
        load(f"folder:{tmp_path}")
    (tmp_path / "0.png").write_bytes(b"no image")
    for value in (1, 2):
        save_image(tmp_path / f"{value}.png", grey(value))
    Image.new("F", (4, 5)).save(tmp_path / "real.tif")
    right = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(right[:-20])
    message = r"; 3 of 4 are not: .*0.png \(.*2.png \(.*real.tif \(.* mode F.*or add --skip-unr"
    with pytest.raises(ValueError, match=message):
        load(f"folder:{tmp_path}")
    save_image(tmp_path / "3.png", grey(3, width=6))
    with pytest.raises(ValueError, match=r"1.png is 4 x 5 and .*3.png is 6 x 5. Add --resize H W"):
        load(f"folder:{tmp_path}")


def test_folder_with_validation_but_no_test_is_rejected(tmp_path: Path) -> None:
    save_image(tmp_path / "train" / "a.png", grey(1))
    save_image(tmp_path / "validation" / "a.png", grey(1))
    with pytest.raises(
        ValueError, match=r"must have both train and test.*it has train, validation"
    ):
        load(f"folder:{tmp_path}")
