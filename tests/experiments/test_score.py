"""score, and every row in its place: whatever goes into a command comes out with its id."""

import csv
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import jaxvae
from experiments.encode import EncodeConfig, encode
from experiments.evaluate import EvaluateConfig, evaluate
from experiments.flags.command import UserError
from experiments.sample import SampleConfig, sample
from experiments.score import ScoreConfig, score
from experiments.train import train
from jaxvae.checkpoints import load, load_trained, read_reference, write_reference
from jaxvae.trained import Reference

ROWS = np.random.default_rng(3).integers(0, 251, (25, 8, 8), dtype=np.uint8)
ONE = jax.devices()[:1]


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(params=["npz", "folder of npy", "folder", "one row"])
def source(request, tmp_path):
    """Value of --dataset, its rows in order, and the id of each."""
    kind, place = request.param, tmp_path / "new données"
    place.mkdir()
    ids = [str(i) for i in range(25)]
    if kind == "npz":
        np.savez(place / "x.npz", images=ROWS)
        return f"npz:{place}/x.npz", ROWS, ids
    if kind == "one row":
        np.save(place / "x.npy", ROWS[:1])
        return f"npy:{place}/x.npy", ROWS[:1], ids[:1]
    if kind == "folder of npy":
        np.save(place / "train.npy", ROWS[:20])
        np.save(place / "test.npy", ROWS[20:])
        return f"npy:{place}", ROWS, [*ids[:20], *ids[:5]]
    for i, image in enumerate(ROWS):
        Image.fromarray(image).save(place / f"{i:03}.png")
    return f"folder:{place}", ROWS, [f"{i:03}.png" for i in range(25)]


@pytest.mark.slow
def test_every_row_comes_out_with_its_id(whole_run, source, tmp_path):
    """With the same key a row's numbers depend on its place alone, so order can be checked."""
    dataset, rows, ids = source
    run = whole_run.run
    score(ScoreConfig(run, dataset=dataset, output=tmp_path / "s.csv", num_devices=1))
    encode(EncodeConfig(run, dataset=dataset, output=tmp_path / "c.npz", num_devices=1))
    evaluate(EvaluateConfig(run, dataset=dataset, output=tmp_path / "e", num_samples=2))
    sample(SampleConfig(run, dataset=dataset, output=tmp_path / "p", num_samples=2, num_steps=2))

    found = table(tmp_path / "s.csv")
    assert [row["id"] for row in found] == ids
    trained = load_trained(run, devices=ONE)
    np.testing.assert_allclose(
        [float(row["log_likelihood"]) for row in found],
        trained.score(rows).log_likelihood,
        rtol=1e-4,
    )
    with np.load(tmp_path / "c.npz") as codes:
        assert list(codes["files"] if "files" in codes else codes["index"].astype(str)) == ids
        np.testing.assert_allclose(codes["mean"], trained.encode(rows).mean(), atol=1e-5)
    (evaluated,) = (tmp_path / "e").glob("*.npz")
    with np.load(evaluated) as scores:
        assert len(scores["elbo"]) == len(rows)
    with np.load(tmp_path / "p" / "reconstructions.npz") as samples:
        stored = trained.reconstruct(rows) / 255
        np.testing.assert_allclose(samples["reconstructions"], stored, atol=1e-4)


@pytest.mark.long
def test_whole_numbers_of_another_type_are_scored_alike(small, tmp_path):
    """A run on 64-bit pixels takes the same pixels as 8-bit integers."""
    np.save(tmp_path / "wide.npy", ROWS.astype(np.int64))
    np.save(tmp_path / "narrow.npy", ROWS)
    config = dataclasses.replace(
        small, run=tmp_path / "run", dataset=f"npy:{tmp_path}/wide.npy", num_steps=4
    )
    assert train(config) == 0
    found = []
    for name in ("wide", "narrow"):
        dataset, path = f"npy:{tmp_path}/{name}.npy", tmp_path / f"{name}.csv"
        score(ScoreConfig(config.run, dataset=dataset, output=path, num_devices=1))
        found.append([row["log_likelihood"] for row in table(path)])
    assert found[0] == found[1]


