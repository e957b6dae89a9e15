"""Files in the idx format of MNIST, and checksums of the official ones."""

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np


class File(NamedTuple):
    """An official file: name, size and checksum, as tensorflow-datasets lists them."""

    name: str
    size_bytes: int
    sha256: str


class Official(NamedTuple):
    """Source of a data set of four idx files: kind of examples, address, licence, files."""

    what: str
    url: str
    licence: str
    files: tuple[File, ...]


FILE_NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
FILES_OF_SPLIT = {"train": FILE_NAMES[:2], "test": FILE_NAMES[2:]}


def _files(table: str) -> tuple[File, ...]:
    rows = (line.split() for line in table.strip().splitlines())
    return tuple(
        File(name, int(size), sha256) for name, (sha256, size) in zip(FILE_NAMES, rows, strict=True)
    )


OFFICIAL = {
    "mnist": Official(
        "handwritten digits",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "Y. LeCun, C. Cortes, C. Burges; CC BY-SA 3.0",
        _files("""
            440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609  9912422
            3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c    28881
            8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6  1648877
            f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6     4542
        """),
    ),
    "fashion_mnist": Official(
        "articles of clothing",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "Zalando Research; MIT",
        _files("""
            3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84 26421880
            a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845    29515
            346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073  4422102
            67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5     5148
        """),
    ),
    "kmnist": Official(
        "cursive Japanese characters",
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        "Center for Open Data in the Humanities, ROIS-DS; CC BY-SA 4.0",
        _files("""
            51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4 18165135
            e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17    29497
            edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5  3041136
            20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c     5120
        """),
    ),
}
"""Checksums and sizes, in the order of FILE_NAMES, from tensorflow-datasets."""


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped idx file of unsigned bytes: images [N, H, W] or labels [N], uint8."""
    try:
        contents = gzip.decompress(path.read_bytes())
        if contents[:3] != b"\x00\x00\x08":
            raise ValueError(f"it starts with {contents[:3].hex(' ')}, not with 00 00 08")
        rank = contents[3]
        shape = np.frombuffer(contents, ">u4", rank, offset=4)
        return np.frombuffer(contents, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, zlib.error, IndexError, ValueError) as error:
        raise ValueError(
            f"{path} must be a whole gzipped idx file of unsigned bytes; reading it gave: "
            f"{error}. Fetch it again."
        ) from error


def require_official(name: str, official: Official, folder: Path) -> None:
    """Check that a folder has the four official files of a data set, unchanged.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file has another checksum.
    """
    for file in official.files:
        path = folder / file.name
        if not path.is_file():
            raise FileNotFoundError(
                f"manual_dir must be a folder with the four official files of {name}; {path} is "
                f"missing. Fetch {official.url}{file.name} into it."
            )
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != file.sha256:
            raise ValueError(
                f"{path} must be the official file, with sha256 {file.sha256}; its sha256 is "
                f"{found}. Fetch {official.url}{file.name} again, and do not repack it."
            )
