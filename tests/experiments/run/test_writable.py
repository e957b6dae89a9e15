"""Folders that cannot be written: commands that write reject them early, other commands read them.

Permissions do not bind root, so writes fail by an audit hook of Python or on a read-only mount.
"""

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.encode import EncodeConfig, encode
from experiments.evaluate import EvaluateConfig, evaluate
from experiments.flags.command import UserError
from experiments.flags.path_checks import require_folder
from experiments.run.folder import read_config
from experiments.sample import SampleConfig, sample
from experiments.train import train
from jaxvae.checkpoints import Checkpoints, load
from jaxvae.checkpoints.manifest import digest
from tests.files import ROOT

UNFINISHED = "99.orbax-checkpoint-tmp"


READ_ONLY: list[Path] = []
TRIED: list[tuple[str, str]] = []
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.utime"}


def lies_in_one(path):
    return any(Path(os.fsdecode(path)).resolve().is_relative_to(folder) for folder in READ_ONLY)


def reject_changes(event, arguments):
    """Audit hook that makes changes of protected folders fail; hooks stay until Python ends."""
    if READ_ONLY and (event == "open" or event in CHANGES):
        path = arguments[0]
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
        changes = event != "open" or (arguments[2] or 0) & writes
        if changes and isinstance(path, str | bytes | os.PathLike) and lies_in_one(path):
            TRIED.append((event, os.fsdecode(path)))
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)


sys.addaudithook(reject_changes)


@pytest.fixture
def read_only(monkeypatch):
    """Return a function that makes a folder read-only for this Python process."""
    asked = os.access
    monkeypatch.setattr(
        os,
        "access",
        lambda path, mode: asked(path, mode) and not (mode & os.W_OK and lies_in_one(path)),
    )
    yield lambda folder: READ_ONLY.append(folder.resolve())
    READ_ONLY.clear()
    TRIED.clear()


@pytest.fixture
def finished(first_release):
    """Run with a save that was interrupted."""
    (first_release / "checkpoints" / UNFINISHED).mkdir()
    return first_release


def test_a_folder_that_exists_or_can_be_created_is_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "new" / "one", Path("new"), Path()):
        require_folder(folder, "--run")
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_a_folder_is_rejected(tmp_path, read_only):
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"--run must be .*file/run is not: .*file is not a folder"
    ):
        require_folder(tmp_path / "file" / "run", "--run")
    read_only(tmp_path)
    with pytest.raises(ValueError, match=rf"--output must be .*x/y is not: {tmp_path} is not"):
        require_folder(tmp_path / "x" / "y", "--output")


def test_training_in_an_unwritable_folder_is_rejected_before_setup(
    small, tmp_path, read_only, monkeypatch
):
    monkeypatch.setattr("experiments.run.build.load_data", None)  # it is not called
    read_only(tmp_path)
    with pytest.raises(UserError, match=r"--run must be a folder, .* is not writable"):
        train(dataclasses.replace(small, run=tmp_path / "run"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_that_cannot_be_written_can_be_read(finished, tmp_path, read_only):
    """The run is reached through a link, and unfinished files in it are not cleaned up."""
    run = tmp_path / "link"
    run.symlink_to(finished, target_is_directory=True)
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    read_only(finished)
    sizes = {"num_samples": 2, "num_examples": 2, "num_steps": 2}
    for command, config in (
        (evaluate, EvaluateConfig(run, num_samples=2, num_devices=1)),
        (sample, SampleConfig(run, **sizes)),
        (encode, EncodeConfig(run, num_devices=1)),
    ):
        with pytest.raises(UserError, match=r"--output must be a folder, .* is not writable"):
            command(config)
        name = "codes.npz" if command is encode else command.__name__
        command(dataclasses.replace(config, output=tmp_path / "out" / name))
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"codes.npz", "evaluate", "sample"}
    with pytest.raises(UserError, match=r"--run must be a folder, .*link is not writable"):
        train(dataclasses.replace(read_config(run), run=run))
    assert TRIED == []
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.slow
def test_a_linked_run_folder_is_continued(finished, tmp_path):
    (tmp_path / "disk").mkdir()
    there = finished.rename(tmp_path / "disk" / "there")
    finished.symlink_to(there, target_is_directory=True)
    assert train(dataclasses.replace(read_config(finished), num_steps=21)) == 0
    assert finished.is_symlink()
    checkpoints = Checkpoints(there / "checkpoints", read_only=True)
    assert checkpoints.steps() == [20, 21]
    checkpoints.close()
    assert not (there / "checkpoints" / UNFINISHED).exists()


@pytest.mark.slow
def test_a_run_on_a_read_only_mount_can_be_read_but_not_continued(finished):
    """Skipped without root, since only root may mount."""
    mounted = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'
    inside = ["unshare", "--mount", "sh", "-c", mounted, "sh", str(finished)]
    try:
        subprocess.run([*inside, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no mounts here: {error}")
    code = """
import pathlib, sys
from experiments.flags.path_checks import require_folder
from jaxvae.checkpoints import load
from jaxvae.checkpoints.manifest import digest
run = pathlib.Path(sys.argv[1])
print(digest(load(run)[1]))
require_folder(run, "--run")
"""
    result = subprocess.run(
        [*inside, sys.executable, "-c", code, str(finished)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stdout.strip() == digest(load(finished)[1]), result.stderr
    assert f"{finished} is not writable. Fix it" in result.stderr
    assert (finished / "checkpoints" / UNFINISHED).is_dir()
