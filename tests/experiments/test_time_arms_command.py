"""`python -m experiments.time_arms`: what it writes down. Its commands are not run."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl import flags

ROOT = Path(__file__).parents[2]


@pytest.fixture
def time_arms(tmp_path, monkeypatch):
    """The command, given a folder and two rounds. Its flags are not defined: those of two commands
    are not for one process."""
    given = {"workdir": str(tmp_path / "a b"), "rounds": 2}

    def define(name, default, *_, **__):
        return SimpleNamespace(name=name, value=given.get(name, default))

    monkeypatch.setattr(flags, "DEFINE_string", define)
    monkeypatch.setattr(flags, "DEFINE_integer", define)
    monkeypatch.setattr(sys, "argv", ["x", *(f"--{name}={given[name]}" for name in given)])
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("time_arms", "experiments/time_arms.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_record_says_how_and_with_what_it_was_made(tmp_path, time_arms):
    def call(entry, variant, arguments, workdir):
        workdir.parent.mkdir(parents=True, exist_ok=True)
        return {"ablate": 2.0, "distill": 0.5}[entry]

    time_arms.call = call
    time_arms.run()
    found = json.loads((tmp_path / "a b" / "time_arms.json").read_text())
    workdir = f"'--workdir={tmp_path / 'a b'}'"
    assert found["command"] == f"python -m experiments.time_arms {workdir} --rounds=2"
    assert {"time", "processor", "versions", "commit"} <= set(found["environment"])
    assert found["ratio"] == len(found["arms"]) * 0.5 / 2.0
    assert found["together_seconds"] == [2.0] * 2
