"""Laws and failures of experiments.show.report."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest

from experiments.flags.config import TrainConfig
from experiments.show import pictures, plots, report
from experiments.show.report import write_report
from experiments.show.saved_results import is_shown

NASTY = """<script>alert("1")</script> & 'quotes'"""
EMPTY_TAGS = {"meta", "img", "br"}


class Page(html.parser.HTMLParser):
    """Parser of a report; rejects tags that are left open or closed twice."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self._open = [], "", []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY_TAGS:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words += f"{data} "

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def number(value, error=None, unit="nats", **more):
    return {"value": value, "standard_error": error, "unit": unit, **more}


def results():
    split = {
        "elbo": number(-95.1234, 0.4123),
        "log_likelihood": number(-91.02, 0.392, num_samples=100),
        "kl": number(25.02, 0.09),
        "bits_per_dimension": number(0.167491, 0.00071, "bits"),
        "active_units": number(21, unit="of 32"),
        "num_examples": 2000,
    }
    return {
        "command": "python -m experiments.train --dataset 'a b'",
        "versions": {"jaxvae": "0.1.0", "jax": "0.10.2"},
        "device": "cpu x 1",
        "checkpoint": {"which": "best", "step": 6000},
        "preprocessing": "dynamic binarization",
        "bits_per_dimension_of": "binary pixels",
        "test": split,
        "validation": {"elbo": number(-94.5, 0.3), "num_examples": 500, "new": number(7.0)},
        "timing": {"training_seconds": 752.3, "images_per_second": 12310.4, "note": "warm"},
    }


def metrics():
    train = [{"step": s, "split": "train", "elbo": -100.0 - s, "kl": 1.0} for s in (1, 2, 3400)]
    return [*train, {"step": 3400, "split": "validation", "elbo": -99.0, "standard_error": 0.4}]


def png(level):
    file = io.BytesIO()
    pictures.save_png(file, np.full((2, 2, 4), level, np.uint8))
    return file.getvalue()


@pytest.fixture(autouse=True)
def small_curves(monkeypatch):
    monkeypatch.setattr(report, "curves", lambda rows, name, file: file.write(png(len(rows))))


def make_run(folder, drawn=(), **files):
    run = folder / "a run"
    (run / "pictures").mkdir(parents=True)
    for name, value in files.items():
        (run / f"{name}.json").write_text(json.dumps(value))
    for level, name in enumerate(drawn):
        (run / "pictures" / name).write_bytes(png(level))
    return run


def full_run(folder):
    drawn = [f"{name}.png" for name in ("traversals", "samples", "latent_kl", "interpolations")]
    config = {"dataset": "mnist", "latent_dim": 32, "hidden": [512, 256], "resume": None}
    run = make_run(folder, [*drawn, "reconstructions.png"], config=config, results=results())
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics()))
    return run


def page_of(run):
    path = write_report(run)
    assert path == run / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def levels_of(page):
    """Grey value of each picture, in the order of the page."""
    from PIL import Image

    sources = [image["src"].removeprefix("data:image/png;base64,") for image in page.all("img")]
    return [Image.open(io.BytesIO(base64.b64decode(s))).getpixel((0, 0))[0] for s in sources]


def test_a_report_is_self_contained(tmp_path):
    page = page_of(full_run(tmp_path))
    text = (tmp_path / "a run" / "report.html").read_text(encoding="utf-8")
    without_data = re.sub(r'src="data:image/png;base64,[A-Za-z0-9+/=]+"', "", text)
    assert not re.search(r"https?:|src=|href=|url\(|@import|<script|<link|<iframe", without_data)
    assert len(page.all("img")) == 7
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert text.count(str(tmp_path)) == 5  # in the commands to type next


def test_a_report_is_accessible(tmp_path):
    page = page_of(full_run(tmp_path))
    assert page.all("html") == [{"lang": "en"}]
    assert all(len(image["alt"]) > 20 for image in page.all("img"))
    assert all(cell["scope"] in ("row", "col") for cell in page.all("th"))
    assert "prefers-color-scheme: dark" in page.words
    assert len(page.all("h1")) == 1


def test_sections_come_in_order_and_pictures_under_their_own_title(tmp_path):
    page = page_of(full_run(tmp_path))
    titles = [
        *("Final numbers", "Training curves", "Samples", "Reconstructions", "Interpolations"),
        *("Traversals", "KL of each latent", "Configuration", "Command", "What to do next"),
        *("Time", "Device and versions"),
    ]
    places = [page.words.index(f" {title} ") for title in titles]
    assert places == sorted(places)
    assert levels_of(page) == [len(metrics()), len(metrics()), 1, 4, 3, 0, 2]