@pytest.mark.slow
def test_samples_of_another_split_have_a_folder_of_their_own(whole_run):
    for split in ("train", "test"):
        sample(SampleConfig(whole_run.run, num_samples=2, num_steps=2, split=split))
    sizes = {}
    for name in ("samples-train", "samples-test"):
        folder = next(whole_run.run.glob(f"{name}-*"))
        with np.load(folder / "reconstructions.npz") as arrays:
            sizes[name] = len(arrays["reconstructions"])
    assert sizes == {"samples-train": 264, "samples-test": 33}


def test_a_run_may_be_named_checkpoints(whole_run, tmp_path):
    run = shutil.copytree(whole_run.run, tmp_path / "checkpoints")
    for path in (run, run / "checkpoints"):
        assert load_trained(path, devices=ONE).reference is not None


def test_scores_are_ranked_among_the_training_rows(whole_run, capsys):
    score(ScoreConfig(whole_run.run, split="train", num_devices=1))
    quantiles = [float(row["quantile"]) for row in table(whole_run.run / "scores" / "train.csv")]
    # The 264 rows are their own reference, with other noise: 60 steps and 4 samples.
    np.testing.assert_allclose(np.mean(quantiles), 0.5, atol=0.1)
    assert "less likely than 99 % of the training rows" in capsys.readouterr().out
    assert len(read_reference(whole_run.run, load_step(whole_run.run)).log_likelihood) == 264


def load_step(run):
    return json.loads((run / "results.json").read_text())["checkpoint"]["step"]


def test_other_numbers_of_samples_have_no_quantiles(whole_run, tmp_path, capsys):
    score(ScoreConfig(whole_run.run, num_samples=2, output=tmp_path / "s.csv", num_devices=1))
    assert {row["quantile"] for row in table(tmp_path / "s.csv")} == {""}
    assert "no quantiles" in capsys.readouterr().out


def test_load_trained_has_the_model_of_load(whole_run):
    trained = load_trained(whole_run.run, devices=ONE)
    vae, params = load(whole_run.run)
    jax.tree.map(np.testing.assert_array_equal, trained.params, params)
    assert trained.data_shape == (8, 8, 1)
    assert "dynamic binarization" in repr(trained)
    assert "bernoulli" in repr(trained)
    x = trained.prepare(jax.random.key(0), ROWS[0][..., None])
    assert isinstance(vae.decode(params, vae.encode(params, x).mean()), jaxvae.Bernoulli)


def test_a_run_without_its_preprocessing_says_so(first_release):
    with pytest.raises(ValueError, match=r"did not store its preprocessing\. Continue it"):
        load_trained(first_release)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "--num-samples must be at least 1, got 0"),
        ({"batch_size": 0}, "--batch-size must be at least 1, got 0"),
        ({"seed": -1}, "--seed must be 0 or more, got -1"),
    ],
)
def test_invalid_flags_are_rejected(whole_run, changes, message):
    with pytest.raises(UserError, match=message):
        score(ScoreConfig(whole_run.run, **changes))


def test_a_reference_is_never_written_through_a_link(tmp_path):
    """A folder that somebody else made may hold a link under the temporary name."""
    (tmp_path / "own.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "reference.json.unfinished").symlink_to(tmp_path / "own.txt")
    write_reference(tmp_path / "run", Reference(np.zeros(1, np.float32), 10, 3))
    assert (tmp_path / "own.txt").read_text() == "mine"
    assert read_reference(tmp_path / "run", 3).num_samples == 10


@pytest.mark.parametrize("text", ["{", "[]", '{"log_likelihood": "?"}'])
def test_a_damaged_reference_is_one_clear_line(whole_run, tmp_path, text):
    path = whole_run.run / "reference.json"
    whole = path.read_text()
    path.write_text(text)
    try:
        with pytest.raises(UserError, match=r"reference\.json cannot be read: .* Delete it"):
            score(ScoreConfig(whole_run.run, output=tmp_path / "s.csv"))
    finally:
        path.write_text(whole)
