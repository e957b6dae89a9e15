"""Several processes are one run: numbers are the same, and a failure of one ends all of them."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.data import Dataset, run_data
from experiments.data import identity as identity_module
from experiments.evaluate import EvaluateConfig, evaluate
from experiments.flags.command import UserError, as_user_errors
from experiments.flags.processes import LOG_LEVEL, Processes
from experiments.machine import processes
from experiments.record.metrics import read_metrics
from experiments.record.progress import without_announcements
from experiments.train import train
from jaxvae.checkpoints import Checkpoints
from jaxvae.training.batches import Batches
from tests.files import ROOT

GLOO = re.compile(r"Gloo|peer ranks|is connected to|^\W*\d*$")
"""Start of Gloo's lines, which are ignored: its threads write into each other's lines."""
SLURM_PORTS = 61440
"""First of the 4,096 ports that jax derives from the number of a Slurm job."""


def _free_port(first=10_000):
    """Return a free port outside the range from which the system assigns ports itself."""
    for port in np.random.default_rng().permutation(4096) + first:
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", int(port))):
                return int(port)
    raise AssertionError("no free port")


def _start(command, flags, environment, cwd=ROOT):
    environment = (
        os.environ
        | environment
        | {
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    )
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{command}", "--accelerator=cpu", *flags],
        cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _start_both(flags, command="train", folders=(ROOT, ROOT)):
    port = _free_port()
    flags = [*flags, "--distributed", f"--coordinator=127.0.0.1:{port}", "--num-processes=2"]
    flags += ["--num-devices=2", "--lost-timeout-seconds=10", "--start-timeout-seconds=120"]
    return [_start(command, [*flags, f"--process-id={rank}"], {}, folders[rank]) for rank in (0, 1)]


def _ends(both):
    """Wait for processes; return exit codes, printed lines without Gloo's, and errors."""
    texts = [process.communicate(timeout=180) for process in both]
    printed = [[line for line in text.splitlines() if not GLOO.search(line)] for text, _ in texts]
    errors = [without_announcements(errors) for _, errors in texts]
    return [process.returncode for process in both], printed, errors


def _wait_for_rows(both, run, after):
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or not _rows(run, after):
        assert time.monotonic() < deadline
        assert [process.poll() for process in both] == [None, None], _ends(both)
        time.sleep(0.1)


def _flags(config):
    flags = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default and field.name != "num_devices"
    }
    flags = {name: value for name, value in flags.items() if name not in ("quiet", "hidden")}
    hidden = ["--hidden", *map(str, config.hidden)]
    return hidden + [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]


def _rows(run, after=0):
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["step"] > after]
    return [{key: value for key, value in row.items() if key != "timing"} for row in rows]


def _same_rows(rows, others):
    assert [(row["step"], row["split"]) for row in rows] == [
        (row["step"], row["split"]) for row in others
    ]
    for row, other in zip(rows, others, strict=True):
        for name, value in row.items():
            if name != "split":
                assert value == pytest.approx(other[name], rel=1e-6, abs=1e-30), (row, other)


@pytest.fixture(scope="module")
def four_devices(small, tmp_path_factory):
    """Run of 50 steps on four devices of this process."""
    run = tmp_path_factory.mktemp("four") / "run"
    config = dataclasses.replace(small, run=run, num_devices=4, num_steps=50)
    assert train(config) == 0
    return config


@pytest.fixture(scope="module")
def two_by_two(four_devices, tmp_path_factory):
    """The same run in two processes of two devices, each in its own folder; and their output."""
    folders = [tmp_path_factory.mktemp("two") for _ in range(2)]
    config = dataclasses.replace(four_devices, run=Path("run"))
    codes, printed, errors = _ends(_start_both(_flags(config), folders=folders))
    assert codes == [0, 0], errors
    assert [without_announcements(text) for text in errors] == ["", ""]
    assert list(folders[1].iterdir()) == []
    return dataclasses.replace(config, run=folders[0] / "run"), printed


@pytest.fixture(scope="module")
def continued(two_by_two, tmp_path_factory):
    """The run of two processes, continued to 75 steps by this process."""
    run = tmp_path_factory.mktemp("continued") / "run"
    shutil.copytree(two_by_two[0].run, run)
    config = dataclasses.replace(two_by_two[0], run=run, num_steps=75)
    assert train(config) == 0
    return config


