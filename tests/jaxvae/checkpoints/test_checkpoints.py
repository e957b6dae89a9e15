"""Checkpoints: restored items are bit for bit what was saved, or an error is raised."""

import contextlib
import itertools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from jaxvae.checkpoints import Checkpoints, Damaged, digest, load, saved_items
from jaxvae.models.builders import mlp_vae
from jaxvae.models.registry import build
from jaxvae.training.devices import make_mesh, replicate
from jaxvae.training.state import TrainState

RECIPE = {
    "function": "jaxvae.vae:mlp_vae",
    "arguments": {"data_shape": [6], "latent_dim": 2, "hidden": [4], "likelihood": "gaussian"},
}
Z = np.array([0.5, -1.0], np.float32)


@pytest.fixture
def checkpoints(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path / "run" / "checkpoints")) as opened:
        yield opened


def folder(tmp_path):
    return tmp_path / "run" / "checkpoints"


def weights(seed, shape=(3, 2)):
    return {"w": np.random.default_rng(seed).normal(size=shape).astype(np.float32), "none": {}}


def model_params(seed):
    """Parameters of RECIPE's model, drawn by numpy."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(build(RECIPE).init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def save(checkpoints, step, metric=None, about=None, **items):
    items = items or {"params": weights(step)}
    checkpoints.save(step, items, {"vae": RECIPE} if about is None else about, metric)
    checkpoints.wait()


def kept(tmp_path):
    return {int(path.name) for path in folder(tmp_path).iterdir() if path.name.isdigit()}


def assert_same_bits(actual, expected):
    """Check that two trees have the same structure, types of tuples included, and bytes."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert isinstance(one, np.ndarray | np.generic)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == np.asarray(other).tobytes()


# Law


def training_state():
    """Items with NamedTuples, Adam's state, an empty dict and special numbers."""
    params = {"encoder": weights(0), "likelihood": {}}
    params["encoder"]["w"].flat[:5] = [np.inf, -0.0, np.nan, 1e-45, -np.inf]
    with_steps = optax.MultiSteps(optax.adam(1e-3), 2).gradient_transformation()
    return TrainState(
        step=jnp.int32(7),
        params=params,
        opt_state=jax.tree.map(lambda leaf: leaf + 1, with_steps.init(params)),
        average=weights(1),
        squared_error=jnp.float32(0.25),
        skipped=jnp.int32(2),
        skipped_in_row=jnp.int32(1),
    )


def test_saved_items_are_restored_bit_for_bit(checkpoints):
    """Restored into the saved types from targets that have only shapes, and item by item."""
    state = training_state()
    items = {
        "params": state.params,
        "average": state.average,
        "training": state._replace(params=None, average=None),
    }
    save(checkpoints, 7, 1.0, **items)
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, items))
    assert_same_bits(checkpoints.restore(7, shapes), items)
    assert_same_bits(checkpoints.restore(7, items), items)
    for name in items:
        alone = checkpoints.restore(7, {name: shapes[name]})
        assert_same_bits(alone, {name: items[name]})


def test_about_comes_back_with_format_and_digests(checkpoints):
    about = {"vae": RECIPE, "config": {"beta": 0.1, "run": None}, "words": ["a", "b"]}
    save(checkpoints, 1, about=about)
    restored = checkpoints.about(1)
    expected = about | {
        "format": saved_items.FORMAT,
        "digests": {"params": digest(weights(1))},
    }
    assert {name: restored[name] for name in expected} == expected
    assert json.loads(json.dumps(restored)) == restored


def test_state_of_all_devices_is_saved_as_that_of_one(checkpoints):
    tree = weights(0)
    save(checkpoints, 1, params=replicate(tree, make_mesh(jax.devices())))
    assert_same_bits(checkpoints.restore(1, {"params": tree}), {"params": tree})


