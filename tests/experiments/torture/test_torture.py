"""The torture command: a short version of it, and its detection of losses."""

import json
import shutil
from pathlib import Path

import pytest

from experiments.flags.command import UserError
from experiments.torture import accidents
from experiments.torture.__main__ import TortureConfig, torture
from experiments.torture.victim import Outcome, difference, fingerprint


@pytest.mark.long
def test_run_survives_a_short_torture(capsys, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # compile as for users
    cases = ("killed anywhere", "SIGTERM and Ctrl-C", "Ctrl-C twice")
    assert torture(TortureConfig(kills=2, tries=1, cases=cases)) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.startswith(case) for line, case in zip(lines, cases, strict=True)] == [True] * 3


@pytest.mark.parametrize(
    "second_start",
    [lambda folder, tries: Outcome(tries, tries - 1, "why"), lambda *_: _fail("why")],
    ids=["outcome", "error"],
)
def test_first_loss_ends_the_torture_and_its_folder_stays(second_start, monkeypatch, capsys):
    monkeypatch.setattr(accidents, "second_start", second_start)
    monkeypatch.setattr(accidents, "not_finite", lambda *_: _fail("not reached"))
    assert torture(TortureConfig(cases=("second start", "finite"))) == 1
    printed = capsys.readouterr()
    assert "why" in printed.out
    assert "not reached" not in printed.out
    folder = Path(printed.err.split("files are in ")[1].strip().removesuffix("."))
    assert folder.is_dir()
    folder.rmdir()


def _fail(why):
    raise RuntimeError(why)


def test_difference_names_what_a_run_lost(whole_run, tmp_path):
    whole = fingerprint(whole_run.run)
    assert difference(whole, fingerprint(whole_run.run)) == ""
    copy = tmp_path / "copy"
    shutil.copytree(whole_run.run, copy)
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[:-1]))
    (copy / "pictures" / "samples.png").write_bytes(b"")
    results = json.loads((copy / "results.json").read_text())
    results["test"]["elbo"]["value"] += 1e-9
    (copy / "results.json").write_text(json.dumps(results))
    shutil.rmtree(copy / "checkpoints" / "60")
    found = difference(whole, fingerprint(copy))
    assert found == "checkpoint 60, metrics.jsonl, pictures, results.json"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TortureConfig(kills=0), "--kills must be at least 1, got 0"),
        (TortureConfig(tries=0), "--tries must be at least 1, got 0"),
        (TortureConfig(bad_input=9), "--bad-input must be at least 10, got 9"),
        (TortureConfig(cases=("gently",)), "--cases must be among killed anywhere, .*got gently"),
    ],
)
def test_torture_rejects_invalid_flags(config, message):
    with pytest.raises(UserError, match=message):
        torture(config)
