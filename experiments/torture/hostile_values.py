"""Values, texts and places for hostile run folders."""

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

MODULE = "hostile_module"
"""Module in the command's current directory, where Python finds it; importing it makes the mark."""
SCRIPT = "<script>alert(1)</script>"
ESCAPES = "\x1b]0;owned\x07\x1b[2J\r\n"
SPARSE_BYTES = 2**34
"""Size of sparse files, which no command may read whole."""


class Place(NamedTuple):
    """Paths of a hostile run.

    Attributes:
        run: the changed copy of a trained run.
        outside: a folder beside the run that no command may read or write.
        mark: a file that exists once any code of the run was executed.
    """

    run: Path
    outside: Path
    mark: Path


def values(rng: random.Random) -> Any:
    """Draw a value that few fields expect."""
    return rng.choice((
        None, True, False, 0, -1, 1.5, 10**9, 2**31 - 1, 10**30, 10**400, float("nan"),
        float("inf"), -float("inf"), 1e308, "", "x", "..", "/etc/passwd", "\0", "\ud800", SCRIPT,
        ESCAPES, "x" * 100_000, [], [1], [10**8], [-8, 8, 1], [10**6] * 3, [1] * 100_000,
        [True], [None], [[1]], ["x"], {}, {"a": {}}, [float("nan")], f"{MODULE}:make",
    ))  # fmt: skip


def text(rng: random.Random) -> bytes:
    """Draw the content of a file that should be JSON."""
    return rng.choice((
        b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe{}", b"\0" * 1000, b"[" * 200_000,
        b'{"a":' * 200_000, b'{"a": ' + b"9" * 6000 + b"}", b'{"a": 1, "a": 2}', b'{"a": NaN}',
        b'{"\xff": 1}', b"{}{}", b"{}\n{}", b'{"' + b"x" * 3_000_000 + b'": 1}',
    ))  # fmt: skip


def twice(content: str, rng: random.Random) -> str:
    """Repeat one name of a JSON object, with another value the second time."""
    name = rng.choice(list(json.loads(content)))
    return f"{content.rstrip()[:-1]}, {json.dumps(name)}: {json.dumps(rng.choice((1, None)))}}}"


def edit_json(path: Path, changes: dict[str, Any]) -> None:
    """Change values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
