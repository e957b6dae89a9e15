"""Check that the files that commands read and write in a run's folder are inside it."""

from pathlib import Path

from jaxvae.checkpoints.contained import require_contained

FILES = ("config.json", "metrics.jsonl", "results.json", "reference.json", "report.html", ".lock")
FOLDERS = ("checkpoints", "checkpoints-damaged", "data", "pictures", "tensorboard")
NAMES = (*FILES, *FOLDERS, "evaluations", "samples", "codes", "scores")
"""All names; the last four are the default folders for results of other commands."""


def require_own_files(run: Path) -> None:
    """Check that no file that a command reads or writes in a run's folder is a link out of it.

    Such a link, in a folder made by somebody else, could make a command read or overwrite any
    file of the user. The folder itself may be a link.

    Args:
        run: folder of the run; a missing folder passes.

    Raises:
        ValueError: a link leads outside, a file is a folder, or a folder is a file.
    """
    require_contained(run, NAMES)
    for name in FILES:
        if (run / name).is_dir():
            raise ValueError(f"{run / name} must be a file; it is a folder. Move it away.")
    for name in FOLDERS:
        if (run / name).is_file():
            raise ValueError(f"{run / name} must be a folder; it is a file. Move it away.")
