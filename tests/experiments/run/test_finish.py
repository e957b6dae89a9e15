"""Files that a run writes after training."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.record.metrics import read_metrics
from experiments.run import finish
from experiments.show.saved_results import read_results
from experiments.train import train
from jaxvae.evaluation import map_dataset


@pytest.fixture
def config(small, tmp_path):
    return dataclasses.replace(small, run=tmp_path / "run", num_steps=30)


@pytest.mark.slow
def test_examples_are_shown_with_the_scores_of_the_final_evaluation(config, monkeypatch):
    measured = []

    def recording(*arguments, **options):
        measured.append(map_dataset(*arguments, **options))
        return measured[-1]

    monkeypatch.setattr("experiments.show.numbers.map_dataset", recording)
    assert train(config) == 0
    # Validation, test and training examples: none is measured twice.
    assert len(measured) == 3
    _, test, _ = measured
    shown = read_results(config.run / "results.json")["shown"]
    assert shown["split"] == "test"
    least = [entry["score"] for entry in shown["extremes"]["least_likely"]]
    np.testing.assert_array_equal(least, np.sort(test.log_likelihood)[:10])
    worst = [entry["score"] for entry in shown["extremes"]["worst_reconstructions"]]
    np.testing.assert_array_equal(worst, np.sort(test.reconstruction)[:10])
    assert shown["latents"]["num_examples"] == len(test.elbo)
    page = (config.run / "report.html").read_text()
    assert all(f"<td>{entry['index']}</td>" in page for entry in shown["extremes"]["least_likely"])


@pytest.mark.slow
def test_vectors_get_tables_and_one_latent_a_histogram(config, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "rows.npz", x=rng.normal(size=(60, 5)), y=np.arange(60) % 2)
    vectors = dataclasses.replace(
        config, dataset=f"npz:{tmp_path / 'rows.npz'}", likelihood="gaussian", latent_dim=1
    )
    assert train(vectors) == 0
    shown = read_results(config.run / "results.json")["shown"]
    assert shown["latents"]["latents"] == [0]
    assert {entry["label"] for entry in shown["extremes"]["least_likely"]} == {"0", "1"}
    assert not (config.run / "pictures" / "least_likely.png").exists()
    page = (config.run / "report.html").read_text()
    assert "in z[0], the only latent. Colours are labels." in page
    assert '<th scope="col" class="number">x[4]</th>' in page


@pytest.mark.slow
def test_times_add_up_over_the_starts_of_a_run(config):
    assert train(config) == 0
    first = json.loads((config.run / "results.json").read_text())["timing"]
    assert first["training_seconds"] > 0
    assert first["evaluation_seconds"] > 0
    assert first["drawing_seconds"] > 0
    assert train(dataclasses.replace(config, num_steps=40)) == 0
    rows = read_metrics(config.run / "metrics.jsonl")
    seconds = [row["timing"]["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    second = json.loads((config.run / "results.json").read_text())["timing"]
    assert second["training_seconds"] == seconds[-1] > first["training_seconds"]


@pytest.mark.slow
def test_a_finished_run_is_not_measured_again(config, monkeypatch):
    assert train(config) == 0
    monkeypatch.setattr(finish, "_measure", None)
    (config.run / "report.html").unlink()
    assert train(config) == 0
    assert (config.run / "report.html").exists()
