"""Hostile run folders: nothing in them is run, leads outside or fills the memory."""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from experiments import data as datasets
from experiments.evaluate import EvaluateConfig, evaluate
from experiments.flags.command import UserError, as_user_errors
from experiments.flags.saved_flags import read
from experiments.record.files import write_text
from experiments.record.metrics import LONGEST_LINE, read_metrics
from experiments.replay import ReplayConfig, replay
from experiments.run.consent import check_prepared, consented
from experiments.run.lock import RunLock
from experiments.run.own_files import FOLDERS, NAMES, require_own_files
from experiments.sample import SampleConfig, sample
from experiments.show.saved_results import read_results
from experiments.torture.hostile import CATEGORIES, hostile_runs, why_lost
from experiments.torture.hostile import Watch as Seen
from experiments.torture.hostile_checkpoints import change_abouts, functions
from experiments.torture.hostile_values import MODULE, SCRIPT, Place
from experiments.torture.rejection import Ending, contents
from experiments.train import train
from jaxvae.checkpoints import Checkpoints, load
from jaxvae.checkpoints.contained import read_json, require_contained
from jaxvae.models.builders import mlp_vae
from jaxvae.models.registry import build, check_sizes

SHAPE = [8, 8, 1]
BEYOND_MEMORY = 10**9


