"""Checks of files and folders that a user names, before anything is created or written."""

import os
import re
import sys
from pathlib import Path

ROOM_BELOW = 200
"""Bytes that files inside a run's folder may add to the folder's path."""


def path_of(text: str) -> Path:
    """Convert a text to a path, with a leading ~ expanded to the home folder.

    A run's config.json may hold characters that the locale's encoding lacks: their bytes in UTF-8
    are then the file's name.
    """
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        text = os.fsdecode(text.encode("utf-8", "surrogateescape"))
    return Path(os.path.expanduser(text))


def same_text(one: object, other: object) -> bool:
    """Return True if two values are equal, even if they were read in different locales."""
    return _in_utf8(one) == _in_utf8(other)


def _in_utf8(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return os.fsencode(value).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return value


def require_folder(folder: Path, what: str) -> None:
    """Check that this is, or can become, a writable folder; create nothing.

    Args:
        folder: folder for results.
        what: name of the folder in messages, such as a flag.

    Raises:
        ValueError: the folder cannot be used; one line that says why.
    """
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+:", folder.parts[0] if folder.parts else ""):
        raise _no_folder(what, folder, "it is an address; results must go to a local folder")
    # Walk up to the first folder that exists: it decides whether the missing ones can be created.
    place = folder.absolute()
    missing: list[str] = []
    while True:
        try:
            place.stat()
            break
        except FileNotFoundError:
            if place.is_symlink():
                raise _no_folder(what, folder, f"{place} is a link to nothing") from None
            missing.append(place.name)
        except NotADirectoryError:
            pass  # some parent is a file: the walk ends there
        except UnicodeEncodeError as error:
            encoding = sys.getfilesystemencoding()
            reason = f"{encoding}, the system's encoding, lacks some of its characters"
            remedy = "Set PYTHONUTF8=1 or LC_ALL=C.UTF-8, or choose another path."
            raise _no_folder(what, folder, reason, remedy) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise _no_folder(what, folder, reason) from error
        place = place.parent
    if not place.is_dir():
        raise _no_folder(what, folder, f"{place} is not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise _no_folder(what, folder, f"{place} is not writable")
    longest = os.pathconf(place, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    if any(len(os.fsencode(name)) > longest for name in missing):
        raise _no_folder(what, folder, f"names there have at most {longest} bytes")
    longest = os.pathconf(place, "PC_PATH_MAX") if hasattr(os, "pathconf") else 4096
    if 0 < longest - ROOM_BELOW < len(os.fsencode(folder.absolute())):
        raise _no_folder(what, folder, f"its path has more than {longest - ROOM_BELOW} bytes")


def _no_folder(
    what: str, folder: Path, reason: str, remedy: str = "Fix it, or choose another path."
) -> ValueError:
    return ValueError(
        f"{what} must be a folder, or a path where one can be created; {_short(folder)} is not: "
        f"{reason}. {remedy}"
    )


def require_new_file(path: Path, what: str) -> None:
    """Check that a file can be written; create nothing.

    Raises:
        ValueError: it cannot; one line that says why.
    """
    require_folder(path.parent, what)
    try:
        if (not path.exists() and not path.is_symlink()) or path.is_file():
            return
        reason = "is something else"
    except OSError as error:
        reason = f"cannot be one: {error.strerror}"
    raise ValueError(f"{what} must be a file; {_short(path)} {reason}. Choose another name.")


def require_file(path: Path) -> None:
    """Check that a path is a regular file: reading a pipe, for example, would block forever.

    Raises:
        ValueError: it is something else.
    """
    if not path.is_file():
        raise ValueError(f"{path} must be a file; it is something else. Move it away.")


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-60:]}"
