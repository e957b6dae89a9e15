"""Lines of metrics.jsonl, as training wrote them or as somebody left them."""

import json
from pathlib import Path
from typing import Any

from experiments.places import require_file

ROW = "a JSON object with a step and a split, and an elbo that is a number or null"
"""What a line must be, in words; every other value must be a number or null, too."""
LISTS = ("examples", "key")
"""Values that are lists of integers: what a skipped step was computed from."""
LONGEST_LINE = 2**24
"""Bytes; a skipped step of 1,000,000 examples has half as many."""
LARGEST = 1e300
"""No number that a run writes is larger; one that is may overflow where it is drawn."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a metrics file, in order, without a last line that a kill cut short.

    Raises:
        ValueError: if any other line is no row, a line is too long, or what is there is no file.
    """
    require_file(path)
    rows: list[dict[str, Any]] = []
    torn: str | None = None
    with path.open("rb") as file:
        while line := file.readline(LONGEST_LINE + 1):
            text = line.decode("utf-8", "replace").removesuffix("\n")
            if torn is None and len(line) <= LONGEST_LINE:
                row = parsed_row(text)
                if row is None:
                    torn = text  # which the last line may be
                else:
                    rows.append(row)
                continue
            raise ValueError(
                f"read_metrics: a line must be {ROW}, line {len(rows) + 1} of {path} is "
                f"{(text if torn is None else torn)[:60]!r}. Delete that line, or start a new "
                "folder."
            )
    return rows


def parsed_row(line: str) -> dict[str, Any] | None:
    """Parse a line; None where it is no `ROW`."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("split"), str):
        return None
    step = row.get("step")
    right = type(step) is int and 0 <= step < 2**31 and is_number_or_none(row.get("elbo"))
    values = (item for item in row.items() if item[0] not in ("step", "split", "elbo"))
    return row if right and all(_is_value(name, value) for name, value in values) else None


def is_number_or_none(value: Any) -> bool:
    """Tell whether a value of JSON is a finite number or null."""
    return value is None or (type(value) in (int, float) and abs(value) < LARGEST)


def _is_value(name: str, value: Any) -> bool:
    if name == "timing":
        return isinstance(value, dict) and all(map(is_number_or_none, value.values()))
    if name in LISTS:
        return isinstance(value, list) and all(type(item) is int for item in value)
    return is_number_or_none(value)
