"""Data of a run: continuing requires the same rows, and results on other rows are labelled."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.data import Dataset, run_data, run_rows
from experiments.data import identity as identity_module
from experiments.data.identity import identify
from experiments.encode import EncodeConfig, encode
from experiments.evaluate import EvaluateConfig, evaluate
from experiments.flags.command import UserError
from experiments.flags.config import TrainConfig
from experiments.replay import ReplayConfig, replay
from experiments.run.folder import recorded_data
from experiments.run.loop import training
from experiments.sample import SampleConfig, sample
from experiments.train import train
from jaxvae.checkpoints import Checkpoints
from tests.experiments.run.test_first_release import FLAGS as FIRST_RELEASE


def bars(count=60, seed=0, high=250):
    rng = np.random.default_rng(seed)
    images = np.zeros((count, 8, 8), np.uint8)
    images[np.arange(count), rng.integers(0, 8, count)] = high
    return images


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """Folder with a run of 10 steps, without its final numbers and pictures, and its data.npz."""
    folder = tmp_path_factory.mktemp("trained")
    config = dataclasses.replace(
        small, dataset="npz:data.npz", run=Path("run"), num_steps=10, eval_every=5
    )
    with contextlib.chdir(folder):
        np.savez("data.npz", images=bars())
        with training(config, jax.devices()[:1]) as loop:
            assert loop.train() == 0
    return folder, config


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """Copy of that run and its data, in the current folder."""
    folder, config = trained
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return config


def files(folder):
    """Contents of the run's files by path, except the lock."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: path.read_bytes() for path in paths}


def recorded(run):
    """Step -> digest of the training split, as recorded in the checkpoints."""
    checkpoints = Checkpoints(run / "checkpoints", read_only=True)
    found = {
        step: checkpoints.about(step)[identity_module.ABOUT]["train"]["digest"]
        for step in checkpoints.steps()
    }
    checkpoints.close()
    return found


def results(name="test-best-2", run=Path("run")):
    return json.loads((run / "evaluations" / f"{name}.json").read_text())


def test_identity_of_one_piece_is_the_hash_of_its_description_and_contents():
    rows = bars(5)
    contents = hashlib.sha256(rows.tobytes()).digest()
    expected = hashlib.sha256(b"[5, 8, 8] uint8 " + contents).hexdigest()
    assert identify(rows) == ([5, 8, 8], "uint8", expected, [0.0, 250.0])
    assert identify(rows[:0]).range is None


def test_identity_depends_only_on_contents_order_shape_and_type(monkeypatch, tmp_path):
    monkeypatch.setattr(identity_module, "PIECE_BYTES", 1000)
    rows = bars()
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(rows))
    monkeypatch.setattr(identity_module, "MOST_THREADS", 1)
    alone = identify(rows)
    monkeypatch.setattr(identity_module, "MOST_THREADS", 8)
    for name in ("rows", "fortran"):
        assert identify(np.load(tmp_path / f"{name}.npy", mmap_mode="r")) == alone
    changed = rows.copy()
    changed[59, 7, 7] ^= 1
    others = [changed, rows[::-1], rows[:-1], rows[..., None], rows.astype(np.int32)]
    assert len({identify(other).digest for other in [rows, *others]}) == 6


@pytest.mark.parametrize("value", [None, {}, {"train": 3}, {"shape": 1}, [], "text"])
def test_identity_rejects_record_of_another_form(value):
    with pytest.raises(ValueError, match=r"data_digest must hold shape, dtype, digest and range"):
        identity_module.from_json({"data_digest": value})


@pytest.mark.parametrize(
    "field",
    [
        {"shape": "8"},
        {"shape": [True, 1]},
        {"shape": []},
        {"dtype": 3},
        {"digest": None},
        {"range": [1.0]},
    ],
)
def test_identity_rejects_value_of_another_type(field):
    values = identity_module.to_json(dict.fromkeys(run_rows.SPLITS, identify(bars(3))))
    assert identity_module.from_json({"data_digest": values})
    values["test"] |= field
    with pytest.raises(ValueError, match=r"a value has another type\. Restore"):
        identity_module.from_json({"data_digest": values})


class Fake:
    """Fake checkpoints: 3 is damaged, 2 has a malformed record, 1 is from an older release."""

    def about(self, step):
        if step == 3:
            raise ValueError("damaged")
        return {"data_digest": 0} if step == 2 else {}


