"""Data sets: what each source gives, that splits are disjoint, and what it says when it cannot."""

import gzip
import hashlib
import http.server
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from experiments.datasets import NAMES, Dataset, idx, load, mnist_small, official_idx
from experiments.datasets.make_mnist_small import TEST_STRIDE, TRAIN_STRIDE, make

CHECKOUT = Path(__file__).parents[1]
OFFICIAL_FOLDER = Path(
    os.environ.get("JAXVAE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")
)
needs_official = pytest.mark.skipif(
    not (OFFICIAL_FOLDER / idx.FILE_NAMES[0]).is_file(),
    reason="no official MNIST files: set JAXVAE_TEST_DATA to their folder",
)
NOBODY = "http://127.0.0.1:9/"


def write_idx(folder: Path, url: str, num_train: int = 40, num_test: int = 12) -> idx.Official:
    """Four small files in the official format, and the entry that describes them."""
    rng = np.random.default_rng(0)
    files = []
    for name in idx.FILE_NAMES:
        count = num_train if name.startswith("train") else num_test
        shape = (count, 28, 28) if "images" in name else (count,)
        array = rng.integers(0, 256 if "images" in name else 10, shape, dtype=np.uint8)
        header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
        contents = gzip.compress(header + array.tobytes(), mtime=0)
        (folder / name).write_bytes(contents)
        files.append(idx.File(name, len(contents), hashlib.sha256(contents).hexdigest()))
    return idx.Official("random digits", url, "no licence", tuple(files))


