import os
import signal
import threading

import jax
import pytest
from jax.experimental import multihost_utils

from distilflax.train.signals import stop_on_signal


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_asks_the_run_to_stop(number, code):
    said = []
    with stop_on_signal(said.append) as stop:
        assert not stop.requested(1) and stop.exit_code == 0
        send(number)
        assert stop.requested(2) and stop.exit_code == code
    assert len(said) == 1 and signal.Signals(number).name in said[0]


def test_a_second_ctrl_c_interrupts():
    with pytest.raises(KeyboardInterrupt), stop_on_signal(lambda text: None) as stop:
        send(signal.SIGINT)
        assert stop.requested(1)
        send(signal.SIGINT)


def test_a_scheduler_may_repeat_itself():
    with stop_on_signal(lambda text: None) as stop:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert stop.exit_code == 143


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(KeyError), stop_on_signal(lambda text: None):
        assert signal.getsignal(signal.SIGTERM) != before[0]
        raise KeyError
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_outside_the_main_thread_nothing_is_caught():
    asked = []

    def run():
        with stop_on_signal(lambda text: None) as stop:
            asked.append(stop.requested(1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert asked == [False]


def test_several_hosts_stop_after_the_same_step(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: step == 3)
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signal(lambda text: None) as stop:
        assert signal.getsignal(signal.SIGTERM) is before  # JAX's own must stay.
        assert [stop.requested(step) for step in (1, 2, 3, 4)] == [False, False, True, True]
        assert stop.exit_code == 143
