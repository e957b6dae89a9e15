"""Folders and files of any name: a run works there, or is rejected before training."""

import dataclasses
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import data as datasets
from experiments.encode import EncodeConfig, encode
from experiments.evaluate import EvaluateConfig, evaluate
from experiments.flags import command
from experiments.flags.command import UserError
from experiments.flags.path_checks import ROOM_BELOW, path_of, require_folder, same_text
from experiments.machine import compilation_cache
from experiments.record.metrics import read_metrics
from experiments.record.progress import without_announcements
from experiments.run.loop import training
from experiments.sample import SampleConfig, sample
from experiments.train import train
from jaxvae.checkpoints import Checkpoints, load
from jaxvae.checkpoints.manifest import digest
from jaxvae.checkpoints.plain_path import plain_path
from tests.files import ROOT

CHARACTERS = (
    *"[]{}()<>*?!%#&;|=,:~$^@+\\'\"` \t\n\r\x01\x7f",
    *("é", "e\u0301", "漢", "😀", "א", "\u202e", "\u200b", "\udcff"),
)
"""Names that some layer might interpret as syntax; the last has a byte that is not UTF-8."""
NAMES = (
    *(f"a{character}b" for character in CHARACTERS),
    *("[x]", "[!a]", "**", "*", "?", "{a,b}", "logs:", "gs:", "s3:", "-x", "--x=y", "~", "$HOME"),
    *(" x ", "..x..", "x.", "%2F", "a\\..\\b", "n" * 255, "ü" * 127, "jaxvae-x"),
)
EVERYTHING = "-a [x]*?{b,c} %#&;|=,:~$\\d'\"`<b>\n\té e\u0301 漢😀א\u202e\u200b \udcff gs:"
"""Name of a folder that combines all of them."""
PARAMS = {"w": np.arange(3, dtype=np.float32)}
BYTE_LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory, monkeypatch):
    """Folder for temporary files, which must be empty at the end."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    assert not list(folder.iterdir())


def save_and_read(directory):
    for _ in range(2):
        checkpoints = Checkpoints(directory)
        checkpoints.save((checkpoints.latest_step() or 0) + 1, {"params": PARAMS}, {}, 1.0)
        checkpoints.wait()
        checkpoints.close()
    read = Checkpoints(directory, read_only=True)
    assert read.steps() == [1, 2]
    np.testing.assert_array_equal(read.restore(2, {"params": PARAMS})["params"]["w"], PARAMS["w"])
    read.close()


def rows(run):
    return [
        {name: value for name, value in row.items() if name != "timing"}
        for row in read_metrics(run / "metrics.jsonl")
    ]


# Law


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_checkpoints_work_in_a_folder_of_any_name(name, tmp_path):
    """They work there and after a move to a plain name; nothing is written beside the folder."""
    parent = tmp_path / "parent"
    save_and_read(parent / name / "checkpoints")
    assert [path.name for path in parent.iterdir()] == [name]
    (parent / name).rename(parent / "plain")
    read = Checkpoints(parent / "plain" / "checkpoints", read_only=True)
    np.testing.assert_array_equal(read.restore(1, {"params": PARAMS})["params"]["w"], PARAMS["w"])
    read.close()


@pytest.mark.parametrize("name", ["logs:", "[x]"])
def test_the_checkpoint_folder_itself_may_have_an_odd_name(name, tmp_path):
    save_and_read(tmp_path / name)


@pytest.mark.parametrize("root", ["/gs", "/s3", "/az", "/hf", "/a[b", "/a\\b"])
def test_epath_never_gets_paths_that_look_like_addresses_or_patterns(root):
    with plain_path(Path(root) / "run" / "checkpoints") as path:
        assert str(path.readlink()) == f"{root}/run/checkpoints"
        assert path.parent.parent == Path(os.environ["TMPDIR"]).resolve()


@pytest.mark.parametrize("path", ["/home/me/runs/a-1_2.x", "/data/gs/s3", "/ü/漢 (2)"])
def test_a_plain_path_is_used_as_it_is(path, temporary):
    with plain_path(Path(path)) as same:
        assert same == Path(path)
        assert not list(temporary.iterdir())


def test_a_path_of_the_greatest_length_works(tmp_path):
    longest = os.pathconf(tmp_path, "PC_PATH_MAX") - ROOM_BELOW
    run = tmp_path
    while (room := longest - len(os.fsencode(run)) - 1) > 255:
        run /= "n" * min(255, room - 2)
    run /= "n" * room
    require_folder(run, "--run")
    save_and_read(run / "checkpoints")
    with pytest.raises(ValueError, match=rf"its path has more than {longest} bytes\. Fix it, or"):
        require_folder(Path(f"{run}n"), "--run")


def test_checkpoints_of_the_first_release_work_below_any_name(first_release):
    """Checkpoints of that release have today's form."""
    from tests.experiments.run.test_first_release import OF_PARAMETERS

    odd = first_release.parent / EVERYTHING
    odd.mkdir()
    run = first_release.rename(odd / "run")
    before = {path for path in run.rglob("*")}
    assert digest(load(run)[1]) == OF_PARAMETERS
    assert {path for path in run.rglob("*")} == before
    checkpoints = Checkpoints(run / "checkpoints")
    checkpoints.save(30, {"average": PARAMS}, {}, None)
    assert checkpoints.steps() == [20, 30]
    checkpoints.close()


