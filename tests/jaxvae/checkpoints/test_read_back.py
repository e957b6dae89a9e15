"""Reading back: a run stops early if its checkpoints cannot be saved or read."""

import contextlib
import dataclasses
import errno
import os
import weakref

import jax
import numpy as np
import pytest

from experiments.flags.command import UserError
from experiments.record.metrics import read_metrics
from experiments.record.recorder import Recorder
from experiments.run.saving import Saving, advice
from experiments.torture.accidents import no_file_above
from experiments.train import train
from jaxvae.checkpoints import Checkpoints, SaveFailed, orbax_manager
from jaxvae.checkpoints import checkpoints as checkpoints_module
from jaxvae.checkpoints.manifest import REMEDIES, Unusable, check_leaves, leaves
from jaxvae.checkpoints.saved_items import check_readable
from jaxvae.training.state import TrainState

# Objects that orbax leaves behind after a failed save are collected later.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
PARAMS = {"w": np.random.default_rng(0).normal(size=(300, 300))}


@pytest.fixture
def shown_to_orbax(monkeypatch):
    """Pass paths to orbax unchanged, so that below a "[" it saves unreadable checkpoints."""
    monkeypatch.setattr(orbax_manager, "plain_path", contextlib.nullcontext)


@pytest.fixture
def read_steps(monkeypatch):
    """The steps that are read back."""
    steps = []

    def counted(folder, step, targets):
        steps.append(step)
        check_readable(folder, step, targets)

    monkeypatch.setattr(checkpoints_module, "check_readable", counted)
    return steps


def save(checkpoints, step):
    problem = checkpoints.save(step, {"params": PARAMS}, {}, 1.0)
    checkpoints.wait()
    return problem


# Law


def test_the_first_checkpoint_of_each_start_is_read_back(tmp_path, read_steps):
    for first in (1, 4):
        with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
            for step in range(first, first + 3):
                save(checkpoints, step)
    assert read_steps == [1, 4]


def test_reading_back_starts_after_the_copies_are_freed(tmp_path, monkeypatch):
    alive = []

    def copied(items):
        array = np.array(items["params"]["w"])
        alive.append(weakref.ref(array))
        return {"params": {"w": array}}

    def check(folder, step, targets):
        assert [reference() for reference in alive] == [None]
        check_readable(folder, step, targets)

    monkeypatch.setattr(checkpoints_module, "copied", copied)
    monkeypatch.setattr(checkpoints_module, "check_readable", check)
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        save(checkpoints, 1)


def test_without_room_the_first_checkpoint_that_is_written_is_read_back(tmp_path, read_steps):
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        with no_file_above(100_000):
            for step in (1, 2):
                with pytest.raises(SaveFailed, match="File too large"):
                    save(checkpoints, step)
        save(checkpoints, 3)
        save(checkpoints, 4)
    assert read_steps == [3]


def test_a_row_that_cannot_be_written_is_one_sentence(tmp_path):
    recorder = Recorder(tmp_path, -1)
    with no_file_above(10):
        recorder.write(1, "train", {"elbo": 1.0}, {})
        assert not recorder.flush()
    assert str(recorder.problem) == "metrics.jsonl could not be written: File too large."
    assert advice(recorder.problem, "x").startswith("Make room")
    assert recorder.flush()
    recorder.close()


def test_every_process_raises_for_a_checkpoint_that_cannot_be_read():
    """A collective surrounds the save, whether or not a process has rows to write."""

    class Unread:
        def save(self, *arguments):
            raise Unusable("checkpoint 1 cannot be read back.")

    class Silent:
        def flush(self):
            return True

    saving = Saving(Unread(), Silent())
    state = TrainState(np.int32(1), {}, (), None, np.float32(0), np.int32(0), np.int32(0))
    with pytest.raises(UserError, match="cannot be read back"):
        saving.save(state, {"step": 1}, None)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "Make room; the run goes on."),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
         "Make room, or ask for a larger quota; the run goes on."),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/x"),
         "Make the folder writable; the run goes on."),
        (ValueError("Error writing /x: Read-only file system [os_error_code='30']"),
         "Make the file system writable; the run goes on."),
        (ValueError("Found empty item"), "The run goes on."),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_the_advice_fits_the_reason(error, line):
    assert advice(error, "the run goes on.") == line


def test_known_reasons_are_the_texts_of_system_errors():
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES)
    assert [os.strerror(code) for code in codes] == list(REMEDIES)


# Failure


@pytest.mark.usefixtures("shown_to_orbax")
def test_a_first_checkpoint_that_cannot_be_read_is_an_error(tmp_path):
    folder = tmp_path / "[x]"
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        checkpoints.save(1, {"params": PARAMS}, {}, 1.0)
        with pytest.raises(Unusable) as error:
            checkpoints.save(2, {"params": PARAMS}, {}, 1.0)
    text = str(error.value)
    assert text.startswith(f"checkpoint 1 was saved in {folder} but cannot be read back: ")
    assert text.endswith(" does not exist. Use a folder on another file system.")
    assert "\n" not in text