def test_configuration_shows_changed_flags_and_folds_all_of_them_away(tmp_path):
    config = {"latent_dim": 7, "batch_size": TrainConfig().batch_size}
    text = write_report(make_run(tmp_path, config=config)).read_text(encoding="utf-8")
    shown, _, folded = text.partition("<details><summary>All 2 flags</summary>")
    assert "latent_dim" in shown
    assert "batch_size" not in shown
    assert "batch_size" in folded.partition("</details>")[0]
    unchanged = write_report(make_run(tmp_path / "other", config={"batch_size": 128}))
    assert "All flags have their defaults." in unchanged.read_text(encoding="utf-8")


def test_standardization_that_only_fits_the_likelihood_is_no_changed_flag(tmp_path):
    for number, likelihood in enumerate(("bernoulli", "gaussian")):
        config = {"likelihood": likelihood, "standardize": "none"}
        run = make_run(tmp_path / str(number), config=config)
        shown = write_report(run).read_text(encoding="utf-8").partition("<details>")[0]
        assert ("standardize" in shown) == (likelihood == "gaussian")


def shown_results(**more):
    entry = {"index": 12, "score": -200.5, "file": "a.png", "label": "cat", **more}
    return {
        **results(),
        "shown": {
            "split": "test",
            "extremes": {"least_likely": [entry], "worst_reconstructions": [entry]},
            "latents": {
                "latents": [3, 1], "ranked_by": "KL", "num_examples": 2000, "labelled": True,
            },
        },
    }  # fmt: skip


def test_single_examples_have_a_picture_and_a_folded_table(tmp_path):
    run = make_run(tmp_path, ["least_likely.png", "latents.png"], results=shown_results())
    page = page_of(run)
    words = " ".join(page.words.split())
    assert (
        "The least likely examples of the test split, the most extreme first, with their index in "
        "the data and log p(x) by 100 samples, in nats." in words
    )
    assert "index file label score 12 a.png cat -200.5" in words
    assert (
        "Posterior means of 2,000 test examples in z[3] and z[1], the two latents with the largest "
        "KL. Colours are labels." in words
    )
    assert [image["class"] for image in page.all("img")] == ["pixels", "drawn"]
    assert len(page.all("details")) == 2


def test_vectors_have_a_table_and_no_picture(tmp_path):
    values = {"x": [1.0, None], "reconstruction": [0.5, 2.0], "columns": 7}
    run = make_run(tmp_path, ["least_likely.png"], results=shown_results(**values))
    page = page_of(run)
    words = " ".join(page.words.split())
    assert page.all("img") == []
    assert len(page.all("details")) == 0
    assert "12 a.png cat -200.5 x 1 nan mean of p(x|z) 0.5 2 The first 2 of 7 values." in words


@pytest.mark.parametrize(
    "change",
    [
        [], {"split": "train"}, {"extremes": []}, {"extremes": {"samples": []}},
        {"extremes": {"least_likely": [{"index": -1, "score": 1.0}]}},
        {"extremes": {"least_likely": [{"index": 1, "score": "x"}]}},
        {"extremes": {"least_likely": [{"index": 1, "score": 1.0, "x": ["<b>"]}]}},
        {"extremes": {"least_likely": [{"index": 1, "score": 1.0, "file": 3}]}},
        {"latents": {"latents": ["<b>"]}}, {"latents": 3},
    ],
)  # fmt: skip
def test_damaged_descriptions_of_examples_are_left_out(tmp_path, change):
    values = shown_results()
    values["shown"] = values["shown"] | change if isinstance(change, dict) else change
    assert not is_shown(values["shown"])
    page = page_of(make_run(tmp_path, ["least_likely.png"], results=values))
    assert "a.png" not in page.words
    assert len(page.all("img")) == 1


def test_numbers_come_with_errors_units_and_preprocessing(tmp_path):
    words = " ".join(page_of(full_run(tmp_path)).words.split())
    assert (
        "elbo -95.12 ± 0.41 nats on the test split of mnist (checkpoint: best, step 6,000)."
        in words
    )
    assert "elbo -95.12 ± 0.41 -94.50 ± 0.30 nats" in words
    assert "log p(x), 100 samples -91.02 ± 0.39 nats" in words
    assert "bits per dimension 0.16749 ± 0.00071 bits" in words
    assert "active units 21 of 32" in words
    assert "new 7 nats" in words
    assert "test 2,000 examples validation 500 examples" in words
    assert "Preprocessing of the data: dynamic binarization." in words
    assert "Bits per dimension are those of binary pixels." in words