@pytest.fixture
def tiny_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of small idx files that stand for those of mnist, whose server is not there."""
    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.setitem(idx.OFFICIAL, "mnist", write_idx(folder, NOBODY))
    return folder


@pytest.fixture
def server(tiny_files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server on this machine with the small idx files."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tiny_files))

        def log_message(self, *args: Any) -> None:
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        url = f"http://127.0.0.1:{running.server_port}/"
        monkeypatch.setitem(idx.OFFICIAL, "mnist", idx.OFFICIAL["mnist"]._replace(url=url))
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield url
        running.shutdown()
        thread.join()


def whole(dataset: Dataset) -> np.ndarray:
    return np.concatenate([dataset.train, dataset.validation, dataset.test])


def numbered(count: int) -> np.ndarray:
    """[N, 2] float32, each row with its own number."""
    return np.arange(2 * count, dtype=np.float32).reshape(count, 2)


# mnist_small


def test_mnist_small_is_small_and_labelled() -> None:
    dataset = load("mnist_small")
    assert dataset.train.shape == (9_000, 28, 28, 1)
    assert dataset.validation.shape == (1_000, 28, 28, 1)
    assert dataset.test.shape == (2_000, 28, 28, 1)
    assert dataset.train.dtype == np.uint8
    assert {split: len(labels) for split, labels in dataset.labels.items()} == {
        "train": 9_000,
        "validation": 1_000,
        "test": 2_000,
    }
    assert "CC BY-SA 3.0" in dataset.about
    assert mnist_small.FILE.stat().st_size < 2_000_000


@needs_official
def test_mnist_small_is_the_stated_selection() -> None:
    dataset = load("mnist_small", num_validation=0)
    for split, stride in (("train", TRAIN_STRIDE), ("test", TEST_STRIDE)):
        images, labels = (
            idx.read_idx(OFFICIAL_FOLDER / name)[::stride] for name in idx.FILES_OF_SPLIT[split]
        )
        np.testing.assert_array_equal(getattr(dataset, split), images[..., None])
        np.testing.assert_array_equal(dataset.labels[split], labels)


def test_making_mnist_small_twice_gives_the_same_bytes(tiny_files: Path, tmp_path: Path) -> None:
    make(tiny_files, tmp_path / "one.npz")
    make(tiny_files, tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_importing_datasets_imports_nothing_heavy() -> None:
    heavy = "{'tensorflow_datasets', 'PIL', 'jax', 'orbax', 'tensorflow'}"
    code = (
        "import sys, experiments.datasets as d; d.load('mnist_small'); "
        f"print({heavy} & set(sys.modules))"
    )
    seen = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert seen.stdout.strip() == "set()"


# mnist, fashion_mnist, kmnist


@needs_official
def test_mnist_from_official_files_is_mnist(tmp_path: Path) -> None:
    dataset = load("mnist", manual_dir=str(OFFICIAL_FOLDER), data_dir=str(tmp_path))
    assert [len(part) for part in dataset[1:4]] == [55_000, 5_000, 10_000]
    names = [name for split in idx.FILES_OF_SPLIT.values() for name in split]
    train, train_labels, test, test_labels = (
        idx.read_idx(OFFICIAL_FOLDER / name) for name in names
    )
    np.testing.assert_array_equal(whole(dataset)[..., 0], np.concatenate([train, test]))
    np.testing.assert_array_equal(
        np.concatenate([dataset.labels[split] for split in ("train", "validation", "test")]),
        np.concatenate([train_labels, test_labels]),
    )


def test_idx_keeps_the_order_of_the_files_and_serves_later_calls(
    tiny_files: Path, tmp_path: Path
) -> None:
    data_dir = str(tmp_path / "prepared")
    first = load("mnist", manual_dir=str(tiny_files), data_dir=data_dir, num_validation=5)
    again = load("mnist", data_dir=data_dir, num_validation=0)
    images = [idx.read_idx(tiny_files / name) for name in idx.FILE_NAMES]
    for dataset in (first, again):
        np.testing.assert_array_equal(
            whole(dataset)[..., 0], np.concatenate([images[0], images[2]])
        )
    assert [len(part) for part in first[1:4]] == [35, 5, 12]
    assert [len(part) for part in again[1:4]] == [40, 0, 12]
    np.testing.assert_array_equal(first.labels["validation"], images[1][-5:])
    np.testing.assert_array_equal(first.labels["test"], images[3])


def test_idx_is_downloaded_once(server: str, tiny_files: Path, tmp_path: Path) -> None:
    data_dir = str(tmp_path / "prepared")
    first = load("mnist", data_dir=data_dir, num_validation=5)
    for name in idx.FILE_NAMES:
        (tiny_files / name).unlink()
    np.testing.assert_array_equal(
        whole(first), whole(load("mnist", data_dir=data_dir, num_validation=5))
    )


def test_idx_refuses_a_download_that_is_not_official(
    server: str, tiny_files: Path, tmp_path: Path
) -> None:
    right = idx.OFFICIAL["mnist"].files[0].sha256
    (tiny_files / idx.FILE_NAMES[0]).write_bytes(b"a sign-in page")
    wrong = hashlib.sha256(b"a sign-in page").hexdigest()
    with pytest.raises(ValueError, match=f"{idx.FILE_NAMES[0]}.*{right}.*{wrong}.*--manual-dir"):
        load("mnist", data_dir=str(tmp_path / "prepared"))
    write_idx(tiny_files, server)
    assert len(load("mnist", data_dir=str(tmp_path / "prepared"), num_validation=5).train) == 35


def test_idx_refuses_a_manual_file_that_is_not_official(tiny_files: Path, tmp_path: Path) -> None:
    right = idx.OFFICIAL["mnist"].files[2].sha256
    path = tiny_files / idx.FILE_NAMES[2]
    path.write_bytes(path.read_bytes()[:-1])
    wrong = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"{path} must be the official.*{right}.*{wrong}.*Fetch"):
        load("mnist", manual_dir=str(tiny_files), data_dir=str(tmp_path / "prepared"))


def test_idx_names_a_missing_manual_file(tiny_files: Path, tmp_path: Path) -> None:
    (tiny_files / idx.FILE_NAMES[1]).unlink()
    with pytest.raises(
        FileNotFoundError,
        match=f"{idx.FILE_NAMES[1]} is missing. Fetch {NOBODY}{idx.FILE_NAMES[1]}",
    ):
        load("mnist", manual_dir=str(tiny_files), data_dir=str(tmp_path / "prepared"))


def test_idx_without_network_says_what_to_fetch(tiny_files: Path, tmp_path: Path) -> None:
    wanted = ", ".join(idx.FILE_NAMES)
    with pytest.raises(FileNotFoundError, match=f"{wanted} from {NOBODY} .*--manual-dir"):
        load("mnist", data_dir=str(tmp_path / "prepared"))


def test_idx_does_not_wait_for_a_silent_server(
    tiny_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(official_idx, "REACH_SECONDS", 0.2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setitem(idx.OFFICIAL, "mnist", idx.OFFICIAL["mnist"]._replace(url=url))
        with pytest.raises(FileNotFoundError, match="its server be reachable; neither is so"):
            load("mnist", data_dir=str(tmp_path / "prepared"))


def test_idx_gives_up_on_a_server_that_falls_silent(
    tiny_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers the first question, then takes the next and says no more."""
    monkeypatch.setattr(official_idx, "SILENCE_SECONDS", 0.2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    ended, asked = threading.Event(), []

    class Tired(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            if len(asked) > 1:
                self.wfile.write(b"some")
                ended.wait()

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Tired) as running:
        threading.Thread(target=running.serve_forever).start()
        url = f"http://127.0.0.1:{running.server_port}/"
        monkeypatch.setitem(idx.OFFICIAL, "mnist", idx.OFFICIAL["mnist"]._replace(url=url))
        with pytest.raises(ValueError, match=r"downloaded whole; that gave: timed out.*manual-dir"):
            load("mnist", data_dir=str(tmp_path / "prepared"))
        ended.set()
        running.shutdown()
    assert len(asked) == 2
    assert not (tmp_path / "prepared").exists()


def test_idx_names_the_flag_of_a_folder_that_cannot_be_written(
    tiny_files: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"must be prepared in .*file/.*can be written.*--data-dir"
    ):
        load("mnist", manual_dir=str(tiny_files), data_dir=str(tmp_path / "file"))


def test_idx_killed_while_preparing_leaves_nothing_taken_for_whole(
    tiny_files: Path, tmp_path: Path
) -> None:
    code = f"""
import os, signal
from experiments.datasets import idx, load, official_idx
idx.OFFICIAL["mnist"] = idx.{idx.OFFICIAL["mnist"]!r}
def dying(self, images, labels):
    yield 0, {{"image": idx.read_idx(images)[0][..., None], "label": 1}}
    os.kill(os.getpid(), signal.SIGKILL)
official_idx.IdxImages._generate_examples = dying
load("mnist", manual_dir={str(tiny_files)!r}, data_dir={str(tmp_path / "prepared")!r})
""".replace("File(", "idx.File(")
    killed = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with pytest.raises(FileNotFoundError, match="its server be reachable; neither is so"):
        load("mnist", data_dir=str(tmp_path / "prepared"))
    arguments = {"manual_dir": str(tiny_files), "data_dir": str(tmp_path / "prepared")}
    assert len(whole(load("mnist", **arguments, num_validation=5))) == 52


def test_idx_prepared_by_two_processes_at_once(
    tiny_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"manual_dir": str(tiny_files), "data_dir": str(tmp_path / "prepared")}
    examples = official_idx.IdxImages._generate_examples

    def overtaken(self: Any, images: Path, labels: Path) -> Iterator[Any]:
        monkeypatch.setattr(official_idx.IdxImages, "_generate_examples", examples)
        load("mnist", **arguments, num_validation=5)
        yield from examples(self, images, labels)

    monkeypatch.setattr(official_idx.IdxImages, "_generate_examples", overtaken)
    assert len(whole(load("mnist", **arguments, num_validation=5))) == 52


def test_idx_damaged_after_preparation_is_noticed(tiny_files: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "prepared"
    load("mnist", manual_dir=str(tiny_files), data_dir=str(data_dir), num_validation=5)
    (shard,) = data_dir.glob("mnist_idx/*/*-train.array_record*")
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(ValueError, match=f"{shard.parent} must hold a whole.*Delete that folder"):
        load("mnist", data_dir=str(data_dir))


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"not gzipped", "Not a gzipped file"),
        (gzip.compress(b"\x00\x00\x0d\x01" + bytes(8), mtime=0), "starts with 00 00 0d"),
        (gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x05" + bytes(4), mtime=0), "cannot reshape"),
        (gzip.compress(bytes(100), mtime=0)[:-9], "ended before"),
    ],
)
def test_idx_refuses_what_is_no_idx_file(tmp_path: Path, contents: bytes, reason: str) -> None:
    (tmp_path / "x.gz").write_bytes(contents)
    with pytest.raises(ValueError, match=f"x.gz must be a whole gzipped idx file.*{reason}"):
        idx.read_idx(tmp_path / "x.gz")