def test_arrays_may_be_overwritten_while_a_save_is_under_way(checkpoints):
    ours, jaxs = weights(0, (256, 256)), jax.tree.map(jnp.asarray, weights(1, (256, 256)))
    checkpoints.save(1, {"ours": ours, "jaxs": jaxs}, {}, None)
    ours["w"][:] = 0
    jaxs["w"].delete()
    expected = {"ours": weights(0, (256, 256)), "jaxs": weights(1, (256, 256))}
    checkpoints.wait()
    assert_same_bits(checkpoints.restore(1, expected), expected)


@pytest.mark.parametrize(
    "metrics",
    [
        [-3.0, -1.0, -2.0, -4.0, -0.5, -5.0],
        [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0],
        [np.nan, -3.0, np.nan, -1.0, None, -2.0, np.nan, -4.0],
        [None, None, np.nan, None],
    ],
    ids=["best in between", "best first", "NaN and None", "none at all"],
)
def test_the_two_latest_and_the_best_are_retained(checkpoints, tmp_path, metrics):
    """This holds after every save, so that the newest is never deleted."""
    ranked = {}
    for step, metric in enumerate(metrics, 1):
        save(checkpoints, step, metric)
        if metric is not None and not np.isnan(metric):
            ranked[step] = metric
        best = max(ranked, key=ranked.get) if ranked else step
        assert (checkpoints.latest_step(), checkpoints.best_step()) == (step, best)
        assert kept(tmp_path) == {step, step - 1, best} - {0}
        restored = checkpoints.restore(best, {"params": weights(best)})
        assert_same_bits(restored, {"params": weights(best)})


def test_checkpoints_are_found_again_by_another_process_of_the_run(checkpoints, tmp_path):
    save(checkpoints, 1, -1.0)
    save(checkpoints, 2, -2.0)
    with contextlib.closing(Checkpoints(folder(tmp_path))) as again:
        assert (again.latest_step(), again.best_step()) == (2, 1)
        save(again, 3, -3.0)
        save(again, 4, -4.0)
        assert (again.latest_step(), again.best_step()) == (4, 1)
    assert kept(tmp_path) == {1, 3, 4}


def test_a_new_folder_holds_nothing(checkpoints):
    assert (checkpoints.latest_step(), checkpoints.best_step()) == (None, None)


def test_saving_the_latest_again_does_nothing(checkpoints):
    save(checkpoints, 1, params=weights(0))
    save(checkpoints, 1, params=weights(5))
    assert_same_bits(checkpoints.restore(1, {"params": weights(0)}), {"params": weights(0)})


