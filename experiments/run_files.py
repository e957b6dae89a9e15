"""Files of a run's folder that the commands read and write, none of which may be elsewhere."""

from pathlib import Path

from jaxvae.contained import require_contained

NAMES = (
    *("config.json", "metrics.jsonl", "results.json", "report.html", ".lock"),
    *("checkpoints", "checkpoints-damaged", "pictures", "tensorboard"),
    *("evaluations", "samples", "codes"),
)


def require_own_files(run: Path) -> None:
    """Check that no file that a command reads or writes in a run's folder lies outside it.

    Whoever made the folder could otherwise make a command read, or overwrite, any file of its
    user. The folder itself may be reached by a link.

    Args:
        run: its folder; nothing is checked where it does not exist.

    Raises:
        ValueError: in one line that names the link.
    """
    require_contained(run, NAMES)
