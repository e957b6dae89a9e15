"""Laws and failures of experiments.record: files, metrics and display."""

import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.record import display, files
from experiments.record.display import Display, table
from experiments.record.files import write_json
from experiments.record.metrics import MetricsFile, TensorBoard, read_metrics
from experiments.record.recorder import Recorder
from experiments.torture.accidents import no_file_above

NUMBERS = {"reconstruction": -80.0, "kl": 20.0, "images_per_second": 12345.0}


def written(path, rows, keep_until_step=-1):
    file = MetricsFile(path, keep_until_step)
    for step, split, values in rows:
        file.write(step, split, values, {"seconds": 0.5})
    file.close()
    return path


def test_a_row_is_one_line_of_json_with_the_clock_under_timing(tmp_path):
    path = written(tmp_path / "m.jsonl", [(10, "train", {"elbo": np.float32(-1.5), "kl": 2})])
    assert path.read_text() == (
        '{"step": 10, "split": "train", "elbo": -1.5, "kl": 2, "timing": {"seconds": 0.5}}\n'
    )


def test_a_row_can_be_read_before_the_file_is_closed(tmp_path):
    file = MetricsFile(tmp_path / "m.jsonl", -1)
    file.write(1, "train", {"elbo": -1.0}, {})
    assert read_metrics(tmp_path / "m.jsonl")[0]["elbo"] == -1.0
    file.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_numbers_that_are_not_finite_become_null(tmp_path, value):
    path = written(tmp_path / "m.jsonl", [(1, "train", {"elbo": value})])
    write_json(tmp_path / "r.json", {"elbo": [value, np.array([1.0, value])]})
    assert '"elbo": null' in path.read_text()
    assert json.loads((tmp_path / "r.json").read_text()) == {"elbo": [None, [1.0, None]]}


def test_a_resumed_file_equals_that_of_an_uninterrupted_run(tmp_path):
    rows = [(s, split, {"elbo": -1 / s}) for s in range(1, 9) for split in ("train", "validation")]
    whole = written(tmp_path / "whole.jsonl", rows)
    killed = written(tmp_path / "killed.jsonl", rows[:11])
    with killed.open("a") as file:
        file.write('{"step": 6, "split": "valid')
    written(killed, rows[8:], keep_until_step=4)
    assert killed.read_bytes() == whole.read_bytes()


def test_resuming_keeps_the_row_of_the_checkpoint_itself(tmp_path):
    path = written(tmp_path / "m.jsonl", [(s, "train", {}) for s in (1, 2, 3)])
    MetricsFile(path, 2).close()
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize("tail", ['{"step": 2, "spl', '{"step": 2}', "\0\0\0", "\0\0\n", "7"])
def test_a_torn_last_line_is_left_out(tmp_path, tail):
    path = written(tmp_path / "m.jsonl", [(1, "train", {})])
    with path.open("a") as file:
        file.write(tail)
    assert [row["step"] for row in read_metrics(path)] == [1]


def test_a_torn_line_before_the_last_is_rejected(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "spl\n{"step": 2, "split": "train"}\n')
    with pytest.raises(ValueError, match=r"read_metrics: .* line 1 of .*m\.jsonl is .*Delete that"):
        read_metrics(path)


@pytest.mark.parametrize("step", [5, 4])
def test_steps_must_rise_within_a_split_also_after_resuming(tmp_path, step):
    path = written(tmp_path / "m.jsonl", [(5, "train", {})])
    file = MetricsFile(path, 5)
    file.write(step, "validation", {}, {})
    with pytest.raises(ValueError, match=rf"must rise.*got step {step} after 5 for 'train'"):
        file.write(step, "train", {}, {})
    file.close()


def test_values_must_not_take_the_names_of_the_row(tmp_path):
    file = MetricsFile(tmp_path / "m.jsonl", -1)
    with pytest.raises(ValueError, match=r"must not be named .*got \['timing'\]. Rename"):
        file.write(1, "train", {"timing": 1.0}, {})
    file.close()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_midway_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, call
):
    path = tmp_path / "results.json"
    write_json(path, {"elbo": -1})
    metrics = written(tmp_path / "m.jsonl", [(s, "train", {}) for s in (1, 2)])
    before = path.read_bytes(), metrics.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"elbo": -2})
    with pytest.raises(OSError, match="No space"):
        MetricsFile(metrics, 1)
    assert (path.read_bytes(), metrics.read_bytes()) == before
    assert sorted(os.listdir(tmp_path)) == ["m.jsonl", "results.json"]