@needs_official
def test_the_checksums_are_those_of_the_official_files() -> None:
    idx.require_official("mnist", idx.OFFICIAL["mnist"], OFFICIAL_FOLDER)


# tfds


class Prepared(tfds.core.GeneratorBasedBuilder):
    """A small data set of any features, prepared without TensorFlow."""

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


def test_tfds_tensors_with_labels(tmp_path: Path) -> None:
    prepare(tmp_path, TENSOR, {"train": tensors(0, 30), "test": tensors(30, 40)})
    dataset = load("tfds:tiny", data_dir=str(tmp_path))
    assert [len(part) for part in dataset[1:4]] == [27, 3, 10]
    assert sorted(whole(dataset)[:, 0, 0, 0]) == list(range(40))
    assert set(dataset.test[:, 0, 0, 0]) == set(range(30, 40))
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(dataset, split)[:, 0, 0, 0], dataset.labels[split])


def test_tfds_uses_a_validation_split_unless_told_otherwise(tmp_path: Path) -> None:
    parts = {"train": tensors(0, 9), "validation": tensors(9, 14), "test": tensors(14, 16)}
    prepare(tmp_path, TENSOR, parts, config="large")
    own = load("tfds:tiny/large", data_dir=str(tmp_path))
    assert set(own.labels["validation"]) == set(range(9, 14))
    cut = load("tfds:tiny/large", data_dir=str(tmp_path), num_validation=2)
    assert [len(part) for part in cut[1:4]] == [7, 2, 2]
    np.testing.assert_array_equal(np.concatenate([cut.train, cut.validation]), own.train)


