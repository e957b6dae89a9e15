"""Every row that goes in comes out with its id, from every kind of source."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.data import PictureOptions, load, load_rows, read
from experiments.data.pictures import source
from experiments.data.splits import select_rows
from experiments.encode import EncodeConfig, encode
from experiments.evaluate import EvaluateConfig, evaluate
from experiments.flags.command import UserError
from experiments.run.loop import training
from experiments.sample import SampleConfig, sample
from experiments.train import train
from tests.splits import numbered

COUNTS = {"train": 41, "validation": 3, "test": 17}


def pixels(number):
    """Make an 8 x 8 picture that shows its number in two pixels, other pixels are black."""
    picture = np.zeros((8, 8), np.uint8)
    picture[0, :2] = divmod(number, 256)
    return picture


def number_of(rows):
    """Read the numbers that pictures show, or that vectors begin with."""
    if rows.ndim == 2:
        return (rows[:, 0] / 2).astype(int)
    return rows[:, 0, 0, 0].astype(int) * 256 + rows[:, 0, 1, 0]


def lay(form, place, parts):
    """Write rows, each with its number as label, in a form; return the name of the data set."""
    place.mkdir()
    ranges, start = {}, 0
    for part, count in parts.items():
        ranges[part], start = np.arange(start, start + count), start + count
    if form == "folder":
        for part, numbers in ranges.items():
            for number in numbers:
                path = place / part / f"class {number % 3}" / f"{number}.png"
                path = place / path.relative_to(place / "all") if part == "all" else path
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels(number)).save(path)
        return f"folder:{place}"
    if form == "npy":
        np.save(place / "a.npy", numbered(start))
        return f"npy:{place}/a.npy"
    arrays = {}
    for part, numbers in ranges.items():
        suffix = "" if part == "all" else f"_{part}"
        arrays |= {f"x{suffix}": numbered(start)[numbers], f"y{suffix}": numbers}
    if form == "npz":
        np.savez(place / "a.npz", **arrays)
        return f"npz:{place}/a.npz"
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", array)
    return f"npy:{place}"


def check_ids(rows, form, starts):
    """Check that each row's index, label and file are those of the row itself.

    Args:
        rows: the rows.
        form: as for `lay`.
        starts: number of the first row of the part that each index refers to.
    """
    numbers = number_of(np.asarray(rows.examples))
    if form == "folder":
        assert [int(name.rpartition("/")[2][:-4]) for name in rows.files] == numbers.tolist()
        assert rows.labels.tolist() == (numbers % 3).tolist()
        assert rows.label_names == ("class 0", "class 1", "class 2")
        return  # pictures are sorted by their paths, so indices are not numbers
    assert rows.files is None
    np.testing.assert_array_equal(numbers, rows.indices + starts)
    if form != "npy":
        assert rows.labels.tolist() == numbers.tolist()


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("parts", [{"all": 61}, COUNTS])
@pytest.mark.parametrize("form", ["npz", "npy", "npy folder", "folder"])
def test_every_row_comes_out_with_its_id(form, parts, cached, tmp_path, monkeypatch):
    if form == "npy" and len(parts) > 1:
        pytest.skip("an .npy has one part")
    monkeypatch.setattr(source, "FEW", 0)
    pictures = PictureOptions(cache=tmp_path / "cache") if cached else None
    name = lay(form, tmp_path / "data", parts)
    several = len(parts) > 1
    starts = dict(zip(COUNTS, (0, 41, 44) if several else (0, 0, 0), strict=True))

    rows = select_rows(read(name, pictures=pictures), None)
    assert sorted(number_of(np.asarray(rows.examples))) == list(range(61))
    check_ids(rows, form, [starts[part] for part in rows.parts] if several else 0)
    if several:
        assert rows.parts.tolist() == [part for part, count in COUNTS.items() for _ in range(count)]
        for part, count in COUNTS.items():
            some = load_rows(name, part, pictures=pictures)
            assert len(some.examples) == count
            check_ids(some, form, starts[part])

    dataset = load(name, pictures=pictures)
    out = {split: dataset.rows(split) for split in COUNTS}
    numbers = [number_of(np.asarray(some.examples)) for some in out.values()]
    assert sorted(np.concatenate(numbers)) == list(range(61))
    for split, some in out.items():
        check_ids(some, form, starts[split])
        whole = load_rows(name, split, pictures=pictures) if several else rows
        np.testing.assert_array_equal(some.examples, whole.examples[some.indices])


# Runs on pictures


@pytest.fixture(scope="module")
def picture_run(small_pictures, tmp_path_factory):
    """Flags of a run on pictures in two classes, of several sizes, one broken."""
    place = tmp_path_factory.mktemp("pictures")
    folder = place / "pictures"
    for number in range(60):
        path = folder / f"{'ab'[number % 2]}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (16, 16 + number % 3)
        image = Image.new("RGB", size, (4 * number, 0, 255))
        image.save(path)
    (folder / "a" / "broken.png").write_bytes(b"no picture")
    config = dataclasses.replace(
        small_pictures, dataset=f"folder:{folder}", run=place / "run", resize=(8, 8),
        skip_unreadable=True, num_steps=4,
    )  # fmt: skip
    with training(config, jax.devices()[:1]) as loop:  # without final numbers and pictures
        assert loop.train() == 0
    return config


@pytest.fixture(scope="module")
def small_pictures(small):
    return dataclasses.replace(small, eval_every=4)


@pytest.fixture
def all_are_many(monkeypatch):
    monkeypatch.setattr(source, "FEW", 0)


def codes_of(config, tmp_path, **flags):
    output = tmp_path / "codes.npz"
    encode(EncodeConfig(config.run, output=output, **flags))
    with np.load(output) as codes:
        return {name: codes[name] for name in codes}


@pytest.mark.slow
def test_codes_of_pictures_have_their_ids_and_classes(picture_run, tmp_path, capsys):
    codes = codes_of(picture_run, tmp_path, dataset=picture_run.dataset)
    assert codes["files"].tolist() == [
        f"{'ab'[number % 2]}/{number:02}.png" for number in [*range(0, 60, 2), *range(1, 60, 2)]
    ]
    assert codes["labels"].tolist() == [name[0] for name in codes["files"]]
    assert codes["index"].tolist() == list(range(60))
    assert "not the run's data" not in capsys.readouterr().out
    own = codes_of(picture_run, tmp_path)
    assert len(own["files"]) == 6
    assert own["files"].tolist() == codes["files"][own["index"]].tolist()
    assert own["labels"].tolist() == codes["labels"][own["index"]].tolist()


@pytest.mark.slow
def test_new_pictures_are_prepared_as_those_of_the_run(picture_run, tmp_path, capsys):
    new = tmp_path / "new"
    new.mkdir()
    Image.new("L", (40, 30), 77).save(new / "grey.png")
    (new / "broken.png").write_bytes(b"")
    codes = codes_of(picture_run, tmp_path, dataset=f"folder:{new}")
    assert codes["files"].tolist() == ["grey.png"]
    output = capsys.readouterr().out
    assert "scaled and cropped to 8 x 8; 1 unreadable picture skipped: broken.png" in output
    evaluate(EvaluateConfig(picture_run.run, dataset=f"folder:{new}", num_samples=2,
                            output=tmp_path / "out"))  # fmt: skip
    assert "1 examples" in capsys.readouterr().out


@pytest.mark.slow
def test_colour_for_a_grey_run_becomes_grey(whole_run, tmp_path, capsys):
    Image.new("RGB", (8, 8), (250, 250, 250)).save(tmp_path / "a.png")
    codes = codes_of(whole_run, tmp_path, dataset=f"folder:{tmp_path}")
    assert codes["mean"].shape == (1, 2)
    assert "1 in colour, converted to grey" in capsys.readouterr().out
    assert not (whole_run.run / "data").exists()


@pytest.mark.slow
def test_flags_of_pictures_may_not_change(picture_run):
    for change, name in (({"resize": (4, 4)}, "--resize is"), ({"skip_unreadable": False}, "--sk")):
        with pytest.raises(UserError, match=name):
            train(dataclasses.replace(picture_run, **change))


@pytest.mark.slow
def test_prepared_pictures_lie_beside_the_run_or_in_data_dir(
    picture_run, all_are_many, tmp_path, capsys
):
    def files(folder):
        return sorted(path.suffix for path in folder.glob("*"))

    def trained(config):
        with training(config, jax.devices()[:1]) as loop:
            assert loop.train() == 0
        return config

    first = trained(dataclasses.replace(picture_run, run=tmp_path / "first"))
    assert files(first.run / "data") == [".json", ".npy"]
    prepared = tmp_path / "prepared"
    second = dataclasses.replace(first, run=tmp_path / "second", data_dir=str(prepared))
    trained(second)
    assert files(prepared / "pictures") == [".json", ".npy"]
    assert not (second.run / "data").exists()
    # The same numbers with the pixels in memory, in the run's folder and in --data-dir.
    rows = [(run.run / "metrics.jsonl").read_text().splitlines()[-1] for run in (first, second)]
    assert '"step": 4' in rows[0]
    one, other, memory = (
        codes_of(config, tmp_path)["mean"] for config in (first, second, picture_run)
    )
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one, memory)

    capsys.readouterr()
    codes_of(first, tmp_path, dataset=first.dataset)
    assert files(first.run / "data") == [".json", ".json", ".npy", ".npy"]
    codes_of(second, tmp_path, dataset=second.dataset)
    assert files(prepared / "pictures") == [".json", ".json", ".npy", ".npy"]
    assert "not the run's data" not in capsys.readouterr().out
    sample(SampleConfig(second.run, num_samples=2, num_examples=2, num_steps=2))
    assert not (second.run / "data").exists()


@pytest.mark.slow
def test_config_json_chooses_no_new_folder_for_prepared_pictures(
    picture_run, all_are_many, tmp_path
):
    """A run's folder may come from anybody."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(picture_run.run, run)
    text = (run / "config.json").read_text()
    outside = tmp_path / "outside"
    (run / "config.json").write_text(text.replace('"data_dir": null', f'"data_dir": "{outside}"'))
    codes_of(dataclasses.replace(picture_run, run=run), tmp_path)
    assert not outside.exists()
    assert len(list((run / "data").iterdir())) == 2


def test_picture_flags_have_no_use_for_other_data(small, tmp_path):
    for change in ({"resize": (8, 8)}, {"skip_unreadable": True}):
        with pytest.raises(UserError, match="are for folder:PATH"):
            train(dataclasses.replace(small, run=tmp_path / "run", **change))
    for sizes in ((0, 8), (8, -1), (8, 20000), (8,)):
        with pytest.raises(UserError, match="--resize must be two numbers from 1 to 16,384"):
            train(dataclasses.replace(small, run=tmp_path / "run", resize=sizes))
    assert not (tmp_path / "run").exists()
