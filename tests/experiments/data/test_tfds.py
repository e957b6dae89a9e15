"""Data sets that tensorflow-datasets has prepared, read without TensorFlow."""

import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from experiments.data import load
from tests.splits import whole


class Prepared(tfds.core.GeneratorBasedBuilder):
    """Builder of a small data set with any features, prepared without TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, name: str, features: Any, examples: dict[str, list[Any]], **others: Any
    ) -> None:
        self.name = name
        self._features, self._examples = features, examples
        super().__init__(**others)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(self._features)
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in self._examples}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Any]]:
        yield from enumerate(self._examples[split])


def prepare(
    data_dir: Path, features: Any, examples: dict[str, list[Any]], config: str | None = None
) -> Path:
    tfds.disable_progress_bar()
    named = None if config is None else tfds.core.BuilderConfig(name=config)
    builder = Prepared(
        "tiny",
        features,
        examples,
        data_dir=str(data_dir),
        file_format="array_record",
        config=named,
    )
    builder.download_and_prepare()
    return Path(builder.data_dir)


def png(array: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="png")
    file.seek(0)
    return file


TENSOR = {
    "image": tfds.features.Tensor(shape=(4, 4, 1), dtype=np.uint8),
    "label": tfds.features.ClassLabel(num_classes=99),
}


def tensors(start: int, stop: int) -> list[Any]:
    return [{"image": np.full((4, 4, 1), i, np.uint8), "label": i} for i in range(start, stop)]


def test_tfds_reads_tensors_with_labels(tmp_path: Path) -> None:
    prepare(tmp_path, TENSOR, {"train": tensors(0, 30), "test": tensors(30, 40)})
    dataset = load("tfds:tiny", data_dir=str(tmp_path))
    assert [len(part) for part in dataset[1:4]] == [27, 3, 10]
    assert sorted(whole(dataset)[:, 0, 0, 0]) == list(range(40))
    assert set(dataset.test[:, 0, 0, 0]) == set(range(30, 40))
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(dataset, split)[:, 0, 0, 0], dataset.labels[split])


def test_tfds_uses_its_validation_split_unless_num_validation_is_given(tmp_path: Path) -> None:
    parts = {"train": tensors(0, 9), "validation": tensors(9, 14), "test": tensors(14, 16)}
    prepare(tmp_path, TENSOR, parts, config="large")
    own = load("tfds:tiny/large", data_dir=str(tmp_path))
    assert set(own.labels["validation"]) == set(range(9, 14))
    cut = load("tfds:tiny/large", data_dir=str(tmp_path), num_validation=2)
    assert [len(part) for part in cut[1:4]] == [7, 2, 2]
    np.testing.assert_array_equal(np.concatenate([cut.train, cut.validation]), own.train)


def test_tfds_validation_split_replaces_a_missing_test_split(tmp_path: Path) -> None:
    prepare(tmp_path, TENSOR, {"train": tensors(0, 20), "validation": tensors(20, 24)})
    dataset = load("tfds:tiny", data_dir=str(tmp_path))
    assert set(dataset.labels["test"]) == set(range(20, 24))
    assert [len(part) for part in dataset[1:4]] == [18, 2, 4]
    assert "from the splits train, validation" in dataset.about


def test_tfds_decodes_images_without_tensorflow(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    colour[3] = colour[3, ..., :1]  # stored as grey, as in photograph collections
    files = [png(image) for image in colour[:3]] + [png(colour[3, ..., 0])]
    files += [png(image) for image in colour[4:]]
    features = {"photo": tfds.features.Image(), "caption": tfds.features.Text()}
    examples = [{"photo": file, "caption": "no"} for file in files]
    prepare(tmp_path, features, {"train": examples[:4], "test": examples[4:]})
    dataset = load("tfds:tiny", data_dir=str(tmp_path), num_validation=0)
    assert dataset.labels == {}
    assert {image.tobytes() for image in whole(dataset)} == {image.tobytes() for image in colour}
    assert dataset.test.shape == (2, 5, 4, 3)
    assert "tensorflow" not in sys.modules


def test_tfds_with_one_split_is_split_at_random(tmp_path: Path) -> None:
    features = {"image": TENSOR["image"], "label": tfds.features.Text()}
    examples = [example | {"label": "words"} for example in tensors(0, 20)]
    prepare(tmp_path, features, {"full": examples})
    dataset = load("tfds:tiny", data_dir=str(tmp_path))
    assert [len(part) for part in dataset[1:4]] == [16, 2, 2]
    assert sorted(whole(dataset)[:, 0, 0, 0]) == list(range(20))
    assert dataset.labels == {}


def test_tfds_not_prepared_error_gives_the_command(tmp_path: Path) -> None:
    command = f"tfds.builder('mnist', data_dir='{tmp_path}').download_and_prepare("
    with pytest.raises(FileNotFoundError, match="pip install tensorflow.*" + re.escape(command)):
        load("tfds:mnist", data_dir=str(tmp_path))


def test_tfds_in_another_format_error_gives_the_command(tmp_path: Path) -> None:
    folder = prepare(tmp_path, TENSOR, {"train": tensors(0, 4), "test": tensors(4, 6)})
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "parquet"}))
    message = f"must be prepared as array_record; {folder} has it as parquet. Move that folder"
    with pytest.raises(ValueError, match=f"{message}.*download_and_prepare"):
        load("tfds:tiny", data_dir=str(tmp_path))


def test_tfds_rejects_an_invalid_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tfds:NAME must name one data set.*'a/b/c:d'"):
        load("tfds:a/b/c:d", data_dir=str(tmp_path))


PAIR = {"left": tfds.features.Image(), "right": tfds.features.Image()}
SQUARE, OBLONG = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("features", "examples", "message"),
    [
        (
            {"image": tfds.features.Image()},
            lambda: [{"image": png(SQUARE)}, {"image": png(OBLONG)}],
            r"must have one size; one is \[4, ., 3\], another \[4, ., 3\]",
        ),
        (
            PAIR,
            lambda: [{"left": png(SQUARE), "right": png(SQUARE)}] * 2,
            "must have one image, or a feature named image; its features are left, right",
        ),
        (
            {"image": tfds.features.Image(shape=(4, 4, 1), dtype=np.uint16)},
            lambda: [{"image": png(SQUARE)}] * 2,
            "must be of 8 bits and 1, 3 or 4 channels; it is uint16 of 1",
        ),
        (
            {"image": tfds.features.Tensor(shape=(), dtype=np.uint8)},
            lambda: [{"image": 1}, {"image": 2}],
            r"image in train of tiny/1.0.0 must be \[N, D\]",
        ),
    ],
)
def test_tfds_rejects_data_sets_without_usable_images(
    tmp_path: Path, features: Any, examples: Callable[[], list[Any]], message: str
) -> None:
    prepare(tmp_path, features, {"train": examples(), "test": examples()})
    with pytest.raises(ValueError, match=message):
        load("tfds:tiny", data_dir=str(tmp_path))