@pytest.mark.slow
def test_two_processes_of_two_devices_train_as_one_of_four(four_devices, two_by_two):
    config, printed = two_by_two
    assert len(_rows(config.run)) == 12
    _same_rows(_rows(config.run), _rows(four_devices.run))
    results, expected = (
        json.loads((run / "results.json").read_text()) for run in (config.run, four_devices.run)
    )
    for split in ("validation", "test"):  # 33 examples on 4 devices: padded
        for name in ("elbo", "kl", "log_likelihood", "active_units"):
            value = results[split][name]["value"]
            assert value == pytest.approx(expected[split][name]["value"], rel=1e-6)
    assert "in 2 processes" in "\n".join(printed[0])
    assert printed[1] == []
    assert (config.run / "pictures" / "samples.png").exists()


@pytest.mark.long
def test_a_signal_to_one_process_stops_all_at_the_same_step(four_devices, continued, tmp_path):
    """One process starts the run, two continue it: the result equals that of two, then one."""
    shutil.copytree(four_devices.run, tmp_path / "run")
    config = dataclasses.replace(four_devices, run=tmp_path / "run", num_steps=10**6)
    both = _start_both(_flags(config))
    _wait_for_rows(both, config.run, after=75)
    both[1].send_signal(signal.SIGTERM)
    codes, printed, errors = _ends(both)
    assert codes == [128 + signal.SIGTERM] * 2, errors
    assert [without_announcements(text) for text in errors] == ["", ""]
    assert "Rerun the same command to continue." in printed[0][-1]
    step = Checkpoints(config.run / "checkpoints").latest_step()
    assert _rows(config.run)[-1]["step"] in range(step - 4, step + 1)
    rows = [row for row in _rows(config.run) if row["step"] <= 75]
    _same_rows(rows, _rows(continued.run))


@pytest.mark.long
def test_evaluate_gives_the_same_numbers_with_two_processes(four_devices):
    path = four_devices.run / "evaluations" / "test-best-3.npz"
    numbers = []
    for several in (False, True):
        if several:  # 33 examples of 10: the last batch is padded
            flags = [str(four_devices.run), "--num-samples=3", "--batch-size=10"]
            codes, printed, errors = _ends(_start_both(flags, "evaluate"))
            assert codes == [0, 0], errors
            assert printed[1] == []
        else:
            evaluate(EvaluateConfig(four_devices.run, num_samples=3, num_devices=1))
        with np.load(path) as arrays:
            numbers.append({name: arrays[name] for name in arrays})
        path.unlink()
    for name, values in numbers[0].items():
        np.testing.assert_allclose(numbers[1][name], values, rtol=2e-5, atol=2e-5, err_msg=name)


def _slurm(port, rank):
    return {
        "SLURM_JOB_ID": str(port - SLURM_PORTS),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_STEP_NUM_NODES": "1",
    }


