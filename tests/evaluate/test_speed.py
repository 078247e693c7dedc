from dataclasses import replace

import pytest

from distilflax.errors import UserError
from distilflax.evaluate import speed
from distilflax.settings import Compute


@pytest.fixture
def calls(monkeypatch):
    """Models that take as many virtual seconds as they have layers, and a list of their turns."""
    clock, turns = [0.0], []

    def compiled(model, *_):
        def call():
            turns.append(model.name)
            clock[0] += model.encoder.num_layers

        return call

    monkeypatch.setattr(speed, "_compiled", compiled)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])
    return turns


def measure(compared, **options):
    return speed.measure(compared, Compute(), **{"batch": 2, "length": 8, "rounds": 4, **options})


def test_each_model_gets_its_own_time(calls, teacher, student):
    slow, fast = measure([teacher, student])
    assert (slow.median, slow.p10, slow.p90) == (2.0, 2.0, 2.0)
    assert fast.median == 1.0


def test_models_take_turns_and_no_one_always_goes_first(calls, teacher, student):
    measure([teacher, student])
    names = [teacher.name, student.name]
    assert calls[-8:] == [*names, *reversed(names), *names, *reversed(names)]


def test_one_architecture_is_measured_once(calls, student):
    twin = replace(student, name="twin", encoder=replace(student.encoder, dropout=0.3))
    first, second = measure([student, twin])
    assert first == second
    assert "twin" not in calls


def test_real_models_are_compiled_and_timed(teacher, student):
    for timing in measure([teacher, student], rounds=2):
        assert 0 < timing.p10 <= timing.median <= timing.p90


def test_sequences_longer_than_positions_are_an_error(teacher):
    with pytest.raises(UserError, match="latency_length is 65 but 'teacher' has 64 positions"):
        measure([teacher], length=65)
