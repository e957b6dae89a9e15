"""The README's example prints what the README says, and its commands exist."""

import contextlib
import io
import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_example_prints_what_stands_below_it():
    code, output = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", README, re.DOTALL).groups()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue() == output


def test_every_command_and_file_it_names_exists():
    root = Path(__file__).parents[1]
    for module in set(re.findall(r"python -m (experiments\.\w+)", README)):
        assert (root / module.replace(".", "/")).with_suffix(".py").exists(), module
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (root / target).exists(), target
