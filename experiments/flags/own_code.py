"""Find the line of the user's own code at which an error was raised."""

import sysconfig
import traceback
from pathlib import Path

OURS = (Path(__file__).parents[1], Path(__file__).parents[2] / "jaxvae")
"""Folders of this project's own code."""
INSTALLED = {"site-packages", "dist-packages"}
"""Folders of installed packages."""
LIBRARY = Path(sysconfig.get_paths()["stdlib"])
"""Folder of Python's standard library."""
LONGEST = 400
"""Characters of an error's text that are shown: some texts of jax fill pages."""


def described(error: Exception, model: str = "", *, around: int = 0) -> str | None:
    """One line about an error that the user's own code raised or caused; None for other errors.

    Args:
        error: the error as it was caught.
        model: value of --model; its package is the user's own code even if it is installed.
        around: number of outermost frames to ignore, such as those that catch the error.
    """
    package = model.partition(":")[0].partition(".")[0]
    text = " ".join(str(error).split())
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    if where := _place(error, package, around):
        named = f"--model={model}: " if ":" in model else ""
        what = f"{type(error).__name__}: {text}".rstrip(".: ")
        return f"{named}your code at {where} gave: {what}. Correct it; --traceback shows all."
    cause: BaseException | None = error.__cause__ or error.__context__
    while cause is not None:
        if where := _place(cause, package):
            return f"{text} It comes from your code at {where}; --traceback shows all."
        cause = cause.__cause__ or cause.__context__
    return None


def _place(error: BaseException, package: str, around: int = 0) -> str:
    """File, line and function of the innermost frame in the user's own code, or ""."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)[around:]):
        if _is_own(frame.filename, package):
            return f"{frame.filename}, line {frame.lineno}, in {frame.name},"
    return ""


def _is_own(file: str, package: str) -> bool:
    """Return True for code outside this project, Python and packages, or in the given package."""
    path = Path(file)
    if file.startswith("<") or any(folder in path.parents for folder in OURS):
        return False
    installed = INSTALLED.intersection(path.parts)
    if installed:
        inside = path.parts[path.parts.index(installed.pop()) + 1 :]
        return bool(package) and inside[0] in (package, f"{package}.py")
    return LIBRARY not in path.parents
