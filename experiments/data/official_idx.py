"""mnist, fashion_mnist and kmnist: downloaded, then prepared and stored by tensorflow-datasets.

The builders that tensorflow-datasets ships for these need TensorFlow; this one does not, and it
preserves the order of the official files.
"""

import contextlib
import hashlib
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import UrlInfo

from experiments.data.idx import (
    FILE_NAMES,
    FILES_OF_SPLIT,
    OFFICIAL,
    File,
    read_idx,
    require_official,
)
from experiments.data.splits import Source
from experiments.data.tfds import one_line, read
from experiments.flags.path_checks import path_of
from experiments.record.progress import counted

DEFAULT_VALIDATION = 5_000
REACH_SECONDS = 4.0
"""Longest wait for the first answer of a server."""
SILENCE_SECONDS = 8.0
"""Longest wait for more data from a server that has answered."""


class IdxImages(tfds.core.GeneratorBasedBuilder):
    """Images and labels of four idx files, one example per record, in file order."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, name: str, data_dir: str | None) -> None:
        self.name = f"{name}_idx"
        self.official = OFFICIAL[name]
        super().__init__(data_dir=data_dir, file_format="array_record")

    @property
    def url_infos(self) -> dict[str, UrlInfo]:
        """Sizes and checksums, which are checked for every file, downloaded or not."""
        return {
            self.official.url + file.name: UrlInfo(file.size_bytes, file.sha256, file.name)
            for file in self.official.files
        }

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8, encoding="bytes"),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        paths = dl_manager.download({name: self.official.url + name for name in FILE_NAMES})
        return {
            split: self._generate_examples(Path(paths[images]), Path(paths[labels]))
            for split, (images, labels) in FILES_OF_SPLIT.items()
        }

    def _generate_examples(
        self, images: Path, labels: Path
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        pairs = zip(read_idx(images)[..., None], read_idx(labels), strict=True)
        for row, (image, label) in enumerate(pairs):
            yield row, {"image": image, "label": label}


def read_source(name: str, manual_dir: str | None, data_dir: str | None) -> Source:
    """Read a data set of `OFFICIAL`; if needed, prepare it from a download or `manual_dir`."""
    builder = IdxImages(name, data_dir)
    # tensorflow-datasets renames the folder to this name only when it is complete.
    if not builder.data_path.exists():
        _prepare(name, builder, manual_dir)
        builder = IdxImages(name, data_dir)
    return Source(
        name,
        {split: read(builder, split) for split in FILES_OF_SPLIT},
        what=builder.official.what,
        origin=builder.official.licence,
        default_validation=DEFAULT_VALIDATION,
    )


def _prepare(name: str, builder: IdxImages, manual_dir: str | None) -> None:
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    with contextlib.ExitStack() as until_prepared:
        if manual_dir is None:
            fetched = tempfile.TemporaryDirectory(prefix="jaxvae-files-")
            manual_dir = until_prepared.enter_context(fetched)
            _fetch(name, builder, Path(manual_dir))
        else:
            require_official(name, builder.official, path_of(manual_dir))
        try:
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
            )
        except OSError as error:
            if builder.data_path.exists():  # another process has prepared it in the meantime
                return
            raise ValueError(
                f"{name} must be prepared in {builder.data_dir}; that gave: {one_line(error)}. "
                "Give a folder that can be written and has free space as --data-dir."
            ) from error


def _fetch(name: str, builder: IdxImages, folder: Path) -> None:
    """Download the official files into a folder.

    tensorflow-datasets would wait forever for a silent server, and minutes for one that is down.
    """
    official = builder.official
    by_hand = (
        f"fetch {', '.join(FILE_NAMES)} from {official.url} and give their folder as --manual-dir"
    )
    if not _reachable(official.url + FILE_NAMES[-1]):
        raise FileNotFoundError(
            f"{name} is not prepared in {builder.data_dir}, and its server cannot be reached. "
            f"Connect to the network, or {by_hand}."
        )
    total = sum(file.size_bytes for file in official.files)
    try:
        with counted("bytes", total) as progress:
            done = 0
            for file in official.files:
                (folder / file.name).write_bytes(_download(official.url, file, done, progress))
                done += file.size_bytes
    except (OSError, HTTPException, ValueError) as error:
        raise ValueError(
            f"{name} could not be downloaded; that gave: {one_line(error)}. Try again, or "
            f"{by_hand}."
        ) from error


def _download(url: str, file: File, done: int, progress: Callable[[int], None]) -> bytes:
    """Download an official file and check its checksum."""
    contents = bytearray()
    with urllib.request.urlopen(url + file.name, timeout=SILENCE_SECONDS) as response:
        while len(contents) <= file.size_bytes and (block := response.read(2**16)):
            contents += block
            progress(done + len(contents))
    found = hashlib.sha256(contents).hexdigest()
    if found != file.sha256:
        raise ValueError(
            f"{url}{file.name} must have sha256 {file.sha256}, the download has {found}"
        )
    return bytes(contents)


def _reachable(url: str) -> bool:
    """Return True if a server answers within REACH_SECONDS.

    The request runs in a thread because the look-up of the server's name has no time limit.
    """
    answers: list[bool] = []
    asking = threading.Thread(target=lambda: answers.append(_answers(url)), daemon=True)
    asking.start()
    asking.join(REACH_SECONDS)
    return bool(answers) and answers[0]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=REACH_SECONDS):
            return True
    except (OSError, HTTPException, ValueError):
        return False