@pytest.fixture
def place(whole_run, tmp_path, monkeypatch):
    """Copy of a run, a folder beside it, and a module that leaves a mark when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    place = Place(tmp_path / "run", tmp_path / "outside", tmp_path / "mark")
    shutil.copytree(whole_run.run, place.run)
    place.outside.mkdir()
    (tmp_path / f"{MODULE}.py").write_text(
        f"open({str(place.mark)!r}, 'w').close()\n"
        "import jaxvae\n"
        "def make(**arguments):\n    return jaxvae.mlp_vae(**arguments)\n"
    )
    sys.modules.pop(MODULE, None)
    yield place
    sys.modules.pop(MODULE, None)


@pytest.fixture
def config(place, whole_run):
    return dataclasses.replace(whole_run, run=place.run)


def set_recipe(place, function, arguments):
    """Replace the recipe in every checkpoint, with a valid digest."""
    recipe = {"function": function, "arguments": arguments}
    change_abouts(place, lambda about: about.update(vae=recipe), signed=True)


# code


def names_of_functions():
    return list(functions(Place(Path(), Path(), Path())))


@pytest.mark.parametrize("name", names_of_functions())
def test_load_rejects_function_outside_registry(name, place):
    set_recipe(place, name, functions(place)[name])
    with pytest.raises(
        ValueError, match=r"which is not one of mlp_vae, conv_vae, resnet_vae and is"
    ):
        load(place.run)
    assert not place.mark.exists()
    assert MODULE not in sys.modules


def test_commands_reject_function_outside_registry(place, config):
    function = f"{MODULE}:make"
    set_recipe(place, function, {"data_shape": SHAPE})
    with pytest.raises(UserError, match=rf"'{function}', .* or --model={function} on the command"):
        evaluate(EvaluateConfig(place.run, num_samples=2))
    path = place.run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": function}))
    for command in (
        lambda: evaluate(EvaluateConfig(place.run, num_samples=2)),
        lambda: sample(SampleConfig(place.run)),
        lambda: replay(ReplayConfig(place.run, 5)),
    ):
        with pytest.raises(UserError, match=rf"not imported merely .* add --model='{function}'"):
            command()
    with pytest.raises(UserError, match=rf"--model is mlp now and {function} there"):
        train(config)
    assert not place.mark.exists()


def test_load_builds_a_function_only_under_the_exact_name_that_is_passed(place):
    about = json.loads(next(place.run.glob("checkpoints/*/about/metadata")).read_text())
    set_recipe(place, "my.models:make", about["vae"]["arguments"])
    vae, _ = load(place.run, models={"my.models:make": mlp_vae})
    assert vae.encode is not None
    with pytest.raises(ValueError, match=r"built by 'my\.models:make', which is not"):
        load(place.run, models={"my.models:other": mlp_vae})


def test_consent_covers_only_the_function_of_the_run(place):
    function = f"{MODULE}:make"
    assert consented(None, "mlp", place.run) == {}
    assert consented("mlp", "mlp", place.run) == {}
    assert consented("jaxvae.vae:mlp_vae", "mlp", place.run) == {}
    with pytest.raises(ValueError, match="trained with, 'mlp', got conv"):
        consented("conv", "mlp", place.run)
    with pytest.raises(ValueError, match=f"trained with, 'mlp', got {function}"):
        consented(function, "mlp", place.run)
    with pytest.raises(ValueError, match="not imported merely because a folder names it"):
        consented(None, function, place.run)
    assert not place.mark.exists()
    assert list(consented(function, function, place.run)) == [function]
    assert place.mark.exists()  # the trap works


def test_prepared_data_with_a_class_of_another_package_are_not_imported(place):
    folder = place.outside / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    names = json.dumps({"features": [{"pythonClassName": f"{MODULE}.Feature"}]})
    for content in (names, names.replace("N", "\\u004e"), names.replace("pythonClassName", "type")):
        (folder / "features.json").write_text(content)
        with pytest.raises(ValueError, match=f"must have features of tensor.*'{MODULE}.Feature'"):
            datasets.load("tfds:tiny", data_dir=str(place.outside))
    with pytest.raises(ValueError, match=r"must name one data set.*got 'tiny/\.\.'"):
        datasets.load("tfds:tiny/..", data_dir=str(place.outside))
    assert not place.mark.exists()


def test_nothing_is_downloaded_to_a_folder_that_config_json_names(config, place):
    stored = dataclasses.replace(config, dataset="mnist", data_dir=str(place.outside))
    with pytest.raises(FileNotFoundError, match=r"mnist is not prepared in .*outside"):
        check_prepared(stored)
    with pytest.raises(FileNotFoundError, match="kmnist is not prepared"):
        check_prepared(stored, "kmnist")
    check_prepared(dataclasses.replace(stored, data_dir=None))
    check_prepared(stored, "npz:other.npz")
    assert not any(place.outside.iterdir())


# recipes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be an integer from 1"),
        ({"latent_dim": True}, "latent_dim must be an integer"),
        ({"latent_dim": 2.0}, "latent_dim must be an integer"),
        ({"latent_dim": 2**31}, "latent_dim must be an integer"),
        ({"latent_dim": float("nan")}, "latent_dim must be an integer"),
        ({"hidden": [4, -1]}, "hidden must be a list"),
        ({"hidden": [4, True]}, "hidden must be a list"),
        ({"hidden": None}, "hidden must be a list"),
        ({"hidden": [1] * 100_000}, "hidden must be a list of at most 256"),
        ({"data_shape": [-8, 8, 1]}, "data_shape must be a list"),
        ({"data_shape": {}}, "data_shape must be a list"),
        ({"sigma": float("inf")}, "sigma must be a positive number"),
        ({"sigma": float("nan")}, "sigma must be a positive number"),
        ({"sigma": 10**400}, "sigma must be a positive number"),
        ({"sigma": True}, "sigma must be a positive number"),
        ({"sigma": "x" * 10_000}, "sigma must be a positive number, learned, "),
        ({"posterior": []}, "posterior must be text"),
        ({"posterior": "os.system"}, "posterior must be one of"),
        ({"data_mean": [1]}, "a recipe does not hold data_mean"),
        ({"more": 1}, "arguments do not fit mlp_vae: .*'more'"),
        ({"self": 1}, "arguments do not fit mlp_vae"),
    ],
)
def test_build_rejects_implausible_arguments_of_a_model(arguments, message):
    recipe = {"function": "mlp_vae", "arguments": {"data_shape": SHAPE} | arguments}
    with pytest.raises(ValueError, match=message) as error:
        build(recipe)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("recipe", [None, [], "mlp_vae", {}, {"function": "mlp_vae"},
                                    {"function": ["mlp_vae"], "arguments": {}},
                                    {"function": "mlp_vae", "arguments": []}])  # fmt: skip
def test_build_rejects_an_invalid_recipe(recipe):
    with pytest.raises(ValueError, match="a recipe must be"):
        build(recipe)


@pytest.mark.parametrize("name", ["data_mean", "pseudo_inputs"])
def test_load_rejects_a_recipe_with_arrays_for_the_start_of_training(name, place):
    set_recipe(place, "mlp_vae", {"data_shape": SHAPE, "latent_dim": 2, "hidden": [4], name: ""})
    with pytest.raises(ValueError, match=f"mlp_vae: a recipe does not hold {name}, .* from a copy"):
        load(place.run)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"latent_dim": BEYOND_MEMORY}, "latent_dim"),
        ({"hidden": [4, 10**8]}, "hidden"),
        ({"data_shape": [10**6] * 3}, "data_shape"),
        ({"posterior": "full_covariance", "latent_dim": 10**5}, "latent_dim"),
        ({"posterior": "categorical", "num_categories": 10**8}, "num_categories"),
        ({"prior": "mixture", "num_components": 10**8}, "num_components"),
    ],
)
def test_load_rejects_sizes_that_differ_from_the_checkpoint(arguments, name, place):
    recipe = {"function": "mlp_vae", "arguments": {"data_shape": SHAPE} | arguments}
    with pytest.raises(ValueError, match=f"the recipe's {name}=.* and the checkpoint holds 9,999"):
        check_sizes(recipe, 9_999)
    set_recipe(place, **recipe)
    with pytest.raises(ValueError, match=f"the recipe's {name}=.* and the checkpoint holds "):
        load(place.run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": [10**8]}, "the recipe's channels="),
        ({"latent_channels": 10**8}, "the recipe's latent_channels="),
        ({"data_shape": [8, 8, 10**8]}, "the recipe's data_shape="),
        ({"latent_dim": 10**8}, "the recipe's latent_dim="),
        ({"rematerialize": "yes"}, "rematerialize must be true or false"),
        ({"blocks": 0}, "blocks must be an integer from 1"),
    ],
)
def test_sizes_of_a_residual_network_that_differ_from_the_checkpoint_are_rejected(
    arguments, message
):
    recipe = {"function": "resnet_vae", "arguments": {"data_shape": [8, 8, 1]} | arguments}
    with pytest.raises(ValueError, match=message):
        check_sizes(recipe, 9_999)


def test_sizes_of_small_models_are_plausible():
    check_sizes({"function": "resnet_vae", "arguments": {"data_shape": [1024, 1024, 3]}}, 10)
    for posterior in ("gaussian", "full_covariance", "categorical", "iaf"):
        arguments = {"data_shape": [1], "latent_dim": 1, "hidden": [1], "posterior": posterior}
        check_sizes({"function": "mlp_vae", "arguments": arguments}, 10)


def test_load_rejects_parameters_larger_than_the_files(place):
    def enlarge(about):
        about["vae"]["arguments"] |= {"latent_dim": BEYOND_MEMORY}
        about["leaves"]["average"] = {"['w']": f"float32 [{BEYOND_MEMORY}, 1000]"}

    change_abouts(place, enlarge, signed=True)
    with pytest.raises(ValueError, match=r"has 1,000,000,000,000 numbers in only .* bytes"):
        load(place.run)


def test_replay_rejects_a_config_of_another_size_than_the_checkpoint(place):
    path = place.run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden": [20_000, 20_000]}))
    with pytest.raises(UserError, match=r"has hidden=\[20000, 20000\] in its config.json and"):
        replay(ReplayConfig(place.run, 5))


# checkpoints


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("shape", [10**9, 10**9], r"its arrays have .* bytes, not"),
        ("shape", [2**62], "checkpoint .* is damaged"),
        ("chunks", [40_000, 20_000], "a part of an array is larger than the array"),
        ("shape", [-1, 2], "checkpoint .* is damaged"),
        ("dtype", "|O", "checkpoint .* is damaged"),
    ],
)
def test_absurd_shapes_of_stored_arrays_are_rejected_without_allocating(
    field, value, message, place
):
    """orbax aborts the process if it cannot allocate the shape that a file names."""
    for item in place.run.glob("checkpoints/*/average"):
        store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{item}/"}).result()
        key = b"decoder.params.Dense_1.kernel/.zarray"
        about = json.loads(store.read(key).result().value)
        store.write(key, json.dumps(about | {field: value}).encode()).result()
    with pytest.raises(ValueError, match=message):
        load(place.run)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", 7),
        ("step", "60"),
        ("format", "1"),
        ("format", True),
        ("format", None),
        ("digests", []),
        ("digests", {"average": 3}),
        ("leaves", {"average": {"w": 3}}),
        ("leaves", {"average": {"w": "float32 3, 4"}}),
        ("vae", None),
    ],
)
def test_load_rejects_a_description_with_values_of_other_types(name, value, place):
    change_abouts(place, lambda about: about.update({name: value}), signed=True)
    with pytest.raises(ValueError, match=r"damaged|must be|has no format") as error:
        load(place.run)
    assert "Error" not in str(error.value)


def test_load_rejects_a_description_with_a_name_twice(place):
    for path in place.run.glob("checkpoints/*/about/metadata"):
        path.write_text(path.read_text().rstrip()[:-1] + ', "step": 60}')
    with pytest.raises(ValueError, match="is damaged: it has 'step' twice"):
        load(place.run)


def test_handlers_that_a_checkpoint_names_are_not_imported(place):
    for path in place.run.glob("checkpoints/*/_CHECKPOINT_METADATA"):
        values = json.loads(path.read_text())
        values["item_handlers"] = dict.fromkeys(values["item_handlers"], f"{MODULE}.Handler")
        path.write_text(json.dumps(values))
    load(place.run)
    assert not place.mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        *("[" * 100_000, '{"a":' * 100_000, '{"a": 1, "a": 2}', '{"item_handlers": "os.system"}'),
        *('{"custom_metadata": []}', '{"init_timestamp_nsecs": "x"}'),
    ],
)
def test_unreadable_metadata_is_reported_as_damage(content, place):
    steps = sorted(path for path in (place.run / "checkpoints").iterdir())
    (steps[-1] / "_CHECKPOINT_METADATA").write_text(content)
    with pytest.raises(ValueError, match="its _CHECKPOINT_METADATA cannot be read"):
        load(place.run)


# files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "a": 1}', "it has 'a' twice"),
        (b'{"b": {"a": 1, "a": 1}}', "it has 'a' twice"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"a":' * 100_000, "it is nested too deeply"),
        (b"[]", "its outermost value is not an object"),
        (b"\xff{}", "codec can't decode"),
        (b'{"a": ' + b"9" * 5000 + b"}", "4300"),
        (b" " * 101, "it has more than 100 bytes"),
    ],
)
def test_read_json_rejects_invalid_files(content, message, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json(path, 100 if len(content) == 101 else 2**24)


def test_a_file_of_gigabytes_is_not_read(place):
    for name in ("config.json", "results.json"):
        os.truncate(place.run / name, 2**36)
    with pytest.raises(ValueError, match="reading it gave: it has more than 1,048,576 bytes"):
        read(place.run / "config.json")
    assert read_results(place.run / "results.json") == {}
    path = place.run / "metrics.jsonl"
    os.truncate(path, 2**36)
    with pytest.raises(ValueError, match=r"a line must be .*, line \d+ of"):
        read_metrics(path)
    path.write_bytes(b" " * (LONGEST_LINE + 2))
    with pytest.raises(ValueError, match="line 1 of"):
        read_metrics(path)


def test_a_link_may_point_only_inside_its_folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").touch()
    (folder / "link").symlink_to("deep")
    (folder / "deep" / "back").symlink_to("..")
    (tmp_path / "by").symlink_to(folder)
    require_contained(tmp_path / "by")
    require_contained(folder / "missing")
    for target, message in (("..", "outside"), ("/etc", "outside"), ("gone", "link to nothing"),
                            ("bad", "link to nothing")):  # fmt: skip
        bad = folder / "deep" / "bad"
        bad.symlink_to(target if target != ".." else "../..")
        with pytest.raises(ValueError, match=message):
            require_contained(folder)
        with pytest.raises(ValueError, match=message):
            require_contained(tmp_path / "by", ["link"])
        require_contained(folder, ["deep/file", "missing"])
        bad.unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(ValueError, match="pipe must be a file or a folder"):
        require_contained(folder)


@pytest.mark.parametrize("name", [*NAMES, "evaluations/test-best-2.npz", "pictures/samples.png"])
def test_no_command_follows_a_link_out_of_the_run(name, place, config):
    path = place.run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    target = place.outside / path.name
    if "." in path.name:
        target.write_text("precious")
    else:
        shutil.copytree(place.run, target)
    path.symlink_to(target)
    before = contents(place.run.parent)
    for command in (
        lambda: train(config),
        lambda: evaluate(EvaluateConfig(place.run, num_samples=2)),
        lambda: sample(SampleConfig(place.run)),
        lambda: replay(ReplayConfig(place.run, 5)),
    ):
        with pytest.raises(UserError, match=r"is a link to .*outside"):
            command()
    assert contents(place.run.parent) == before


@pytest.mark.parametrize("name", ["report.html", ".lock", "results.json", "pictures"])
def test_a_folder_in_place_of_a_file_is_rejected_before_training(name, place, config):
    path = place.run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.touch() if name in FOLDERS else path.mkdir()
    before = contents(place.run)
    with pytest.raises(
        UserError, match=rf"{name} must be a (file|folder); it is a (file|folder)\."
    ):
        train(dataclasses.replace(config, num_steps=80))
    assert contents(place.run) == before


def test_a_run_folder_may_be_a_link_that_the_user_names(place):
    (place.outside / "by").symlink_to(place.run)
    require_own_files(place.outside / "by")
    load(place.outside / "by")
    with contextlib.closing(Checkpoints(place.outside / "by/checkpoints", read_only=True)) as found:
        assert found.latest_step() == 60


def test_writing_replaces_an_existing_link(tmp_path):
    (tmp_path / "precious").write_text("precious")
    for name in ("a.json", ".a.json.part"):
        (tmp_path / name).symlink_to("precious")
    write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "a.json").read_text() == "new"
    assert not (tmp_path / "a.json").is_symlink()


# what is shown


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": None},
        {"checkpoint": {"step": "x", "which": "best"}},
        {"test": []},
        {"test": {"num_examples": 10**5000}},
        {"test": {"num_examples": 3, "elbo": {"value": SCRIPT, "unit": "nats"}}},
        {"test": {"num_examples": 3, "elbo": {"value": 10**400, "unit": "nats"}}},
        {"test": {"num_examples": 3, "elbo": {"value": 1.0, "unit": 3}}},
        {"versions": [SCRIPT]},
        {"command": 3},
        {"timing": {"seconds": SCRIPT}},
        {"shown": {"split": "test", "extremes": {"least_likely": [{"index": 1, "score": SCRIPT}]}}},
    ],
)
def test_results_that_cannot_be_shown_are_ignored(change, place):
    path = place.run / "results.json"
    whole = read_results(path)
    assert "test" in whole
    sys.set_int_max_str_digits(0)
    path.write_text(json.dumps(whole | change))
    sys.set_int_max_str_digits(4300)
    assert read_results(path) == {}


def test_a_script_is_escaped_in_the_report(place, config):
    path = place.run / "results.json"
    results = json.loads(path.read_text())
    results["test"]["elbo"]["unit"] = results["device"] = results["command"] = SCRIPT
    results["test"][SCRIPT] = {"value": 1.0, "unit": SCRIPT}
    results["versions"][SCRIPT] = results["checkpoint"]["which"] = SCRIPT
    results["shown"]["extremes"]["least_likely"][0]["file"] = SCRIPT
    results["shown"]["latents"]["ranked_by"] = SCRIPT
    path.write_text(json.dumps(results))
    shutil.copy(place.run / "pictures/samples.png", place.run / "pictures" / "<script>x.png")
    assert train(config) == 0
    page = (place.run / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert" in page


@pytest.mark.parametrize("value", ["x", True, [], {}, 10**400, 1e301, float("nan")])
def test_a_row_with_a_value_that_is_no_number_is_invalid(value, tmp_path):
    path = tmp_path / "m.jsonl"
    rows = [{"step": 1, "split": "train", "elbo": -1.0, "kl": value}, {"step": 2, "split": "x"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="line 1 of"):
        read_metrics(path)


def test_control_characters_are_escaped():
    with pytest.raises(UserError) as raised, as_user_errors():
        raise ValueError("no \x1b]0;owned\x07 name \udcff \u202e")
    assert str(raised.value) == r"no \x1b]0;owned\x07 name \udcff \u202e"


def test_only_the_start_of_a_lock_is_read(tmp_path):
    (tmp_path / ".lock").write_text("process 3 on \x1b[2J\n" + "y" * 10**6)
    lock = RunLock(tmp_path)
    assert len(lock.cut_short) < 20_000
    assert lock.cut_short.isprintable()
    lock.close()


# data


def test_an_archive_that_would_fill_the_memory_is_rejected(tmp_path, monkeypatch):
    file = io.BytesIO()
    np.save(file, np.zeros((4000, 64), np.uint8))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", file.getvalue())
    assert datasets.load(f"npz:{tmp_path}/a.npz").train.shape[1:] == (64,)
    monkeypatch.setattr("experiments.data.arrays.LARGEST_IN_ANY_CASE", 10_000)
    with pytest.raises(ValueError, match=r"its [\d,]+ bytes become 256,128 when"):
        datasets.load(f"npz:{tmp_path}/a.npz")


# torture


@pytest.mark.long
def test_hostile_runs_of_each_category_are_survived(tmp_path):
    outcome = hostile_runs(tmp_path, len(CATEGORIES), seed=3)
    assert outcome.survived == outcome.tries == len(CATEGORIES), outcome.note


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"code": 0, "errors": ""}, ""),
        ({"errors": "Traceback (most recent call last)"}, "a traceback"),
        ({"code": 1}, "exit code 1"),
        ({"code": -6}, "exit code -6"),
        ({"errors": "error: a\nerror: b"}, "not one line"),
        ({"errors": ""}, "not one line"),
        ({"errors": "error: \x1b[2J."}, "control characters"),
        ({"seconds": 601.0}, "ended after 601 s"),
        ({"processor_seconds": 61.0}, "ended after 1 s"),
        ({"opened": ["/outside/a"]}, "it opened or started /outside/a"),
        ({"peak_bytes": 2**31 + 1}, "2,048 MiB of memory"),
        ({"after": {"outside/a": "folder"}}, "outside/a changed outside the run"),
        ({"mark": True}, "it ran code"),
        ({"report": SCRIPT}, "a script in the report"),
    ],
)
def test_the_judge_detects_what_a_hostile_run_did(change, why, tmp_path):
    place = Place(tmp_path, tmp_path / "outside", tmp_path / "mark")
    if change.get("mark"):
        place.mark.touch()
    (tmp_path / "report.html").write_text(change.get("report", ""))
    right = Ending(2, "", "error: --run must be a folder.\n", 1.0, 1.0)
    of_ending = {name: value for name, value in change.items() if name in Ending._fields}
    watched = Seen(change.get("opened", []), change.get("peak_bytes", 2**30))
    found = why_lost(place, right._replace(**of_ending), watched, {}, change.get("after", {}))
    assert why in found
    assert bool(found) == bool(why)
