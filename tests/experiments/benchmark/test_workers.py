"""Measurement by the benchmarks: rounds, segments, and worker processes."""

import signal
import time
from functools import partial

import pytest

from experiments.benchmark import (
    rounds,
)
from experiments.benchmark.comparison import Comparison, compare
from experiments.benchmark.timed import Fastest, Timed, Work, calls_that_take
from experiments.benchmark.workers import SECONDS_TO_END, Variant, WorkerFailed, Workers, ask_once
from experiments.flags.command import UserError

TRIVIAL = "tests.trivial_variants"
WHERE = {"accelerator": "cpu", "num_devices": 1, "dataset": "mnist_small", "manual_dir": None}


def trivial(name, **arguments):
    return Variant(name, f"{TRIVIAL}:Trivial", arguments)


def test_statistics_of_rounds():
    summary = rounds.summarize([4.0, 1.0, 2.0, 3.0, 100.0])
    assert summary == (3.0, 2.0, 4.0, 1.0)
    assert rounds.summarize([4.0, 1.0, 2.0], higher_is_better=False).worst == 4.0
    assert rounds.summarize([2.0]) == (2.0, 2.0, 2.0, 2.0)
    above, below = [{"x": 6.0}, {"x": 1.0}], [{"x": 2.0}, {"x": 4.0}]
    assert rounds.ratios(above, below, "x") == [3.0, 0.25]


def test_rounds_alternate_their_order_and_drop_a_failed_variant():
    order = []

    def measure(name):
        order.append(name)
        return None if name == "y" and order.count("y") == 2 else {"seconds": 1.0}

    found = rounds.interleaved(["x", "y", "z"], 3, measure)
    assert order == ["x", "y", "z", "z", "y", "x", "x", "z"]
    assert {name: len(values) for name, values in found.items()} == {"x": 3, "z": 3}


def test_segments_have_the_requested_length_and_processes_agree_on_it(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("experiments.benchmark.timed.time.perf_counter", lambda: now[0])

    def advance(calls):
        now[0] += 0.01 * calls

    assert calls_that_take(2.0, advance) == 200
    assert calls_that_take(0.001, advance) == 1
    assert calls_that_take(2.0, advance, agree=lambda taken: 2 * taken) == 100
    segment = Timed(Work(advance, 5, 128, {}), 2.0).segment()
    assert segment["steps"] == 1000
    assert segment["images"] == 128_000
    assert segment["images_per_second"] == pytest.approx(64_000)
    assert segment["peak_bytes"] > 10**6


def test_fastest_setting_of_each_round_counts(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("experiments.benchmark.timed.time.perf_counter", lambda: now[0])
    pace = {"one": 0.01, "two": 0.02}

    def advance(name, calls):
        now[0] += pace[name] * calls

    works = {name: Work(partial(advance, name), 1, 10, {"of": name}) for name in pace}
    both = Fastest({name: Timed(work, 1.0) for name, work in works.items()})
    first = both.segment()
    pace["one"] = 0.05
    second = both.segment()
    assert both.about == {"of": "one"}
    assert (first["setting"], second["setting"]) == ("one", "two")
    assert second["images_per_second"] == pytest.approx(500)
    found = Comparison({"x": [first, second, second]}, {"x": {"setting": "asked"}}, {})
    assert found.setting("x") == "two (2 of 3 rounds)"


def test_worker_prepares_answers_and_ends():
    with Workers() as workers:
        assert workers.prepare(trivial("one", rate=7.0))["setting"] == "none"
        workers.prepare(trivial("two"))
        assert workers.ask("one", "segment")["images_per_second"] == 7.0
        assert workers.ask("one", "segment")["images_per_second"] == 8.0
        assert workers.ask("two", "segment")["images_per_second"] == 100.0
        processes = [worker._process for (worker,) in workers._processes.values()]
        assert len({process.pid for process in processes}) == 2
    assert all(process.returncode == 0 for process in processes)


@pytest.mark.slow
def test_busy_workers_are_killed_after_one_shared_wait():
    with Workers() as workers:
        for name in ("one", "two", "three"):
            workers.prepare(trivial(name))
            workers._group(name)[0].send(name, "sleep")
        processes = [worker._process for (worker,) in workers._processes.values()]
        ending = time.monotonic()
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 3
    assert time.monotonic() - ending < 3 * SECONDS_TO_END  # one wait for all three


def test_variants_may_share_a_process():
    with Workers(one_process=True) as workers:
        workers.prepare(trivial("one", rate=7.0))
        workers.prepare(trivial("two"))
        assert len(workers._processes) == 1
        assert workers.ask("one", "segment")["images_per_second"] == 7.0
        assert workers.ask("two", "segment")["images_per_second"] == 100.0


def test_failure_of_one_of_several_processes_ends_the_wait():
    peers_of = ({"process_id": 0}, {"process_id": 1})
    with Workers() as workers:
        about = workers.prepare(Variant("both", f"{TRIVIAL}:OneOfTwo", {}, peers=peers_of))
        assert about["process_id"] == 0
        with pytest.raises(WorkerFailed, match=r"^both: RuntimeError: the second fails$"):
            workers.ask("both", "segment")


def test_error_or_death_of_a_worker_becomes_one_line():
    with Workers() as workers:
        workers.prepare(trivial("one"))
        with pytest.raises(WorkerFailed, match=r"^one: ValueError: a reason in two lines$"):
            workers.ask("one", "reject")
        with pytest.raises(WorkerFailed, match=r"^one died \(exit code 3\): last words$"):
            workers.ask("one", "die")
        with pytest.raises(WorkerFailed, match=r"^gone: ModuleNotFoundError: .*nowhere"):
            workers.prepare(Variant("gone", "nowhere:prepare", {}))


def test_compare_leaves_out_a_failed_variant_and_reports_it(capsys):
    arguments = {"net": "a", "segment_seconds": 1.0, "style": "eager", **WHERE}
    variants = [trivial("one"), Variant("PyTorch", f"{TRIVIAL}:without_torch", arguments)]
    with Workers() as workers:
        found = compare(workers, variants, 2, "net a")
    assert list(found.rounds) == ["one"]
    assert len(found.rounds["one"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert lines == [
        "net a: left out: PyTorch: PyTorch is not installed. "
        "python -m pip install -e '.[peers]' adds it."
    ]
    assert found.failed.keys() == {"PyTorch"}


def test_ask_once_raises_a_user_error_if_the_variant_cannot_be_prepared():
    with pytest.raises(UserError, match="nowhere"):
        ask_once(Variant("gone", "nowhere:prepare", {}))
