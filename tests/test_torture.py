"""The torture command: a short version of it, and that it sees what is lost."""

import json
import shutil

import pytest

from experiments.command import Refused
from experiments.torture.__main__ import TortureConfig, torture
from experiments.torture.victim import difference, fingerprint


def test_a_short_torture_is_survived(capsys):
    assert torture(TortureConfig(kills=2, tries=1)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] != "lost" for line in lines] == [True] * 4
    assert lines[1].startswith("killed anywhere")


def test_what_a_run_lost_is_named(whole_run, tmp_path):
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
        (TortureConfig(cases=("gently",)), "--cases must be among killed anywhere, .*got gently"),
    ],
)
def test_what_cannot_be_is_refused(config, message):
    with pytest.raises(Refused, match=message):
        torture(config)