def test_content_that_changes_on_its_way_to_the_disk_is_an_error(tmp_path, monkeypatch):
    written = checkpoints_module.described

    def other(items, about):
        about = written(items, about)
        items["params"]["w"][0, 0] += 1
        return about

    monkeypatch.setattr(checkpoints_module, "described", other)
    with (
        contextlib.closing(Checkpoints(tmp_path)) as checkpoints,
        pytest.raises(Unusable, match="'params' does not have the digest it was saved with"),
    ):
        save(checkpoints, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("shown_to_orbax")
def test_training_stops_at_the_evaluation_after_it(small, tmp_path):
    config = dataclasses.replace(small, run=tmp_path / "[x]", num_steps=10_000)
    with pytest.raises(UserError, match=r"checkpoint 25 was saved in .* but cannot be read back: "):
        train(config)
    assert max(row["step"] for row in read_metrics(config.run / "metrics.jsonl")) <= 50


@pytest.mark.usefixtures("shown_to_orbax")
def test_training_that_ends_before_another_evaluation_reports_it(small, tmp_path, capsys):
    config = dataclasses.replace(small, run=tmp_path / "[x]", num_steps=20)
    assert train(config) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: checkpoint 20 was saved in ")
    assert line.endswith("Use a folder on another file system.")


def test_a_first_save_that_fails_for_good_is_an_error_and_a_later_one_is_not(tmp_path, monkeypatch):
    """Permissions of a folder may change during a run; the next save may succeed."""

    def rejected(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "x"))

    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(type(checkpoints._folder.manager), "save", rejected)
            with pytest.raises(Unusable, match=r"saved in .*: Permission denied\. Make the folder"):
                save(checkpoints, 1)
        save(checkpoints, 2)
        with monkeypatch.context() as patch:
            patch.setattr(type(checkpoints._folder.manager), "save", rejected)
            with pytest.raises(SaveFailed, match=r"could not be saved in .*: Permission denied\."):
                save(checkpoints, 3)
        save(checkpoints, 4)
        assert checkpoints.steps() == [2, 4]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"params": {"none": {}}}, "params must have at least one array of numbers, got none"),
        ({"params": {"a": PARAMS["w"], "f": print}}, r"params\['f'\] must be .* got builtin"),
        ({"params": {"name": "x"}}, r"params\['name'\] must be an array of numbers, got str"),
        ({"params": [np.array([None])]}, r"params\[0\] must be .* got ndarray of type object"),
        ({"params": {"key": jax.random.key(0)}}, r"params\['key'\] must be .* got PRNGKeyArray"),
        ({"params": {"w": np.zeros((0, 3))}}, r"params\['w'\] must be .* shape \[0, 3\]"),
        (
            {"params": {"a.b": PARAMS["w"], "a": {"b": PARAMS["w"]}}},
            r"params\['a.b'\] and params\['a'\]\['b'\] have the same name in a checkpoint, a\.b\. ",
        ),
    ],
)
def test_save_rejects_items_that_no_checkpoint_can_hold(items, message, tmp_path):
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        with pytest.raises(ValueError, match=message):
            checkpoints.save(1, items, {}, None)
        assert checkpoints.latest_step() is None


def test_nothing_is_saved_in_a_folder_that_is_only_read(tmp_path):
    with (
        contextlib.closing(Checkpoints(tmp_path, read_only=True)) as checkpoints,
        pytest.raises(ValueError, match="opened with read_only=True"),
    ):
        checkpoints.save(1, {"params": PARAMS}, {}, None)
    assert not list(tmp_path.iterdir())


WITHOUT_PARAMETERS = """
import jax.numpy as jnp
import jaxvae
from jaxvae.distributions import Bernoulli, Gaussian

def make(data_shape, latent_dim):
    zeros = jnp.zeros(latent_dim)
    return jaxvae.VAE(
        init=lambda key: {},
        encode=lambda params, x: Gaussian(zeros, zeros),
        decode=lambda params, z: Bernoulli(jnp.zeros(data_shape)),
        prior=lambda params: Gaussian(zeros, zeros),
    )
"""


def test_a_model_without_parameters_is_rejected_before_it_trains(small, tmp_path, monkeypatch):
    (tmp_path / "nothing_to_learn.py").write_text(WITHOUT_PARAMETERS)
    monkeypatch.syspath_prepend(tmp_path)
    config = dataclasses.replace(
        small, model="nothing_to_learn:make", run=tmp_path / "run", hidden=None
    )
    with pytest.raises(UserError, match="--model=nothing_to_learn:make has no parameters to train"):
        train(config)
    assert not config.run.exists()


@pytest.mark.parametrize(("was", "now"), [(np.float32, np.float64), (np.int64, np.int32)])
def test_a_change_of_x64_is_named(was, now):
    saved = {"a": np.zeros(2, was), "b": np.zeros(3, np.uint8)}
    asked = {"a": np.zeros(2, now), "b": np.zeros(3, np.uint8)}
    here = int(now == np.float64)
    message = (
        rf"saved with JAX_ENABLE_X64={1 - here}, and this program runs with "
        rf"JAX_ENABLE_X64={here}: params\['a'\] is .* in this program\. "
        rf"Set JAX_ENABLE_X64={1 - here}\."
    )
    with pytest.raises(ValueError, match=message):
        check_leaves(1, "params", leaves(saved), leaves(asked))


def test_another_model_is_not_taken_for_a_change_of_x64():
    saved = {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)}
    asked = {"a": np.zeros(2, np.float64), "b": np.zeros(4, np.float64)}
    with pytest.raises(ValueError, match=r"holds another model or optimizer: params\['b'\]"):
        check_leaves(1, "params", leaves(saved), leaves(asked))