def test_json_keeps_its_order_and_accepts_paths(tmp_path):
    write_json(tmp_path / "c.json", {"b": Path("data"), "a": (1, np.int64(2), True, None)})
    text = (tmp_path / "c.json").read_text()
    assert text.startswith('{\n  "b": "data",\n  "a": [\n    1,\n    2,\n    true,\n    null')
    assert text.endswith("}\n")


def test_tensorboard_gets_the_rows_as_scalars(tmp_path):
    board = TensorBoard(tmp_path, -1)
    board.write(3, "train", {"elbo": -1.5, "kl": math.nan}, {"seconds": 0.5})
    board.close()
    scalars = {
        value.tag: (event.step, value.simple_value)
        for event in events(tmp_path)
        for value in event.summary.value
    }
    assert scalars["train/elbo"] == (3, -1.5)
    assert scalars["train/timing/seconds"] == (3, 0.5)
    assert math.isnan(scalars["train/kl"][1])


def test_tensorboard_hides_what_came_after_the_checkpoint(tmp_path):
    TensorBoard(tmp_path, 40).close()
    assert [event.step for event in events(tmp_path) if event.HasField("session_log")] == [41]


def events(folder):
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.iterdir()
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_tensorboard_events_that_do_not_fit_are_written_later(tmp_path):
    recorder = Recorder(tmp_path, -1, tensorboard=True)
    with no_file_above(300):
        for step in range(1, 30):  # more than the queue of tensorboardX's own thread holds
            recorder.write(step, "train", {"kl": 1.0}, {})
        assert not recorder.flush()
    assert str(recorder.problem) == "metrics.jsonl could not be written: File too large."
    recorder._logs["metrics.jsonl"].flush()
    with no_file_above(300):
        assert not recorder.flush()
    assert str(recorder.problem) == "tensorboard could not be written: File too large."
    recorder.close()
    found = events(tmp_path / "tensorboard")
    assert [event.step for event in found if event.summary.value] == list(range(1, 30))


def test_tensorboard_names_the_extra_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"tensorboardX is not .* '.\[tensorboard\]'") as error:
        TensorBoard(tmp_path, -1)
    assert "\n" not in str(error.value)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def test_display_limits_lines_but_always_shows_the_last_step(capsys, clock):
    with Display(100, seconds_between_rows=10) as display:
        for step in range(1, 101):
            display.update(step, elbo=-1000.0 + step, **NUMBERS)
            clock[0] += 0.5
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "step elbo log p(x|z) kl images/s time left"
    assert [line.split()[0] for line in lines[1:]] == ["1", "21", "41", "61", "81", "100"]
    assert lines[3].split() == ["41", "-959.00", "-80.00", "20.00", "12,345", "30", "s"]
    assert len(set(map(len, lines))) == 1


def test_display_shows_forced_rows_and_every_evaluation(capsys, clock):
    with Display(1000, first_step=500) as display:
        display.update(501, elbo=-100.0, **NUMBERS)
        display.update(502, elbo=-101.0, **NUMBERS)
        display.update(503, elbo=math.nan, row=True, **NUMBERS)
        display.evaluation(503, elbo=-99.1234, standard_error=0.41, is_best=True)
        display.evaluation(504, elbo=math.nan, standard_error=math.nan, is_best=False)
        display.message("stopped [by] hand")
        display.status("saving")
    header, first, asked, best, worse, message, status = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "step"
    assert first.split()[0] == "501"
    assert asked.split()[:2] == ["503", "nan"]
    assert best.strip() == "503   validation elbo -99.12 +- 0.41 nats, best so far"
    assert worse.strip() == "504   validation elbo nan nats"
    assert message == "stopped [by] hand"
    assert status == "saving"


def test_the_status_stands_below_the_bar_of_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(display._Output, "isatty", lambda self: True)
    monkeypatch.setenv("TERM", "xterm")
    with Display(10) as shown:
        shown.update(1, elbo=-100.0, **NUMBERS)
        shown.status("reading [b]")
        shown.message("a line")
    printed = capsys.readouterr().out
    assert "reading [b]" in printed
    assert "[bold]" not in printed


def test_quiet_display_prints_nothing(capsys):
    with Display(10, quiet=True) as display:
        display.update(10, elbo=-1.0, row=True, **NUMBERS)
        display.evaluation(10, elbo=-1.0, standard_error=0.1, is_best=True)
        display.message("text")
        display.status("text")
    assert capsys.readouterr().out == ""


BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
RUN = """
import sys
from experiments.record.display import Display, table
with Display(300, seconds_between_rows=0) as display:
    for step in range(1, 301):
        display.update(step, elbo=-500.0, reconstruction=-80.0, kl=20.0, images_per_second=1.0)
    display.evaluation(300, elbo=-99.1234, standard_error=0.41, is_best=True)
    display.message("grüße [b]")
table("test", [("elbo", -1.0, 0.1, "nats")])
print("still here", file=sys.stderr)
"""


@pytest.mark.parametrize("redirect", ["| head -n 2", "| true", ">&-", ">/dev/full", "| cat"])
def test_a_run_survives_a_standard_output_that_breaks(redirect):
    ended = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {redirect}', sys.executable, RUN],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=BUFFERED,
    )
    assert ended.returncode == 0
    assert ended.stderr == "still here\n"


def test_characters_that_the_output_lacks_are_escaped():
    env = {**BUFFERED, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, env=env)
    assert "gr\\xfc\\xdfe [b]\ntest\n  elbo  -1.00 +- 0.10  nats\n" in ended.stdout


def on_a_terminal(closes=False):
    """Run RUN on a pseudo-terminal; return what it showed there and how it ended."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", RUN], stdout=theirs, stderr=subprocess.PIPE, text=True
    )
    os.close(theirs)
    shown = b""
    while not (closes and shown):
        try:
            shown += os.read(ours, 65536)
        except OSError:
            break
    os.close(ours)
    return shown.decode(), process.communicate()[1], process.returncode


def test_a_terminal_gets_a_live_bar_and_lines_that_stay():
    shown, errors, status = on_a_terminal()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "300/300" in plain
    assert "elbo -500.00" in plain
    assert "300   validation elbo -99.12 +- 0.41 nats, best so far" in plain
    assert "grüße [b]" in plain
    assert plain.count("300   validation elbo") == 1
    assert "images/s 1   validation elbo -99.12 +- 0.41" in plain
    assert "time left" not in plain
    assert (errors, status) == ("still here\n", 0)


def test_a_run_survives_a_terminal_that_goes_away():
    _, errors, status = on_a_terminal(closes=True)
    assert (errors, status) == ("still here\n", 0)


def test_the_table_is_aligned_and_rounded_at_the_error(capsys):
    rows = [
        ("elbo", -95.12345, 0.4123, "nats"),
        ("bits per dimension", 0.167491, 0.00071, "bits"),
        ("active units", 21, None, "of 32"),
        ("kl", None, None, "nats"),
    ]
    table("test", rows)
    assert capsys.readouterr().out == (
        "test\n"
        "  elbo                 -95.12 +- 0.41     nats\n"
        "  bits per dimension  0.16749 +- 0.00071  bits\n"
        "  active units             21             of 32\n"
        "  kl                      nan             nats\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (750, "12 min 30 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_show_their_two_largest_units(seconds, text):
    assert display.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-95.1, 0.0996, ("-95.100", "0.100")),
        (-1234.5, 12.3, ("-1,234", "12")),
        (3.0, 0.0, ("3", "0")),
        (0.173284739823749832, 1e-17, ("0.17328", "0")),
        (0.0, 0.0, ("0", "0")),
        (1.73e-25, 1.2e-27, ("1.730e-25", "1.2e-27")),
        (-1.73e15, 2.1e13, ("-1.730e+15", "2.1e+13")),
        (12345, None, ("12,345", "")),
        (0.5, math.nan, ("0.5", "")),
        (math.inf, 1.0, ("nan", "")),
    ],
)
def test_values_are_rounded_by_their_error(value, error, text):
    assert display.rounded(value, error) == text


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = (
        "import sys, experiments.record.files, experiments.show.pictures, experiments.show.report; "
        "print({'jax', 'matplotlib', 'rich', 'PIL', 'tensorboardX'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"


def test_a_validation_that_is_nan_does_not_hide_later_best_ones(tmp_path):
    recorder = Recorder(tmp_path, -1)
    for step, elbo in ((1, -9.0), (2, math.nan), (3, -8.0)):
        recorder.write(step, "validation", {"elbo": elbo, "standard_error": 0.1}, {})
    assert recorder.best_elbo == -8.0
    recorder.close()