def test_tfds_validation_stands_in_for_a_missing_test(tmp_path: Path) -> None:
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


def test_tfds_not_prepared_gives_the_command(tmp_path: Path) -> None:
    command = f"tfds.builder('mnist', data_dir='{tmp_path}').download_and_prepare("
    with pytest.raises(FileNotFoundError, match="pip install tensorflow.*" + re.escape(command)):
        load("tfds:mnist", data_dir=str(tmp_path))


def test_tfds_in_another_format_gives_the_command(tmp_path: Path) -> None:
    folder = prepare(tmp_path, TENSOR, {"train": tensors(0, 4), "test": tensors(4, 6)})
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "parquet"}))
    message = f"must be prepared as array_record; {folder} has it as parquet. Move that folder"
    with pytest.raises(ValueError, match=f"{message}.*download_and_prepare"):
        load("tfds:tiny", data_dir=str(tmp_path))


def test_tfds_refuses_a_name_that_is_none(tmp_path: Path) -> None:
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
def test_tfds_refuses_what_is_no_image_set(
    tmp_path: Path, features: Any, examples: Callable[[], list[Any]], message: str
) -> None:
    prepare(tmp_path, features, {"train": examples(), "test": examples()})
    with pytest.raises(ValueError, match=message):
        load("tfds:tiny", data_dir=str(tmp_path))


# npz, npy


