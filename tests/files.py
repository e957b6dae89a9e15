"""Files that tests read: the checkout, reference values, and real data if they are available."""

import json
import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHARED_DATA = Path(os.environ.get("JAXVAE_TEST_DATA", ROOT.parent / "shared" / "data"))
"""Folder of real data such as MNIST; tests that need a missing file are skipped."""


def golden(name: str) -> dict[str, Any]:
    """Return the reference values of tests/golden/NAME.json."""
    return json.loads((ROOT / "tests" / "golden" / f"{name}.json").read_text())
