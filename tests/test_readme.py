"""The README's example prints what the README says, and its commands exist."""

import contextlib
import io
import re
from pathlib import Path
from typing import get_args

import jaxvae

NO_CHOICE = {
    *("Bound", "Distribution", "NoClosedForm", "Regularizer", "TrainState", "VAE"),
    *("init_state", "make_mesh", "mean_of", "soft_clamp", "mlp_vae", "conv_vae"),
}
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
        path = root / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (root / target).exists(), target


def test_the_tables_name_all_that_the_library_offers_to_choose_from():
    offered = set(jaxvae.__all__) - {*NO_CHOICE, *jaxvae.flows.__all__}
    named = set(re.findall(r"`(?:jaxvae\.)?(\w+)`", README))
    assert offered <= named
    estimators = get_args(jaxvae.bounds.Estimator)
    assert {*estimators, "autoregressive_flow", "coupling_flow"} <= named