def test_recorded_data_come_from_the_first_readable_checkpoint():
    assert recorded_data(Fake(), [3]) is None
    assert recorded_data(Fake(), [3, 1, 2]) is None
    with pytest.raises(ValueError, match=r"data_digest must hold"):
        recorded_data(Fake(), [3, 2, 1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (bars(seed=1), r"train split has other contents; .*test split has other contents\. .*"
                       r"pass --allow-other-data to continue"),
        (bars(37), r"train split is \[31, 8, 8, 1\] uint8 now and was \[48, 8, 8, 1\] uint8"),
        (bars()[:, :4], r"train split is \[48, 4, 8, 1\] .*current folder\), or start a new run"),
        (bars() / np.float32(250), r"float32 now and was .* uint8.*current folder\), or start"),
    ],
)  # fmt: skip
def test_continuing_rejects_other_data_and_changes_nothing(images, message, run, tmp_path):
    np.savez("data.npz", images=images)
    before = files(run.run)
    with pytest.raises(UserError, match=message) as raised:
        train(dataclasses.replace(run, num_steps=20))
    assert "\n" not in str(raised.value)
    assert files(run.run) == before


@pytest.mark.slow
def test_continuing_names_only_the_split_that_differs(run):
    images = bars()
    order = np.random.default_rng(0).permutation(60)
    images[order[-1]] = 0  # the last index of the permutation is a test example
    np.savez("data.npz", images=images)
    with pytest.raises(UserError, match=r"other data: the test split has other contents\. Restore"):
        train(run)  # a finished run is checked too


