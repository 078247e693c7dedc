"""Arms side by side are the arms alone, and what stops one stops all without loss."""

import dataclasses
import os
import signal
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from distilflax.errors import UserError
from distilflax.train import loop, side_by_side
from distilflax.train.setup import prepare
from distilflax.train.side_by_side import train_arms

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def arms(small):
    """Two students with dropout, of seeds of their own."""
    one = small(student={"num_layers": 1}, training={"steps": 4, "evaluate_every": 0})
    return {"distilled": one, "other_seed": dataclasses.replace(one, seed=1)}


def run(arms, folder, at_once, said=None, kept=None):
    materials = prepare(arms["distilled"], arms.values(), lambda _: None)
    return train_arms(
        arms,
        materials,
        folder,
        at_once=at_once,
        say=(said if said is not None else []).append,
        keep=lambda name, outcome: (kept if kept is not None else []).append(name),
    )


def test_side_by_side_stopped_and_resumed_is_what_each_is_alone(arms, tmp_path, monkeypatch):
    alone, code = run(arms, tmp_path / "alone", 1)
    assert code == 0

    begin, said, both_began = loop._Run._step_for, [], threading.Barrier(2)

    def stopping(self, batch, current, *rest):
        if int(current.step) == 1:
            both_began.wait(timeout=60)
            os.kill(os.getpid(), signal.SIGTERM)
        return begin(self, batch, current, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_step_for", stopping)
        stopped, code = run(arms, tmp_path / "together", 2, said)
    assert code == 128 + signal.SIGTERM
    assert any("SIGTERM: saving" in line for line in said)
    assert all(0 < stopped[name].steps < 4 for name in arms)

    kept = []
    resumed, code = run(arms, tmp_path / "together", 2, kept=kept)
    assert code == 0 and set(kept) == set(resumed) == set(arms)
    for name, outcome in alone.items():
        assert outcome.tokens == resumed[name].tokens
        jax.tree.map(np.testing.assert_array_equal, outcome.params, resumed[name].params)


def test_an_arm_that_fails_stops_the_other_which_saves(arms, tmp_path, monkeypatch):
    begin = loop._Run._step_for

    def failing(self, batch, current, *rest):
        if self.experiment.seed == 1:
            raise UserError("the disk is full")
        return begin(self, batch, current, *rest)

    long = dataclasses.replace(arms["distilled"].training, steps=100_000, checkpoint_every=100_000)
    arms["distilled"] = dataclasses.replace(arms["distilled"], training=long)
    monkeypatch.setattr(loop._Run, "_step_for", failing)
    with pytest.raises(UserError, match="the disk is full"):
        run(arms, tmp_path, 2)
    steps = [p.name for p in (tmp_path / "distilled" / "checkpoints").iterdir() if p.is_dir()]
    assert len(steps) == 1


def test_several_hosts_take_turns(arms, tmp_path, monkeypatch):
    monkeypatch.setattr(side_by_side, "jax", SimpleNamespace(process_count=lambda: 2))
    with pytest.raises(UserError, match="arms_at_once is 2, but hosts"):
        run(arms, tmp_path, 2)
