"""Files and folders that a user names: refused by name before anything is made or written."""

import os
import re
import sys
from pathlib import Path

ROOM_BELOW = 200
"""Bytes of a path that the files in a run's folder may need beyond the folder's own."""


def path_of(text: str) -> Path:
    """The path that a text names, with a ~ at its start expanded where it is a user's.

    A run's config.json may hold characters that the locale's encoding has not: their bytes in
    UTF-8 are then the file's name.
    """
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        text = os.fsdecode(text.encode("utf-8", "surrogateescape"))
    return Path(os.path.expanduser(text))


def same_text(one: object, other: object) -> bool:
    """Whether two values are equal, as texts that may have been read in different locales."""
    return _in_utf8(one) == _in_utf8(other)


def _in_utf8(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return os.fsencode(value).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return value


def require_folder(folder: Path, what: str) -> None:
    """Refuse a folder that is none and cannot be made; nothing is made here.

    Args:
        folder: where results are to go.
        what: calls it so, a flag for example.

    Raises:
        ValueError: in one line that says what is in the way.
    """
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+:", folder.parts[0] if folder.parts else ""):
        raise _no_folder(what, folder, "it is an address; results go to local folders alone")
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
            pass  # the file is further up
        except UnicodeEncodeError as error:
            encoding = sys.getfilesystemencoding()
            reason = f"{encoding}, the system's encoding, has not all of its characters"
            remedy = "Set PYTHONUTF8=1 or LC_ALL=C.UTF-8, or give another."
            raise _no_folder(what, folder, reason, remedy) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise _no_folder(what, folder, reason) from error
        place = place.parent
    if not place.is_dir():
        raise _no_folder(what, folder, f"{place} is no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise _no_folder(what, folder, f"{place} may not be written")
    longest = os.pathconf(place, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    if any(len(os.fsencode(name)) > longest for name in missing):
        raise _no_folder(what, folder, f"names there have at most {longest} bytes")
    longest = os.pathconf(place, "PC_PATH_MAX") if hasattr(os, "pathconf") else 4096
    if 0 < longest - ROOM_BELOW < len(os.fsencode(folder.absolute())):
        raise _no_folder(what, folder, f"its path has more than {longest - ROOM_BELOW} bytes")


def _no_folder(
    what: str, folder: Path, reason: str, remedy: str = "Give another, or move away what is there."
) -> ValueError:
    return ValueError(
        f"{what} must be a folder, or a place where one can be made; {_short(folder)} is not: "
        f"{reason}. {remedy}"
    )


def require_new_file(path: Path, what: str) -> None:
    """Refuse a file that cannot be written; nothing is made here.

    Raises:
        ValueError: in one line that says what is in the way.
    """
    require_folder(path.parent, what)
    try:
        if (not path.exists() and not path.is_symlink()) or path.is_file():
            return
        reason = "is something else"
    except OSError as error:
        reason = f"cannot be: {error.strerror}"
    raise ValueError(f"{what} must be a file; {_short(path)} {reason}. Give another name.")


def require_file(path: Path) -> None:
    """Refuse what is there and is no file: reading a pipe, say, would wait for ever.

    Raises:
        ValueError: in one line.
    """
    if not path.is_file():
        raise ValueError(f"{path} must be a file; it is something else. Move it away.")


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-60:]}"