@pytest.mark.slow
@pytest.mark.parametrize("differs", ["data", pytest.param("seed", marks=pytest.mark.long)])
def test_on_slurm_distributed_is_enough_and_differences_are_named(differs, small, tmp_path):
    flags = dataclasses.replace(small, dataset="npz:data.npz", run=tmp_path / "run")
    port, both = _free_port(SLURM_PORTS), []
    for rank in (0, 1):
        folder = tmp_path / str(rank)
        folder.mkdir()
        images = np.random.default_rng(rank).integers(0, 256, (60, 4, 4), np.uint8)
        np.savez(folder / "data.npz", images=images)
        seed = rank if differs == "seed" else 0
        mine = [*_flags(flags), "--distributed", f"--seed={seed}"]
        both.append(_start("train", mine, _slurm(port, rank), folder))
    codes, _, errors = _ends(both)
    assert codes == [2, 2], errors
    assert errors[0] == errors[1]
    assert errors[0].count("\n") == 1
    said = {
        "data": r"test data is \[6, 4, 4, 1\] uint8 with digest \w+ on process 0 and \[6, 4, 4, "
        r"1\] uint8 with digest \w+ on process 1; train data is .* with the same data",
        "seed": r"--seed is 0 on process 0 and 1 on process 1\. .* same flags, jax settings, "
        r"packages and code",
    }
    assert re.match(f"error: the processes differ: {said[differs]}\\.", errors[0]), errors[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_data_that_one_process_cannot_read_end_all_processes(small, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    np.savez(folders[0] / "data.npz", images=np.full((60, 4, 4), 250, np.uint8))
    config = dataclasses.replace(small, dataset="npz:data.npz", run=tmp_path / "run")
    codes, _, errors = _ends(_start_both(_flags(config), folders=folders))
    assert codes == [2, 2], errors
    assert errors[0] == errors[1].replace("error: ", "error: process 1: ")
    assert "data.npz" in errors[1]
    assert errors[1].count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_whose_peers_do_not_join_exits_in_time(rank, tmp_path):
    port = _free_port()
    flags = ["--distributed", f"--coordinator=127.0.0.1:{port}", "--num-processes=2"]
    flags += ["--start-timeout-seconds=1", f"--run={tmp_path / 'run'}"]
    codes, printed, errors = _ends([_start("train", [*flags, f"--process-id={rank}"], {})])
    assert codes == [2]
    assert printed == [[]]
    assert errors[0].startswith(
        f"error: process {rank} of 2 waited 1 seconds for the others to join at 127.0.0.1:{port}."
    )
    assert errors[0].count("\n") == 1


@pytest.mark.long
def test_a_killed_process_ends_the_others_and_a_restart_continues(two_by_two, tmp_path):
    """First the worker is killed, then the coordinator; the rows equal an uninterrupted run's."""
    config = dataclasses.replace(two_by_two[0], run=tmp_path / "run", num_steps=10**6)
    for victim, after in ((1, 0), (0, 30)):
        both = _start_both(_flags(config))
        _wait_for_rows(both, config.run, after)
        both[victim].kill()
        killed = time.monotonic()
        codes, printed, errors = _ends(both)
        assert time.monotonic() - killed < 30  # 10 of --lost-timeout-seconds, and a slow machine
        assert codes[1 - victim] == 1
        line = r"error: process \d of 2 (has stopped:|was ended by jax, most likely because) "
        line += r"another process has died or cannot be reached\. Start all processes again: .*\n"
        assert re.fullmatch(line, errors[1 - victim]), errors[1 - victim]
        if victim == 0:
            assert _says(
                r"It ended with: process 0 of 2 .* has died or cannot be reached\.", printed[0]
            )
    step = Checkpoints(config.run / "checkpoints").latest_step()
    both = _start_both(_flags(dataclasses.replace(config, num_steps=max(50, step))))
    codes, printed, errors = _ends(both)
    assert codes == [0, 0], errors
    assert _says(r"It was killed, or its machine went down\.", printed[0])
    rows = [row for row in _rows(config.run) if row["step"] <= 50]
    assert rows == _rows(two_by_two[0].run)


def _says(why, printed):
    line = r"Continuing from step [\d,]+\. The previous training in this folder, process \d+ on "
    line += r"\S+, did not finish\. " + why
    return any(re.fullmatch(line, text) for text in printed)


def test_each_process_gathers_its_own_rows_of_the_global_batch():
    examples = np.arange(100)
    whole = Batches(examples, 20, seed=0, num_devices=4).chunk(7, 3, 5)
    assert whole.shape == (4, 5, 5)
    parts = [Batches(examples, 20, 0, 4, rows).chunk(7, 3, 5) for rows in ([0, 1], [2, 3])]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


ADDRESS = "127.0.0.1:1234"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (Processes(coordinator=ADDRESS), r"--coordinator goes with --distributed. Add it"),
        (Processes(process_id=0), r"--process-id goes with --distributed"),
        (
            Processes(True, coordinator=ADDRESS),
            r"has --coordinator but no --num-processes and --process-id. Give all three, or none",
        ),
        (Processes(True, ADDRESS, 2, 2), r"--process-id must be from 0 to .* = 1, got 2"),
        (Processes(True, ADDRESS, 2, -1), r"--process-id must be .*, got -1"),
        (Processes(True, ADDRESS, 0, 0), r"--num-processes must be at least 1, got 0"),
        (Processes(True, "localhost", 2, 0), r"--coordinator must be HOST:PORT .*got localhost"),
        (Processes(True, "localhost:99999", 2, 0), r"--coordinator must be HOST:PORT"),
        (Processes(True, start_timeout_seconds=0), r"--start-timeout-seconds must be at least 1"),
        (Processes(True, lost_timeout_seconds=0), r"--lost-timeout-seconds must be at least 1"),
    ],
)
def test_invalid_flags_of_processes_are_rejected(flags, message, small, tmp_path):
    config = dataclasses.replace(small, run=tmp_path / "run", processes=flags)
    for command in (
        lambda: train(config),
        lambda: evaluate(EvaluateConfig(tmp_path, processes=flags)),
    ):
        with pytest.raises(UserError, match=message) as raised:
            command()
        assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_distributed_without_cluster_and_flags_is_rejected(tmp_path):
    flags = ["--distributed", f"--run={tmp_path / 'run'}"]
    codes, _, errors = _ends([_start("train", flags, {})])
    assert codes == [2]
    assert errors[0].startswith("error: --distributed finds no cluster")
    assert "--coordinator=HOST:PORT, --num-processes and --process-id" in errors[0]
    assert errors[0].count("\n") == 1


