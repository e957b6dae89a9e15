"""Training outside the main thread and in an event loop, as in notebooks and schedulers."""

import asyncio
import dataclasses
import json
import signal
import threading

import jax
import numpy as np
import pytest

from experiments.machine.stopping import StopRequest
from experiments.train import train
from jaxvae.checkpoints import load


@pytest.fixture(scope="module")
def short(small):
    return dataclasses.replace(small, num_steps=6, eval_every=3)


@pytest.fixture(scope="module")
def reference(short, tmp_path_factory):
    config = dataclasses.replace(short, run=tmp_path_factory.mktemp("reference") / "run")
    assert train(config) == 0
    return load(config.run, "latest")[1]


def _assert_same_weights(run, reference):
    jax.tree.map(np.testing.assert_array_equal, load(run, "latest")[1], reference)
    assert json.loads((run / "results.json").read_text())["steps"] == 6


@pytest.mark.long
def test_train_in_a_thread_equals_the_main_thread_bit_for_bit(short, reference, tmp_path):
    config, codes = dataclasses.replace(short, run=tmp_path / "run"), []
    thread = threading.Thread(target=lambda: codes.append(train(config)))
    thread.start()
    thread.join()
    assert codes == [0]
    _assert_same_weights(config.run, reference)


@pytest.mark.long
def test_train_in_a_running_event_loop_gives_the_same_bits(short, reference, tmp_path):
    config = dataclasses.replace(short, run=tmp_path / "run")

    async def cell():
        return train(config)

    assert asyncio.run(cell()) == 0
    _assert_same_weights(config.run, reference)


def test_a_thread_does_not_change_the_handlers_of_the_main_thread():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    inside = []

    def work():
        with StopRequest() as stop:
            inside.append([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])
            assert stop.signal is None

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert inside == [before]
    assert after == before


def test_a_stop_request_of_the_main_thread_notes_a_signal_and_restores_the_handlers():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
