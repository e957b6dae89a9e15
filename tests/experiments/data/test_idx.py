"""mnist, fashion_mnist and kmnist from the official files, and mnist_small made from them."""

import gzip
import hashlib
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.data import idx, load, official_idx
from experiments.data.make_mnist_small import TEST_STRIDE, TRAIN_STRIDE, make
from tests.files import ROOT, SHARED_DATA
from tests.splits import whole

needs_official = pytest.mark.skipif(
    not (SHARED_DATA / idx.FILE_NAMES[0]).is_file(),
    reason="no official MNIST files: set JAXVAE_TEST_DATA to their folder",
)
NOBODY = "http://127.0.0.1:9/"


def write_idx(folder: Path, url: str, num_train: int = 40, num_test: int = 12) -> idx.Official:
    """Write four small files in the official format; return the entry that describes them."""
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
    """Folder of small idx files in place of those of mnist, with an unreachable server."""
    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.setitem(idx.OFFICIAL, "mnist", write_idx(folder, NOBODY))
    return folder


@pytest.fixture
def server(tiny_files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Web server on this machine with the small idx files."""

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


@pytest.mark.slow
@needs_official
def test_mnist_from_official_files_is_mnist(tmp_path: Path) -> None:
    dataset = load("mnist", manual_dir=str(SHARED_DATA), data_dir=str(tmp_path))
    assert [len(part) for part in dataset[1:4]] == [55_000, 5_000, 10_000]
    names = [name for split in idx.FILES_OF_SPLIT.values() for name in split]
    train, train_labels, test, test_labels = (idx.read_idx(SHARED_DATA / name) for name in names)
    np.testing.assert_array_equal(whole(dataset)[..., 0], np.concatenate([train, test]))
    np.testing.assert_array_equal(
        np.concatenate([dataset.labels[split] for split in ("train", "validation", "test")]),
        np.concatenate([train_labels, test_labels]),
    )


def test_idx_keeps_the_order_of_the_files_and_is_prepared_once(
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


def test_idx_rejects_a_download_with_another_checksum(
    server: str, tiny_files: Path, tmp_path: Path
) -> None:
    right = idx.OFFICIAL["mnist"].files[0].sha256
    (tiny_files / idx.FILE_NAMES[0]).write_bytes(b"a sign-in page")
    wrong = hashlib.sha256(b"a sign-in page").hexdigest()
    with pytest.raises(ValueError, match=f"{idx.FILE_NAMES[0]}.*{right}.*{wrong}.*--manual-dir"):
        load("mnist", data_dir=str(tmp_path / "prepared"))
    write_idx(tiny_files, server)
    assert len(load("mnist", data_dir=str(tmp_path / "prepared"), num_validation=5).train) == 35


def test_idx_rejects_a_manual_file_with_another_checksum(tiny_files: Path, tmp_path: Path) -> None:
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
        with pytest.raises(FileNotFoundError, match="its server cannot be reached"):
            load("mnist", data_dir=str(tmp_path / "prepared"))


def test_idx_gives_up_on_a_server_that_falls_silent(
    tiny_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server answers the first request, and accepts the second without an answer."""
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
        with pytest.raises(ValueError, match=r"downloaded; that gave: timed out.*manual-dir"):
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


def test_idx_killed_while_preparing_is_prepared_again(tiny_files: Path, tmp_path: Path) -> None:
    code = f"""
import os, signal
from experiments.data import idx, load, official_idx
from experiments.data.make_mnist_small import TEST_STRIDE, TRAIN_STRIDE, make
idx.OFFICIAL["mnist"] = idx.{idx.OFFICIAL["mnist"]!r}
def dying(self, images, labels):
    yield 0, {{"image": idx.read_idx(images)[0][..., None], "label": 1}}
    os.kill(os.getpid(), signal.SIGKILL)
official_idx.IdxImages._generate_examples = dying
load("mnist", manual_dir={str(tiny_files)!r}, data_dir={str(tmp_path / "prepared")!r})
""".replace("File(", "idx.File(")
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with pytest.raises(FileNotFoundError, match="its server cannot be reached"):
        load("mnist", data_dir=str(tmp_path / "prepared"))
    arguments = {"manual_dir": str(tiny_files), "data_dir": str(tmp_path / "prepared")}
    assert len(whole(load("mnist", **arguments, num_validation=5))) == 52


def test_idx_can_be_prepared_by_two_processes_at_once(
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


def test_idx_damaged_after_preparation_is_rejected(tiny_files: Path, tmp_path: Path) -> None:
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
def test_read_idx_rejects_files_of_another_format(
    tmp_path: Path, contents: bytes, reason: str
) -> None:
    (tmp_path / "x.gz").write_bytes(contents)
    with pytest.raises(ValueError, match=f"x.gz must be a whole gzipped idx file.*{reason}"):
        idx.read_idx(tmp_path / "x.gz")


@needs_official
def test_the_checksums_are_those_of_the_official_files() -> None:
    idx.require_official("mnist", idx.OFFICIAL["mnist"], SHARED_DATA)


@needs_official
def test_mnist_small_is_the_stated_selection() -> None:
    dataset = load("mnist_small", num_validation=0)
    for split, stride in (("train", TRAIN_STRIDE), ("test", TEST_STRIDE)):
        images, labels = (
            idx.read_idx(SHARED_DATA / name)[::stride] for name in idx.FILES_OF_SPLIT[split]
        )
        np.testing.assert_array_equal(getattr(dataset, split), images[..., None])
        np.testing.assert_array_equal(dataset.labels[split], labels)


def test_making_mnist_small_twice_gives_the_same_bytes(tiny_files: Path, tmp_path: Path) -> None:
    make(tiny_files, tmp_path / "one.npz")
    make(tiny_files, tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