def test_a_port_that_is_taken_is_rejected(tmp_path):
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        flags = ["--distributed", f"--coordinator={address}", "--num-processes=2"]
        flags += ["--process-id=0", f"--run={tmp_path / 'run'}"]
        codes, _, errors = _ends([_start("train", flags, {})])
    assert codes == [2]
    assert errors[0].startswith(
        f"error: process 0 of 2 could not start at --coordinator={address}: "
    )
    assert "Give another port" in errors[0]
    assert errors[0].count("\n") == 1


def test_every_difference_is_named_once(monkeypatch):
    theirs = [{"--seed": 0, "jax": "1"}, {"--seed": 1, "jax": "1"}, {"--seed": 2, "numpy": "3"}]
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(
        "jaxvae.checkpoints.hosts.gather", lambda text: [json.dumps(t) for t in theirs]
    )
    with pytest.raises(ValueError, match="the processes differ") as error:
        processes.agree("packages", theirs[0])
    assert str(error.value) == (
        "the processes differ: --seed is 0 on process 0 and 1 on process 1; "
        "jax is 1 on process 0 and absent on process 2; numpy is absent on process 0 and 3 on "
        "process 2. Start all of them with the same packages."
    )


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            ValueError("UNKNOWN: Gloo AllGather failed: Connection closed"),
            1,
            "has stopped: another",
        ),
        (RuntimeError("UNAVAILABLE: Failed to send RPC"), 1, "has stopped: another"),
        (OSError("Connection refused"), 2, "^Connection refused$"),
        (ValueError("no such data"), 2, "^no such data$"),
    ],
)
def test_a_lost_process_is_distinguished_from_a_user_error(error, code, line, monkeypatch):
    """This also holds while flags, files and data are checked."""
    left = []
    monkeypatch.setattr(processes, "_joined", lambda: True)
    monkeypatch.setattr(processes, "_leave", lambda *ends: left.append(ends))
    monkeypatch.setenv(LOG_LEVEL, "1")
    with processes.as_peer(Processes(True, ADDRESS, 2, 1)), as_user_errors():
        raise error
    assert left[0][1] == code
    assert re.search(line, left[0][0])
    assert os.environ[LOG_LEVEL] == "4"


def test_processes_compare_every_byte_and_the_order_of_the_data(monkeypatch):
    said = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(run_data, "agree", lambda _, facts: said.append(facts["train data"]))
    monkeypatch.setattr(identity_module, "PIECE_BYTES", 1000)
    examples = np.random.default_rng(0).integers(0, 256, (500, 4, 4, 1), np.uint8)
    others = [examples.copy() for _ in range(3)]
    others[1][490, 3, 3] ^= 1
    others[2][[0, 1]] = others[2][[1, 0]]
    for train_split in (examples, *others):
        data = Dataset("", train_split, examples, examples, "", {})
        run_data.agree_on_data(identity_module.identify_splits(data))
    assert said[1] == said[0]
    assert len(set(said)) == 3


def test_a_continued_run_silences_what_jax_aborts_with_before_it_imports_jax(whole_run):
    code = (
        "import os, sys; from experiments.flags import continuing, processes; "
        "silence = continuing.silence_aborts; "
        "continuing.silence_aborts = lambda: (print('jax' in sys.modules), silence()); "
        f"continuing.flags_of_run(['--run={whole_run.run}', '--distributed']); "
        "print(os.environ[processes.LOG_LEVEL], 'jax' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout.split() == ["False", "4", "True"], ended.stderr
