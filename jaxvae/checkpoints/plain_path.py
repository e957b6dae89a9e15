"""A path without syntax to a folder of any name, for orbax and the layers below it."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

SYNTAX = frozenset("[]{}*?\\|%#:")
"""Characters that a layer below reads as syntax, or would in a URL.

epath's `glob`, by which orbax finds what it has to merge, takes the whole absolute path for a
pattern: with [x] in it orbax merges nothing, says so in a log, and the checkpoint is empty.
tensorstore turns a backslash into a slash, and writes elsewhere. orbax takes the end of "logs:/"
for the start of a bucket's URL.
"""
BUCKETS = ("gs", "s3", "az", "hf")
"""First folders of an absolute path that epath takes for the scheme of a URL."""


@contextlib.contextmanager
def plain_path(directory: Path) -> Iterator[Path]:
    """A path to a folder that every layer reads as it is.

    The folder's own path where that is plain; else a link to it in a temporary folder, which the
    system resolves, so that no other layer sees the name. A killed process leaves the link behind,
    and nothing else.

    Args:
        directory: an absolute path.

    Raises:
        ValueError: a link is needed, and none can be made.
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
                f"temporary folder; making one gave: {error}. Set TMPDIR to a folder that can be "
                "written and has a plain name, or choose another path."
            ) from error
        yield link


def _is_plain(directory: Path) -> bool:
    inside = directory.relative_to(directory.anchor)  # without the colon of a Windows drive
    text = inside.as_posix()
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of another encoding, which tensorstore does not take
        return False
    return SYNTAX.isdisjoint(text) and inside.parts[:1] not in [(name,) for name in BUCKETS]
