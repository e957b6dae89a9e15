"""Data of dispatches, which are the same if devices or the host gather them."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.record.metrics import read_metrics
from experiments.run import dispatch
from experiments.run.build import build
from experiments.train import train


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 4])
def test_devices_gather_the_rows_that_the_host_gathers(num_devices, small, tmp_path, monkeypatch):
    config = dataclasses.replace(small, run=tmp_path / "run", eval_every=1000)
    built = build(config, jax.devices()[:num_devices])
    each_way = []
    for resident in (False, True):
        monkeypatch.setattr(dispatch, "fits", lambda *_, resident=resident: resident)
        each_way.append(dispatch.Dispatcher(built))
    here, there = each_way
    for each in (here, there):
        each.report_pace(dispatch.CHUNK_SECONDS / 7)  # 7 steps in each of the next ones
    for step in (0, 1, 96):  # in one epoch, over the end of one, and a shorter one
        one, other = (each.after(step, 100, None) for each in (here, there))
        count = one.num_steps
        assert other.num_steps == count == min(7, 100 - step)
        assert one.rows.sharding == other.rows.sharding
        np.testing.assert_array_equal(one.rows[:, :count], other.rows[:, :count])


@pytest.mark.long
def test_a_run_does_not_depend_on_where_its_data_are_stored(whole_run, tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "fits", lambda examples, mesh: True)
    config = dataclasses.replace(whole_run, run=tmp_path / "run")
    assert train(config) == 0
    rows, others = (
        [{name: value for name, value in row.items() if name != "timing"}
         for row in read_metrics(run / "metrics.jsonl")]
        for run in (whole_run.run, config.run)
    )  # fmt: skip
    assert rows == others


def test_small_data_are_stored_on_accelerators(monkeypatch):
    def mesh(platform):
        return SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)], object))

    monkeypatch.setattr(dispatch, "RESIDENT_BYTES", 8)
    small, large = np.zeros(8, np.uint8), np.zeros(9, np.uint8)
    assert dispatch.fits(small, mesh("gpu"))
    assert dispatch.fits(small, mesh("tpu"))
    assert not dispatch.fits(small, mesh("cpu"))
    assert not dispatch.fits(large, mesh("gpu"))
