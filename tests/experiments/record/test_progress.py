"""Announcements of work that takes a while."""

import sys
import threading
import time

import pytest

from experiments.record import progress
from experiments.record.progress import announced, counted


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN", 0.1)


def wait_for(lines, count):
    deadline = time.monotonic() + 10
    while len(lines) < count:
        assert time.monotonic() < deadline, lines
        time.sleep(0.01)


def test_short_work_is_not_announced():
    lines = []
    with announced("Compiling", say=lines.append):
        pass
    assert lines == []


def test_long_work_is_announced_and_then_shows_its_time_so_far():
    lines = []
    with announced("Compiling", say=lines.append):
        wait_for(lines, 2)
    assert lines[0] == "Compiling ..."
    assert set(lines[1:]) == {"Compiling: 0 s so far"}
    after = len(lines)
    time.sleep(0.2)
    assert len(lines) == after  # nothing is said about finished work


def test_counted_work_shows_what_comes_first_then_its_number_and_the_time_left():
    lines = []
    with counted("Evaluating", 2000, first="compiling", say=lines.append) as set_count:
        wait_for(lines, 1)
        set_count(1500)
        wait_for(lines, 3)
    assert lines[0] == "Evaluating: 0 of 2,000, compiling"
    assert lines[2] == "Evaluating: 1,500 of 2,000, 0 s left"


def test_quiet_work_starts_no_thread_and_errors_pass():
    lines, before = [], threading.active_count()
    with counted("Evaluating", 3, quiet=True, say=lines.append) as set_count:
        assert threading.active_count() == before
        set_count(1)
    assert lines == []
    with pytest.raises(KeyError), announced("Compiling", say=lines.append):
        raise KeyError
    assert threading.active_count() == before


def test_lines_go_to_standard_error_and_may_find_it_closed(capsys, monkeypatch):
    with counted("Evaluating", 10):
        time.sleep(0.2)
    printed = capsys.readouterr()
    assert printed.err.startswith("Evaluating: 0 of 10\n")
    assert printed.out == ""

    class Closed:
        def isatty(self):
            return False

        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    with announced("Compiling"):
        time.sleep(0.2)


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with counted("Evaluating", 10, first="compiling") as set_count:
        time.sleep(0.2)
        set_count(10)
    assert "Evaluating" in capsys.readouterr().err