def test_the_run_can_be_repeated_from_its_report(tmp_path):
    words = " ".join(page_of(full_run(tmp_path)).words.split())
    assert "python -m experiments.train --dataset 'a b'" in words
    assert "latent_dim 32 hidden [512, 256] resume null" in words
    assert "device cpu x 1 jaxvae 0.1.0 jax 0.10.2" in words
    assert "training 12 min 32 s images per second 12,310 note warm" in words


def test_everything_from_the_files_is_escaped(tmp_path):
    values = {
        **results(),
        "command": NASTY,
        "device": NASTY,
        "preprocessing": NASTY,
        "bits_per_dimension_of": NASTY,
        "versions": {NASTY: NASTY},
        "checkpoint": {"which": NASTY, "step": 1},
        "timing": {NASTY: NASTY},
        "test": {"elbo": number(-1.0, 0.1, NASTY), NASTY: number(1.0)},
    }
    run = make_run(tmp_path, config={NASTY: NASTY, "dataset": NASTY}, results=values)
    drawn = run / "pictures" / '"><b>&.png'
    drawn.write_bytes(png(0))
    page = page_of(run)
    assert page.all("script") == []
    assert page.all("b") == []
    assert page.words.count("""alert("1")""") == 18
    assert page.all("img")[0]["alt"] == '"><b>&'


@pytest.mark.parametrize("kept", ["config", "metrics", "results", "pictures", "nothing"])
def test_missing_files_are_left_out(tmp_path, kept):
    run = full_run(tmp_path)
    for path in [*run.glob("*.json*"), *run.glob("pictures/*")]:
        if kept not in (path.stem, path.parent.name):
            path.unlink()
    page = page_of(run)
    sections = {"config": 1, "metrics": 1, "results": 4, "pictures": 5, "nothing": 0}
    assert len(page.all("h2")) == sections[kept] + 1  # what to do next
    assert ("interrupted" in page.words) == (kept != "results")


def test_the_report_of_an_interrupted_run_names_its_last_step(tmp_path):
    run = full_run(tmp_path)
    (run / "results.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9999, "spl')
    words = page_of(run).words
    assert "This run has no results: it was interrupted, or it is still training." in words
    assert "The last row of its metrics is of step 3,400." in words


def test_results_with_gaps_still_make_a_report(tmp_path):
    split = {"elbo": number(None), "kl": {"value": 3.5}, "note": "x", "more": {"a": 1}, "n": None}
    run = make_run(
        tmp_path, results={"test": split, "validation": None, "extra": [1], "timing": None}
    )
    words = " ".join(page_of(run).words.split())
    assert "elbo nan nats on the test split." in words
    assert "KL( q(z|x) ‖ p(z) ) 3.5" in words


def test_the_summary_uses_validation_without_a_test_split(tmp_path):
    run = make_run(tmp_path, results={"validation": {"elbo": number(-94.5, 0.3)}})
    assert "elbo -94.50 ± 0.30 nats on the validation split." in page_of(run).words


def test_the_last_numbered_picture_is_shown_and_unknown_kinds_follow(tmp_path):
    drawn = ["samples_000200.png", "samples_001000.png", "curves.png", "my_own-3.png"]
    page = page_of(make_run(tmp_path, drawn))
    assert levels_of(page) == [1, 3]
    assert "My own" in page.words


def test_a_report_with_real_curves_is_well_formed_and_reproducible(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "curves", plots.curves)
    run = full_run(tmp_path)
    page_of(run)
    first = (run / "report.html").read_bytes()
    page_of(run)
    assert (run / "report.html").read_bytes() == first


def test_a_missing_folder_is_rejected(tmp_path):
    with pytest.raises(
        ValueError, match=r"must be the folder of a run, .*gone is not a folder. Pass"
    ):
        write_report(tmp_path / "gone")


@pytest.mark.parametrize("text", ["[1]", "{", ""])
def test_a_file_that_is_not_a_json_object_is_rejected_by_name(tmp_path, text):
    run = make_run(tmp_path)
    (run / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json must hold a JSON object.* Delete it"):
        write_report(run)
