"""Compiled programs on disk: their folder, and their use by the next process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.machine.compilation_cache import give_back_memory, use
from tests.files import ROOT

PROGRAM = """
import sys
from experiments.machine.compilation_cache import use
use(sys.argv[1])
import jax
jax.config.update("jax_explain_cache_misses", True)
print(jax.config.jax_compilation_cache_dir, jax.jit(lambda x: x * 3)(2.0))
"""


def folder_after(where, **environment):
    """Compile something in a new process, and return jax's setting of the cache folder there."""
    unset = ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-c", PROGRAM, where]
    result = subprocess.run(
        command, cwd=ROOT, env=kept | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return result.stdout.split()[0]


@pytest.mark.slow
def test_programs_are_stored_by_jax_version_and_cpu_and_found_again(tmp_path):
    folder = Path(folder_after(str(tmp_path / "own")))
    assert folder.parent == tmp_path / "own"
    assert re.fullmatch(r"[\d.]+-\w+-[0-9a-f]{8}", folder.name)
    before = {path.name for path in folder.glob("*-cache")}
    assert before
    folder_after(str(tmp_path / "own"))
    assert {path.name for path in folder.glob("*-cache")} == before


def test_auto_is_the_users_cache_folder_or_jaxs_own_setting(tmp_path):
    assert Path(folder_after("auto", XDG_CACHE_HOME=str(tmp_path))).parent == tmp_path / "jaxvae"
    own = str(tmp_path / "jaxs")
    assert folder_after("auto", JAX_COMPILATION_CACHE_DIR=own) == own


def test_a_home_that_cannot_be_written_compiles_each_time(tmp_path):
    (tmp_path / "file").touch()
    assert folder_after("auto", XDG_CACHE_HOME=str(tmp_path / "file")) == "None"


def test_a_program_that_cannot_be_stored_gives_no_warning(tmp_path):
    """A limit of 0 bytes for files acts like a full or read-only disk."""
    full = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
    result = subprocess.run(
        [sys.executable, "-c", full + PROGRAM, str(tmp_path)], cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.endswith(" 6.0\n")
    assert "Warning" not in result.stderr


def test_a_folder_that_cannot_be_created_is_rejected_by_name(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--compilation-cache=.*file.* Or give none"):
        use(str(tmp_path / "file"))


def test_give_back_memory_never_fails():
    give_back_memory()
