"""Files of a run's folder that the commands read and write, none of which may be elsewhere."""

from pathlib import Path

from jaxvae.checkpoints.contained import require_contained

FILES = ("config.json", "metrics.jsonl", "results.json", "report.html", ".lock")
FOLDERS = ("checkpoints", "checkpoints-damaged", "pictures", "tensorboard")
NAMES = (*FILES, *FOLDERS, "evaluations", "samples", "codes")
"""The last three are where results of other commands go by default."""


def require_own_files(run: Path) -> None:
    """Check that no file that a command reads or writes in a run's folder lies outside it.

    Whoever made the folder could otherwise make a command read, or overwrite, any file of its
    user. The folder itself may be reached by a link.

    Args:
        run: its folder; nothing is checked where it does not exist.

    Raises:
        ValueError: in one line that names the link, or a file that is a folder or the reverse.
    """
    require_contained(run, NAMES)
    for name in FILES:
        if (run / name).is_dir():
            raise ValueError(f"{run / name} must be a file; it is a folder. Move it away.")
    for name in FOLDERS:
        if (run / name).is_file():
            raise ValueError(f"{run / name} must be a folder; it is a file. Move it away.")