@pytest.mark.slow
def test_continuing_rejects_a_relative_path_to_other_data(run, tmp_path, monkeypatch):
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path / "two")
    np.savez("data.npz", images=bars(seed=1))
    with pytest.raises(UserError, match=r"a relative path is relative to the current folder"):
        train(dataclasses.replace(run, run=tmp_path / "run", num_steps=20))
    np.savez("data.npz", images=bars())  # the same rows elsewhere are the same data
    assert train(dataclasses.replace(run, run=tmp_path / "run", num_steps=20)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("images", [bars()[:, :4], bars() / np.float32(250)], ids=["shape", "type"])
def test_allow_other_data_rejects_another_shape_or_type(images, run):
    np.savez("data.npz", images=images)
    with pytest.raises(UserError, match=r"the run was trained on other data"):
        train(dataclasses.replace(run, num_steps=20, allow_other_data=True))


@pytest.mark.slow
def test_allow_other_data_continues_the_run_on_the_new_data(run, capsys):
    (first,) = set(recorded(run.run).values())
    np.savez("data.npz", images=bars(50, seed=1))
    longer = dataclasses.replace(run, num_steps=20, allow_other_data=True, quiet=False)
    assert train(longer) == 0
    assert "warning: from here on the run has other data: the train" in capsys.readouterr().out
    digests = recorded(run.run)
    assert digests[20] not in (first, None)
    assert "allow_other_data" not in json.loads((run.run / "config.json").read_text())
    assert train(dataclasses.replace(run, num_steps=30)) == 0  # without the flag
    np.savez("data.npz", images=bars())
    with pytest.raises(UserError, match=r"the run was trained on other data"):
        train(dataclasses.replace(run, num_steps=40))


@pytest.mark.slow
def test_results_of_a_finished_run_are_measured_again_on_other_data(run):
    assert train(run) == 0
    before = json.loads((run.run / "results.json").read_text())
    np.savez("data.npz", images=bars(seed=1))
    assert train(dataclasses.replace(run, allow_other_data=True)) == 0
    after = json.loads((run.run / "results.json").read_text())
    assert before["data"]["test"]["digest"] != after["data"]["test"]["digest"]
    assert before["test"]["elbo"] != after["test"]["elbo"]


@pytest.mark.long
def test_run_without_recorded_data_continues_and_records_them(first_release):
    np.savez("bars.npz", images=bars(330, seed=1))
    assert train(FIRST_RELEASE) == 0
    assert json.loads((FIRST_RELEASE.run / "results.json").read_text())["steps"] == 30
    np.savez("bars.npz", images=bars(330, seed=2))
    with pytest.raises(UserError, match=r"the run was trained on other data"):
        train(dataclasses.replace(FIRST_RELEASE, num_steps=40))


@pytest.mark.slow
def test_replay_rejects_other_data(run):
    np.savez("data.npz", images=bars(seed=1))
    with pytest.raises(UserError, match=r"Restore the data to replay one of its steps"):
        replay(ReplayConfig(run.run, 7))


@pytest.mark.slow
def test_data_that_are_binarized_once_are_identified_as_loaded(run):
    config = dataclasses.replace(run, binarize="static", run=Path("static"))
    assert train(config) == 0
    assert set(recorded(config.run).values()) == set(recorded(run.run).values())
    evaluate(EvaluateConfig(config.run, num_samples=2, num_devices=1))
    assert results(run=config.run)["data"]["is_of_run"]


@pytest.mark.slow
def test_evaluation_of_the_runs_own_data_is_not_labelled(run, capsys):
    evaluate(EvaluateConfig(run.run, num_samples=2, num_devices=1))
    assert "npz:data.npz test, step 10, 6 examples" in capsys.readouterr().out
    found = results()
    assert found["data"]["is_of_run"] is True
    assert found["data"]["rows"] == found["data"]["run"]["test"]
    assert found["data"]["warnings"] == []


def test_evaluation_of_a_changed_file_is_labelled_and_keeps_the_earlier_results(run, capsys):
    evaluate(EvaluateConfig(run.run, num_samples=2, num_devices=1))
    before = files(run.run)
    np.savez("data.npz", images=bars(seed=1))
    evaluate(EvaluateConfig(run.run, num_samples=2, num_devices=1))
    assert "npz:data.npz test (not the run's data), step 10" in capsys.readouterr().out
    after = files(run.run)
    assert {path: after[path] for path in before} == before
    (new,) = (path for path in after.keys() - before.keys() if path.suffix == ".json")
    found = json.loads(new.read_text())
    digest = found["data"]["rows"]["digest"]
    assert new.name == f"test-best-2-data-{digest[:8]}.json"
    assert found["data"]["is_of_run"] is False
    assert found["data"]["run"]["test"]["digest"] != digest


def rows_for(config, dataset=None, split=None):
    """Load rows as the commands do, without the model of a run."""
    known = identity_module.identify_splits(run_data.own_data(config))
    return run_rows.load_run_rows(config, [8, 8, 1], known, dataset, split).rows


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", images=bars())
    return TrainConfig(dataset="npz:data.npz", likelihood="bernoulli")


def test_names_of_results_differ_if_flags_or_data_differ(config):
    np.savez("other.npz", train=bars(9, 1), test=bars(7, 2))
    Path("more").mkdir()
    np.savez("more/other.npz", images=bars(9, 4))
    own, other = rows_for(config), rows_for(config, "npz:other.npz")
    of_rows = [own, rows_for(config, split="train"), other, rows_for(config, "npz:more/other.npz")]
    of_rows.append(rows_for(config, "npz:other.npz", "test"))
    here, seeded = Path(), {"seed": 1}
    latest = {"checkpoint": "latest"}
    names = [
        EvaluateConfig(here, **flags).name_of_results(rows)
        for rows in of_rows
        for flags in ({}, seeded, {"seed": 2}, latest, {"num_samples": 3}, latest | seeded)
    ]
    assert len(set(names)) == len(names) == 30
    assert names[0] == "test-best-1000"
    codes = [
        EncodeConfig(here, **flags).name_of_codes(rows)
        for rows in of_rows
        for flags in ({}, seeded, {"seed": 2}, latest, latest | seeded)
    ]
    assert len(set(codes)) == len(codes) == 25
    assert codes[0] == "test"
    sizes = [{"num_samples": 3}, {"num_examples": 3}, {"num_steps": 3}]
    folders = [
        SampleConfig(here, **flags).name_of_folder(rows)
        for rows in (own, other)
        for flags in ({}, seeded, latest, *sizes)
    ]
    assert len(set(folders)) == len(folders) == 12
    assert folders[0] == "samples"


@pytest.mark.parametrize(
    ("dataset", "label"),
    [
        ("npz:a b/new rows (1).npz", "new-rows-1"), ("npy:../x/f255.npy", "f255"),
        ("folder:/pictures/cats/", "pictures-cats"), ("tfds:mnist/1", "mnist-1"),
        ("fashion_mnist", "fashion_mnist"), ("npz:ümläut.npz", "ml-ut"), ("npz:日.npz", None),
        (f"npz:{'x' * 200}.npz", "x" * 40),
    ],
)  # fmt: skip
def test_label_of_other_data_is_short_and_fits_every_file_system(dataset, label):
    rows = Dataset("", BYTES, BYTES, BYTES, "", {}).rows("test")
    identity = identify(BYTES)
    other = run_rows.RunRows(dataset, rows, "all", identity, None, False, [])
    assert other.label == [*filter(None, [label]), identity.digest[:8]]


def test_rows_of_the_run_under_another_name_are_recognized(config):
    np.savez("copy.npz", images=bars())
    np.savez("heldout.npz", x=rows_for(config).rows.examples)
    for dataset, split in (("data", "all"), ("copy", "all"), ("heldout", "test")):
        rows = rows_for(config, f"npz:{dataset}.npz")
        assert (rows.split, rows.is_of_run, rows.label) == (split, True, [])
        if split == "all":
            np.testing.assert_array_equal(rows.rows.examples[..., 0], bars())
    assert rows_for(config, "npz:data.npz", "test").is_of_run
    np.savez("longer.npz", images=bars(61))
    assert not rows_for(config, "npz:longer.npz").is_of_run


@pytest.mark.slow
def test_codes_and_samples_of_other_data_do_not_overwrite_those_of_the_run(run):
    sizes = {"num_samples": 3, "num_examples": 2, "num_steps": 2}
    encode(EncodeConfig(run.run, num_devices=1))
    sample(SampleConfig(run.run, **sizes))
    before = files(run.run)
    np.savez("data.npz", images=bars(seed=1))
    encode(EncodeConfig(run.run, num_devices=1))
    sample(SampleConfig(run.run, **sizes))
    assert {path: files(run.run)[path] for path in before} == before
    assert len(list((run.run / "codes").glob("test-data-*.npz"))) == 1
    assert len(list(run.run.glob("samples-samples3-examples2-steps2-data-*"))) == 1


def warnings_of(rows, trained, **flags):
    """Warnings about the rows of a file, for a run with the given training data."""
    np.savez("rows.npz", x=rows)
    own = Dataset("own", trained, trained[:0], trained[:1], "", {})
    config = TrainConfig(**({"dataset": "npz:own.npz", "likelihood": "bernoulli"} | flags))
    known = identity_module.identify_splits(own)
    shape = list(rows.shape[1:])
    return run_rows.load_run_rows(config, shape, known, "npz:rows.npz", None).rows.warnings


VALUES = np.random.default_rng(0).random((20, 6)).astype(np.float32)
BYTES = (255 * VALUES).astype(np.uint8)


@pytest.mark.parametrize(
    ("trained", "rows"),
    [(BYTES, VALUES * 255), (VALUES * 255, BYTES), (BYTES, BYTES.astype(np.int32))],
)
@pytest.mark.parametrize("likelihood", ["gaussian", "laplace", "continuous_bernoulli", "bernoulli"])
def test_rows_of_another_stored_type_are_rejected(trained, rows, likelihood, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"rows.npz is stored as {rows.dtype}.* Convert it to"):
        warnings_of(rows, trained, likelihood=likelihood)


@pytest.mark.parametrize("rows", [BYTES // 200, BYTES.astype(np.int32) // 9 + 200])
def test_counts_may_have_another_stored_type(rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for trained in (BYTES, BYTES.astype(np.int32), BYTES.astype(np.float32)):
        assert warnings_of(rows, trained, likelihood="poisson") == [] or rows.max() == 1


@pytest.mark.parametrize(("trained", "rows"), [(BYTES, BYTES // 200), (BYTES // 200, BYTES)])
def test_binary_pixels_with_another_value_of_white_are_rejected(
    trained, rows, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"white is 1 in one of them and 255 in the other"):
        warnings_of(rows, trained, likelihood="bernoulli")
    assert warnings_of(rows[:1] * 0, trained, likelihood="bernoulli") == []  # black is 0 in both


@pytest.mark.parametrize(
    ("rows", "warns"),
    [
        (VALUES, False), (3 * VALUES - 1, False), (0 * VALUES, False), (VALUES / 50, False),
        (255 * VALUES, True), (VALUES - 20, True), (VALUES / 255, True),
    ],
)  # fmt: skip
def test_rows_far_from_the_training_range_give_a_warning(rows, warns, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    warnings = warnings_of(rows, VALUES, likelihood="gaussian")
    assert bool(warnings) == warns
    if warns:
        assert "the training data from" in warnings[0]
        assert "\n" not in warnings[0]


@pytest.mark.long
def test_rows_of_another_scale_are_labelled_in_the_results(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", x=np.repeat(VALUES, 3, 0))
    np.savez("cents.npz", x=100 * VALUES)
    run = Path("run")
    options = {"likelihood": "gaussian", "num_steps": 2, "eval_every": 2}
    train(dataclasses.replace(small, dataset="npz:data.npz", run=run, **options))
    config = EvaluateConfig(run, dataset="npz:cents.npz", num_samples=2, num_devices=1)
    evaluate(config)
    assert "warning: npz:cents.npz has values from" in capsys.readouterr().err
    (path,) = (run / "evaluations").glob("all-best-2-cents-*.json")
    assert len(json.loads(path.read_text())["data"]["warnings"]) == 1


def test_other_data_do_not_need_the_manual_dir_of_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"dataset": "mnist", "manual_dir": "nowhere"}
    assert warnings_of(bars(3)[..., None], bars(9)[..., None], **config) == []