def test_digest_sees_paths_types_shapes_and_bytes():
    trees = [
        {"a": np.zeros(2, np.float32), "b": {}},
        {"c": np.zeros(2, np.float32)},
        {"a": np.zeros(2, np.int32)},
        {"a": np.zeros((2, 1), np.float32)},
        {"a": np.float32([0.0, -0.0])},
        {"a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)},
        [np.zeros(2, np.float32)],
        {},
    ]
    for one, other in itertools.combinations(trees, 2):
        assert digest(one) != digest(other)
    assert digest({"a": jnp.zeros(2)}) == digest(trees[0])
    assert digest({"a": np.zeros((4, 2), np.float32)[::2, 0]}) == digest(trees[0])


def test_bfloat16_is_saved_too(checkpoints):
    """optax.adam(mu_dtype=bfloat16) has such moments."""
    tree = {"a": np.ones(3, ml_dtypes.bfloat16)}
    save(checkpoints, 1, params=tree)
    assert_same_bits(checkpoints.restore(1, {"params": tree}), {"params": tree})


def mean_at(vae, params):
    return np.asarray(vae.decode(params, Z).mean())


@pytest.mark.parametrize("which", ["best", "latest"])
@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("given", ["run", "run/checkpoints"])
def test_a_loaded_model_gives_identical_numbers(checkpoints, tmp_path, which, averaged, given):
    """The parameters are the average if there is one; both folders, run and inner, can be given."""
    for step, metric in [(1, -1.0), (2, -2.0)]:
        average = {"average": model_params(10 + step)} if averaged else {}
        save(checkpoints, step, metric, params=model_params(step), **average)
    vae, params = load(tmp_path / given, which)
    seed = (10 if averaged else 0) + (1 if which == "best" else 2)
    assert_same_bits(params, model_params(seed))
    original = mlp_vae(data_shape=(6,), latent_dim=2, hidden=(4,), likelihood="gaussian")
    np.testing.assert_array_equal(mean_at(vae, params), mean_at(original, model_params(seed)))
    x = np.ones(6, np.float32)
    q, expected = vae.encode(params, x), original.encode(model_params(seed), x)
    np.testing.assert_array_equal(q.loc, expected.loc)
    np.testing.assert_array_equal(q.log_scale, expected.log_scale)


def test_best_is_the_default_and_the_latest_where_nothing_was_ranked(checkpoints, tmp_path):
    save(checkpoints, 1, params=model_params(1))
    save(checkpoints, 2, params=model_params(2))
    assert_same_bits(load(tmp_path / "run")[1], model_params(2))
    save(checkpoints, 3, -1.0, params=model_params(3))
    save(checkpoints, 4, -2.0, params=model_params(4))
    assert_same_bits(load(tmp_path / "run")[1], model_params(3))


def test_paths_may_be_relative_and_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(Checkpoints(Path("run"))) as opened:
        save(opened, 1, params=model_params(1))
    assert_same_bits(load("run")[1], model_params(1))
    assert (tmp_path / "run" / "1").is_dir()


def test_a_recipe_is_a_function_and_its_arguments():
    recipe = {"function": "my:dict", "arguments": {"hidden": [3, 2], "sigma": 0.5}}
    assert build(recipe, {"my:dict": dict}) == {"hidden": (3, 2), "sigma": 0.5}


# Failure


def data_file(tmp_path, step):
    """The file with most of the weights' bytes, for which orbax has no checksum."""
    paths = (folder(tmp_path) / str(step) / "params").rglob("*")
    files = [path for path in paths if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def test_a_changed_byte_never_gives_wrong_weights(checkpoints, tmp_path):
    """orbax detects few changes; the digest detects all others, with a message that helps."""
    params = weights(0, (64, 64))
    save(checkpoints, 1, params=params)
    path = data_file(tmp_path, 1)
    intact, outcomes = path.read_bytes(), []
    for position in range(0, len(intact), len(intact) // 12):
        damaged = bytearray(intact)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            assert_same_bits(checkpoints.restore(1, {"params": params}), {"params": params})
        except ValueError as error:
            outcomes.append(str(error))
    by_digest = [text for text in outcomes if "does not have the digest" in text]
    assert len(by_digest) > 6
    remedy = f"Move the folder {folder(tmp_path) / '1'} away to resume from the checkpoint before"
    assert all("checkpoint 1 is damaged: 'params'" in text for text in by_digest)
    assert all(remedy in text for text in by_digest)
    path.write_bytes(intact)
    assert_same_bits(checkpoints.restore(1, {"params": params}), {"params": params})


def test_a_damaged_item_is_named_and_spares_the_others(checkpoints, tmp_path):
    items = {"params": weights(0, (64, 64)), "average": weights(1)}
    save(checkpoints, 1, **items)
    path = data_file(tmp_path, 1)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0x10
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged: 'params' does not have the digest"):
        checkpoints.restore(1, items)
    alone = checkpoints.restore(1, {"average": items["average"]})
    assert_same_bits(alone, {"average": items["average"]})


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_truncated_file_is_an_error(checkpoints, tmp_path, share):
    params = weights(0, (64, 64))
    save(checkpoints, 1, params=params)
    path = data_file(tmp_path, 1)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(Damaged, match="checkpoint 1 is damaged"):
        checkpoints.restore(1, {"params": params})


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def half_deleted(path):
    for other in list(path.parents[2].rglob("*"))[::2]:
        if other.is_file():
            other.unlink()


@pytest.mark.parametrize("damage", [emptied, flipped, truncated, half_deleted, Path.unlink])
def test_a_damaged_newest_is_set_aside_and_the_one_before_it_used(checkpoints, tmp_path, damage):
    for step in (1, 2, 3):
        save(checkpoints, step, params=weights(step, (64, 64)))
    damage(data_file(tmp_path, 3))
    files = {path.name for path in (folder(tmp_path) / "3").rglob("*")}
    found = checkpoints.restore_newest({"params": weights(0, (64, 64))})
    assert found.step == checkpoints.latest_step() == 2
    assert_same_bits(found.items, {"params": weights(2, (64, 64))})
    aside = tmp_path / "run" / "checkpoints-damaged" / "3"
    assert {path.name for path in aside.rglob("*")} == files
    (line,) = found.set_aside
    assert line.startswith("Checkpoint 3 is damaged: ")
    assert str(aside) in line
    save(checkpoints, 3, params=weights(4, (64, 64)))  # again, as in a resumed run
    damage(data_file(tmp_path, 3))
    assert checkpoints.restore_newest({"params": weights(0, (64, 64))}).step == 2
    assert (tmp_path / "run" / "checkpoints-damaged" / "3-1").is_dir()


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b"\xff\x00"], ids=repr)
def test_any_single_file_may_be_damaged_before_a_run_resumes(checkpoints, tmp_path, content):
    """Each file is damaged in turn; the restored bits are those of a saved checkpoint."""
    for step in (1, 2):
        save(checkpoints, step, params=weights(step))
    checkpoints.close()
    newest, right = folder(tmp_path) / "2", tmp_path / "right"
    shutil.copytree(newest, right)
    found = set()
    for path in sorted(path for path in right.rglob("*") if path.is_file()):
        shutil.rmtree(newest, ignore_errors=True)
        shutil.copytree(right, newest)
        damaged = newest / path.relative_to(right)
        damaged.unlink() if content is None else damaged.write_bytes(content)
        with contextlib.closing(Checkpoints(folder(tmp_path))) as again:
            restored = again.restore_newest({"params": weights(0)})
        assert_same_bits(restored.items, {"params": weights(restored.step)})
        assert len(restored.set_aside) == (restored.step == 1)
        found.add(restored.step)
    assert 1 in found


def test_metrics_that_cannot_be_read_are_damage(checkpoints, tmp_path):
    for step in (1, 2):
        save(checkpoints, step, params=weights(step))
    checkpoints.close()
    for step in (2, 1):
        (folder(tmp_path) / f"{step}" / "metrics" / "metrics").write_bytes(b"")
        with pytest.raises(Damaged, match="checkpoint 2 is damaged: its metrics cannot be read"):
            Checkpoints(folder(tmp_path), read_only=True)
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole: .* 2 .* 1 .*from a copy"):
        Checkpoints(folder(tmp_path))
    assert kept(tmp_path) == {1, 2}


def test_checkpoints_that_were_set_aside_move_back_if_all_are_damaged(checkpoints, tmp_path):
    for step in (1, 2):
        save(checkpoints, step, params=weights(step, (64, 64)))
    checkpoints.close()
    (folder(tmp_path) / "2" / "metrics" / "metrics").write_bytes(b"")
    flipped(data_file(tmp_path, 1))
    with (
        contextlib.closing(Checkpoints(folder(tmp_path))) as again,
        pytest.raises(ValueError, match=r"no checkpoint in .* is whole: checkpoint 2 .* 1 is"),
    ):
        again.restore_newest({"params": weights(0, (64, 64))})
    assert kept(tmp_path) == {1, 2}


def test_a_file_without_read_permission_is_not_damage(checkpoints, tmp_path, monkeypatch):
    save(checkpoints, 1)
    save(checkpoints, 2)

    def reject(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", reject)
    with pytest.raises(PermissionError):
        Checkpoints(folder(tmp_path))
    assert kept(tmp_path) == {1, 2}


def test_a_flipped_bit_of_the_description_is_detected(checkpoints, tmp_path):
    save(checkpoints, 1, about={"vae": RECIPE, "step": 1, "words": "of 100"})
    right = checkpoints.about(1)
    path = folder(tmp_path) / "1" / "about" / "metadata"
    content = path.read_bytes()
    own_name = content.index(b'"digest":')
    for i in range(0, len(content), 5):
        if own_name <= i < own_name + 8:
            continue  # without the digest the description is not checked, as in the first release
        path.write_bytes(content[:i] + bytes([content[i] ^ 2]) + content[i + 1 :])
        with pytest.raises(Damaged, match="checkpoint 1 is damaged"):
            checkpoints.about(1)
    path.write_bytes(content)
    assert checkpoints.about(1) == right


def test_no_checkpoint_is_moved_if_all_are_damaged(checkpoints, tmp_path):
    for step in (1, 2):
        save(checkpoints, step, params=weights(step, (64, 64)))
        flipped(data_file(tmp_path, step))
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole: .* 2 .* 1 .*from a copy"):
        checkpoints.restore_newest({"params": weights(0, (64, 64))})
    assert kept(tmp_path) == {1, 2}


def test_restoring_from_an_empty_folder_gives_none(checkpoints):
    assert checkpoints.restore_newest({"params": weights(0)}) is None


@pytest.mark.parametrize(
    "target",
    [
        {"w": np.zeros((2, 3), np.float32)},
        {"w": np.zeros((3, 2), np.float16)},
        {"w": np.zeros((3, 2), np.float32), "extra": np.zeros(2)},
    ],
    ids=["shape", "type", "leaves"],
)
def test_a_target_that_is_not_what_was_saved_is_rejected(checkpoints, target):
    """The message names the leaf, and does not advise removing the undamaged checkpoint."""
    save(checkpoints, 1, params={"w": weights(1)["w"]})
    with pytest.raises(ValueError, match=r"(?s)^(?!.*Remove the folder).*\b(w|extra)\b"):
        checkpoints.restore(1, {"params": target})


def test_an_older_step_is_rejected(checkpoints):
    save(checkpoints, 5)
    with pytest.raises(ValueError, match="step 4 is not newer than the latest, 5"):
        save(checkpoints, 4)


def test_a_run_that_is_not_there_is_rejected_and_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run at .*elsewhere: give the folder"):
        load(tmp_path / "elsewhere")
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_checkpoint_is_rejected(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for given in ("run", "run/checkpoints"):
        with pytest.raises(FileNotFoundError, match="checkpoints holds no checkpoint yet"):
            load(tmp_path / given)


def test_a_format_of_the_future_is_rejected(checkpoints, tmp_path, monkeypatch):
    newer = saved_items.FORMAT + 1
    monkeypatch.setattr(saved_items, "FORMAT", newer)
    save(checkpoints, 1, params=model_params(1))
    monkeypatch.undo()
    with pytest.raises(ValueError, match=rf"format {newer} is newer .*\({newer - 1}\). Upgrade"):
        load(tmp_path / "run")


@pytest.mark.parametrize(
    "function", ["nowhere.at_all:mlp", "jaxvae.vae:nothing", "jaxvae.models.vae", ""]
)
def test_a_function_that_the_caller_does_not_give_is_rejected(checkpoints, tmp_path, function):
    recipe = {"function": function, "arguments": {}}
    save(checkpoints, 1, about={"vae": recipe}, params=model_params(1))
    with pytest.raises(ValueError, match=rf"built by '{function}', which .* load\(path, models="):
        load(tmp_path / "run")
