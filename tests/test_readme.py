"""Documentation: README's code blocks print the output shown, and commands and links exist."""

import contextlib
import io
import re
from pathlib import Path
from typing import get_args

import jax
import pytest

import jaxvae

ROOT = Path(__file__).parents[1]
TEXTS = sorted(path for path in ROOT.rglob("*.md") if ".venv" not in path.parts)
NO_CHOICE = {
    *("Bound", "Distribution", "NoClosedForm", "Regularizer", "TrainState", "VAE", "adapt"),
    *("init_state", "make_mesh", "make_chunk_step", "make_train_step", "mean_of", "soft_clamp"),
    *("trainable", "in_units"),
    *("mlp_vae", "conv_vae", "fit", "TrainedVAE"),
}
BLOCKS = re.findall(
    r"```python\n(.*?)```\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
)


@pytest.mark.parametrize(("code", "output"), BLOCKS)
def test_code_block_prints_the_output_below_it(code, output):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), jax.numpy_rank_promotion("allow"):
        exec(code, {})
    assert printed.getvalue() == output


def test_readme_has_three_code_blocks_and_about_a_hundred_lines():
    text = (ROOT / "README.md").read_text()
    assert text.count("```python") == len(BLOCKS) == 3
    assert len(text.splitlines()) <= 125


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_links_of_a_text_exist(path):
    text = path.read_text()
    for module in set(re.findall(r"python -m (experiments(?:\.\w+)+)", text)):
        file = ROOT / module.replace(".", "/")
        assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), module
    for target in re.findall(r"\]\(((?!http)[^)#]+)", text):
        assert (path.parent / target).exists(), target


def test_tables_name_every_public_choice_of_the_library():
    offered = set(jaxvae.__all__) - {*NO_CHOICE, *jaxvae.flows.__all__}
    named = set(re.findall(r"`(?:jaxvae\.)?(\w+)[`(]", (ROOT / "jaxvae/README.md").read_text()))
    assert offered - named == set()
    estimators = get_args(jaxvae.bounds.EstimatorName)
    assert {*estimators, "autoregressive_flow", "coupling_flow"} <= named
