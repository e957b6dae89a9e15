"""Paths without special characters to a folder of any name, for orbax and the layers below it."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

SYNTAX = frozenset("[]{}*?\\|%#:")
"""Characters that a layer below orbax reads as syntax, of patterns or of URLs.

epath's `glob`, by which orbax finds the files to merge, reads the whole absolute path as a pattern:
with [x] in the path orbax merges nothing, logs that, and the checkpoint is empty. tensorstore turns
a backslash into a slash, and writes to another folder. orbax reads the end of "logs:/" as the start
of a bucket's URL.
"""
BUCKETS = ("gs", "s3", "az", "hf")
"""First folders of an absolute path that epath reads as the scheme of a URL."""


@contextlib.contextmanager
def plain_path(directory: Path) -> Iterator[Path]:
    """Give a path to a folder that every layer reads literally.

    This is the folder's own path if that has no special characters, else a link to it in a
    temporary folder. The system resolves the link, so that no other layer sees the name. A killed
    process leaves only the link behind.

    Args:
        directory: an absolute path.

    Raises:
        ValueError: a link is needed, but cannot be made.
    """
    if _is_plain(directory):
        yield directory
        return
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="jaxvae-", ignore_cleanup_errors=True)
            )
            link = Path(folder).resolve() / "checkpoints"
            link.symlink_to(directory, target_is_directory=True)
            if not _is_plain(link):
                raise OSError(f"{link} has such characters too")
        except (OSError, NotImplementedError) as error:
            raise ValueError(
                f"{directory} has characters that orbax cannot take (one of "
                f"{' '.join(sorted(SYNTAX))}, or bytes that are not UTF-8), and needs a link in a "
                f"temporary folder, which could not be made: {error}. Set TMPDIR to a writable "
                "folder with a plain name, or choose another path."
            ) from error
        yield link


def _is_plain(directory: Path) -> bool:
    inside = directory.relative_to(directory.anchor)  # without the colon of a Windows drive
    text = inside.as_posix()
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of another encoding, which tensorstore rejects
        return False
    return SYNTAX.isdisjoint(text) and inside.parts[:1] not in [(name,) for name in BUCKETS]