@pytest.mark.slow
def test_a_run_is_killed_resumed_evaluated_and_moved_below_any_name(data, small, tmp_path):
    """Killed in a byte locale, it still equals an uninterrupted run in a plain folder."""
    (tmp_path / EVERYTHING).mkdir()
    file = Path(data.removeprefix("npz:"))
    dataset = f"npz:{tmp_path / EVERYTHING / 'data [1].npz'}"
    Path(dataset.removeprefix("npz:")).write_bytes(file.read_bytes())
    config = dataclasses.replace(small, run=tmp_path / EVERYTHING / "run", eval_every=50,
                                 dataset=dataset)  # fmt: skip
    flags = [f"--run={config.run}", f"--dataset={dataset}", "--hidden", "16", "--latent-dim=2",
             "--batch-size=20", "--learning-rate=1e-2", "--num-steps=100000000", "--eval-every=50",
             "--log-every=5", "--eval-samples=4", "--num-devices=1", "--quiet"]  # fmt: skip
    environment = os.environ | BYTE_LOCALE | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *flags], cwd=ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if any(path.name.isdigit() for path in (config.run / "checkpoints").glob("*")):
                break
            time.sleep(0.001)
        process.kill()
        errors = process.communicate()[1]
    assert process.returncode == -9, errors
    for left in Path(os.environ["TMPDIR"]).iterdir():  # links that a killed process leaves behind
        assert [path.name for path in left.iterdir()] == ["checkpoints"]
        (left / "checkpoints").unlink()
        left.rmdir()
    checkpoints = Checkpoints(config.run / "checkpoints", read_only=True)
    num_steps = (checkpoints.latest_step() // 50 + 2) * 50
    checkpoints.close()
    config = dataclasses.replace(config, num_steps=num_steps)
    plain = dataclasses.replace(config, run=tmp_path / "plain")
    assert train(config) == 0
    with training(plain, jax.devices()[:1]) as loop:
        assert loop.train() == 0
    assert rows(config.run) == rows(plain.run)
    of_parameters = digest(load(plain.run, "latest")[1])
    assert digest(load(config.run, "latest")[1]) == of_parameters
    evaluate(EvaluateConfig(config.run, num_samples=2, num_devices=1))
    moved = config.run.rename(tmp_path / "moved")
    evaluate(EvaluateConfig(moved, num_samples=2, num_devices=1, output=tmp_path / "again"))
    before, after = moved / "evaluations", tmp_path / "again"
    names = {path.name for path in before.iterdir()}
    assert names == {path.name for path in after.iterdir()}
    for name in names:
        assert (before / name).read_bytes() == (after / name).read_bytes()
    assert digest(load(moved, "latest")[1]) == of_parameters


@pytest.mark.slow
def test_commands_work_in_a_byte_locale(first_release):
    """Output is ASCII; files named in config.json are found by their bytes in UTF-8."""
    run = first_release.rename(first_release.parent / "rün")
    first_release.parent.joinpath("bars.npz").rename(first_release.parent / "bärs.npz")
    config = run / "config.json"
    config.write_text(config.read_text().replace("bars.npz", "bärs.npz"), encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.evaluate", "rün", "--num-samples=2"],
        env=os.environ | BYTE_LOCALE | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0
    assert without_announcements(ended.stderr.decode("ascii")) == ""
    assert b"written: r\\udcc3\\udcbcn/evaluations/" in ended.stdout
    assert list(run.glob("evaluations/test-best-2*.json"))


def test_a_text_names_the_same_file_in_every_locale(monkeypatch):
    assert same_text("ü", "\udcc3\udcbc")
    assert not same_text("ü", "u")
    assert same_text(None, None)
    assert path_of("ü") == Path("ü")
    assert path_of("\udcc3\udcbc") == Path("\udcc3\udcbc")
    assert path_of("~") == Path.home()
    assert path_of("~no-user.npz") == Path("~no-user.npz")
    encode_as = "ascii"
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode(encode_as, "surrogateescape"))
    monkeypatch.setattr(os, "fsdecode", lambda data: data.decode(encode_as, "surrogateescape"))
    assert str(path_of("ü")) == "\udcc3\udcbc"
    assert same_text("\udcc3\udcbc", "ü")


@pytest.mark.parametrize("name", ["~x.npz", "a:b [c]*?.npz", "\udcff.npz", "-x.npz"], ids=ascii)
def test_data_may_have_any_name(name, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(Path(data.removeprefix("npz:")).read_bytes())
    assert len(datasets.load(f"npz:{name}").train)


def test_compiled_programs_are_stored_in_a_folder_of_any_name(tmp_path):
    folder = tmp_path / "[x]*\\y"
    code = f"""
from experiments.machine import compilation_cache
compilation_cache.use({str(folder)!r})
import jax
jax.jit(lambda x: x + 1)(1.0)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)
    assert [path for path in folder.rglob("*-cache") if path.is_file()]


def test_codes_are_written_under_the_requested_name(first_release, capsys):
    """numpy would append .npz to a path with another suffix."""
    path = first_release.parent / "codes [1].of"
    encode(EncodeConfig(first_release, output=path, num_devices=1))
    assert f"written: {path} (" in capsys.readouterr().out
    assert np.load(path)["mean"].shape[1] == 2
    assert not path.with_name(f"{path.name}.npz").exists()


def test_loading_prints_nothing(first_release, caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):
        load(first_release)
    assert caplog.records == []


def test_a_name_that_standard_output_cannot_encode_is_printed(capsys, monkeypatch):
    @dataclasses.dataclass
    class Flags:
        pass

    monkeypatch.setattr(sys, "argv", ["show"])
    with pytest.raises(SystemExit) as ended:
        command.main(Flags, lambda flags: print("run \udcff"))
    assert ended.value.code == 0
    assert capsys.readouterr().out == "run \\udcff\n"


# Failure


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://b", "file:///x/y", "https://a.org/x"])
def test_an_address_is_rejected_without_creating_a_folder(
    address, small, first_release, monkeypatch
):
    before = set(first_release.parent.rglob("*"))
    path = Path(address)
    for run, flag in (
        (lambda: train(dataclasses.replace(small, run=path)), "--run"),
        (lambda: evaluate(EvaluateConfig(first_release, output=path)), "--output"),
        (lambda: sample(SampleConfig(first_release, output=path)), "--output"),
        (lambda: encode(EncodeConfig(first_release, output=path / "x.npz")), "--output"),
        (lambda: train(dataclasses.replace(small, compilation_cache=address)), "--compilation"),
    ):
        with pytest.raises(UserError, match=rf"^{flag}.* it is an address; .* to a local folder"):
            run()
    assert set(first_release.parent.rglob("*")) == before
    with pytest.raises(FileNotFoundError, match="no run at"):
        load(address)


def test_a_link_that_cannot_be_created_gives_one_line(tmp_path, monkeypatch):
    (tmp_path / "t[m]p").mkdir()
    odd = tmp_path / "[x]" / "checkpoints"
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "t[m]p"))
        with pytest.raises(
            ValueError, match=r"x\]/checkpoints has characters .* Set TMPDIR to a writable folder"
        ):
            Checkpoints(odd)
        assert not list((tmp_path / "t[m]p").iterdir())

    def reject(*_, **__):
        raise OSError("A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", reject)
    with pytest.raises(ValueError, match=r"A required privilege .* or choose another path"):
        Checkpoints(odd)
    save_and_read(tmp_path / "plain")


def test_a_name_that_the_locale_cannot_encode_is_rejected_with_a_remedy(monkeypatch):
    def unable(path):
        "ü".encode("ascii")

    monkeypatch.setattr(Path, "stat", unable)
    with pytest.raises(ValueError, match=r"lacks some of its characters\. Set PYTHONUTF8=1 or"):
        require_folder(Path("r"), "--run")


def test_a_user_without_a_home_compiles_each_time(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", None, raising=False)
    compilation_cache.use("auto")
    monkeypatch.undo()
    assert jax.config.jax_compilation_cache_dir == before