@pytest.mark.parametrize(
    ("count", "num_validation"),
    [(2, None), (2, 0), (9, None), (9, 7), (10, None), (57, None), (57, 0), (57, 3)],
)
def test_random_splits_are_disjoint_and_lose_nothing(
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
def test_named_splits_are_kept(tmp_path: Path, names: tuple[str, str, str], labels: str) -> None:
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


def test_named_train_and_test_give_up_their_last_for_validation(tmp_path: Path) -> None:
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
def test_arrays_in_their_stored_type(
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
        (np.zeros((0, 3)), r"nothing empty; its shape is \[0, 3\]"),
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
def test_arrays_refused(tmp_path: Path, given: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", given)
    with pytest.raises(ValueError, match=message):
        load(f"npy:{tmp_path}/a.npy")
    np.savez(tmp_path / "a.npz", x=given)
    with pytest.raises(ValueError, match=message):
        load(f"npz:{tmp_path}/a.npz")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": numbered(9), "b": numbered(9)}, "one named images, x or data; it has a, b. Rename"),
        ({"train": numbered(9), "val": numbered(9)}, "it has train, validation. Add what"),
        ({"train": numbered(9), "test": np.zeros((3, 5))}, r"train \[2\] float32, test \[5\]"),
        ({"train": numbered(9), "test": np.zeros((3, 2), bool)}, r"float32, test \[2\] uint8"),
        ({"x": numbered(9), "y": np.arange(8)}, r"must be integers \[9\]; they are int64 \[8\]"),
        ({"x": numbered(9), "y": np.zeros(9)}, r"integers \[9\]; they are float64 \[9\]"),
        ({"x": np.array(1), "y": np.arange(9)}, r"its shape is \[\]. Reshape it"),
        ({"labels": np.arange(4)}, "it has labels. Rename"),
        ({}, "it has none. Rename"),
    ],
)
def test_npz_refused(tmp_path: Path, given: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **given)
    with pytest.raises(ValueError, match=message):
        load(f"npz:{tmp_path}/a.npz")


@pytest.mark.parametrize("form", ["npz", "npy"])
def test_damaged_array_files_refused(tmp_path: Path, form: str) -> None:
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


def test_array_files_of_the_other_form_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", numbered(9))
    np.savez(tmp_path / "a.npz", x=numbered(9))
    with pytest.raises(ValueError, match=f"a.npy is an .npy. Use npy:{tmp_path}"):
        load(f"npz:{tmp_path}/a.npy")
    with pytest.raises(ValueError, match=f"a.npz is an .npz. Use npz:{tmp_path}"):
        load(f"npy:{tmp_path}/a.npz")


def test_array_files_missing_or_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*no.npz. Correct the path"):
        load(f"npz:{tmp_path}/no.npz")
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder.*npy:.*folder:{tmp_path}"):
        load(f"npz:{tmp_path}")
    with pytest.raises(ValueError, match=f"npy:{tmp_path} must have arrays named train.npy and"):
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


# folder


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
    save_image(tmp_path / "train" / "b.png", np.dstack([colour, grey(9)]))
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


def test_folder_whose_test_is_its_train_is_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "train" / "a.png", grey(1))
    (tmp_path / "test").symlink_to(tmp_path / "train")
    with pytest.raises(ValueError, match=r"test must have images .* that no other split has"):
        load(f"folder:{tmp_path}")


def test_folder_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is none. Correct the path"):
        load(f"folder:{tmp_path}/nowhere")
    with pytest.raises(ValueError, match=r"must have images \(.png, .jpg, .jpeg, .bmp\)"):
        load(f"folder:{tmp_path}")
    (tmp_path / "0.png").write_bytes(b"no image")
    for value in (1, 2):
        save_image(tmp_path / f"{value}.png", grey(value))
    Image.fromarray(np.zeros((5, 4), np.uint16)).save(tmp_path / "deep.png")
    right = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(right[:-20])
    message = "3 of 4 are not: .*0.png .*2.png .*deep.png .pixels are not 8-bit, but of mode I;16"
    with pytest.raises(ValueError, match=message):
        load(f"folder:{tmp_path}")
    save_image(tmp_path / "3.png", grey(3, width=6))
    with pytest.raises(ValueError, match=r"1.png is 4 x 5 and .*3.png is 6 x 5. Resize or crop"):
        load(f"folder:{tmp_path}")


def test_folder_with_validation_but_no_test_is_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "train" / "a.png", grey(1))
    save_image(tmp_path / "validation" / "a.png", grey(1))
    with pytest.raises(
        ValueError, match=r"must have both train and test.*it has train, validation"
    ):
        load(f"folder:{tmp_path}")


# names and numbers


@pytest.mark.parametrize(
    "name", ["", "mnits", "mnist:", "npz", "npz:", "tfds:", "MNIST", "torch:mnist", "mnist:x"]
)
def test_unknown_names_list_the_known(name: str) -> None:
    listed = re.escape(", ".join(NAMES))
    with pytest.raises(ValueError, match=f"{listed}; got {name!r}. Use one"):
        load(name, manual_dir="somewhere")


def test_manual_dir_for_others_is_refused() -> None:
    with pytest.raises(ValueError, match=r"manual_dir is for mnist.*'mnist_small'. Leave out"):
        load("mnist_small", manual_dir="somewhere")


@pytest.mark.parametrize("count", [-1, 10_000, 10_001])
def test_num_validation_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"must be from 0 to 9999.*got {count}. Change"):
        load("mnist_small", num_validation=count)
