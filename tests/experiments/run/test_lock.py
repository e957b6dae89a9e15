"""Lock of a run's folder: one training process at a time."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.run.lock import RunLock

HOLD = "import sys, time; from pathlib import Path; from experiments.run.lock import RunLock; "
HOLD += "lock = RunLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(100)"


def test_a_second_lock_is_rejected_with_the_number_of_the_holder(tmp_path):
    lock = RunLock(tmp_path)
    with pytest.raises(ValueError, match=rf"in use by process {os.getpid()} on \S+, which is"):
        RunLock(tmp_path)
    lock.close()
    RunLock(tmp_path).close()


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match=f"in use by process {holder.pid} on"):
        RunLock(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    for _ in range(50):  # the system frees the lock a moment after the process is gone
        try:
            lock = RunLock(tmp_path)
            break
        except ValueError:
            time.sleep(0.1)
    else:
        pytest.fail("the lock of a killed process is still held")
    assert re.fullmatch(
        rf"The previous training in this folder, process {holder.pid} on \S+, did not finish\. "
        r"It was killed, or its machine went down\.",
        lock.cut_short,
    )
    lock.close()
    with contextlib.closing(RunLock(tmp_path)) as lock:
        assert lock.cut_short == ""


def test_lock_is_released_even_if_its_file_cannot_be_written(tmp_path):
    lock = RunLock(tmp_path)
    lock._file.close()
    lock._file = Path("/dev/full").open("a")  # noqa: SIM115
    lock.close(KeyboardInterrupt())
    RunLock(tmp_path).close()


def test_a_file_system_without_locks_names_a_possible_holder(tmp_path, monkeypatch):
    def reject(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", reject)
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    assert first.cut_short == ""
    assert f"process {os.getpid()} on " in second.cut_short
    assert "may be training in this folder too" in second.cut_short
    second.close()
    first.close()


def test_a_rejected_lock_keeps_the_name_of_the_holder(tmp_path):
    lock = RunLock(tmp_path)
    before = (tmp_path / ".lock").read_text()
    with pytest.raises(ValueError, match="in use"):
        RunLock(tmp_path)
    assert (tmp_path / ".lock").read_text() == before
    lock.close()


def test_last_words_of_a_holder_are_reported_once(tmp_path):
    RunLock(tmp_path).close(RuntimeError("RESOURCE_EXHAUSTED:\n out of memory"))
    lock = RunLock(tmp_path)
    assert lock.cut_short.endswith(
        "did not finish. It ended with: RESOURCE_EXHAUSTED: out of memory"
    )
    lock.close(KeyboardInterrupt())
    lock = RunLock(tmp_path)
    assert lock.cut_short.endswith("did not finish. It ended with: KeyboardInterrupt")
    lock.close()
    with contextlib.closing(RunLock(tmp_path)) as lock:
        assert lock.cut_short == ""
