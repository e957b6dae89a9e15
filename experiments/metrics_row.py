"""A line of metrics.jsonl, as it is or as somebody left it."""

import json
import math
from typing import Any

ROW = "a JSON object with a step and a split, and an elbo that is a number or null"
"""What a line must be, in words."""


def parsed_row(line: str) -> dict[str, Any] | None:
    """The row of a line; None where it is no `ROW`."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("split"), str):
        return None
    step, elbo = row.get("step"), row.get("elbo")
    known = elbo is None or (type(elbo) in (int, float) and math.isfinite(elbo))
    return row if type(step) is int and step >= 0 and known else None
