"""What a run does when its training is over, without training."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from distilflax.errors import UserError
from distilflax.tasks import finetune
from distilflax.tasks.data import prepare
from distilflax.tasks.settings import Training
from distilflax.tasks.stage import is_due
from distilflax.tasks.teacher import Teaching
from distilflax.train.state import State
from distilflax.train.workdir import open_workdir

NOBODY = Teaching(None, None)


@pytest.fixture
def given(write, settings_of):
    """(the settings, the materials) of a run."""
    for name in ("train.tsv", "dev.tsv"):
        folder = write(name, "text\tlabel\ngood\t1\nbad\t0\n").parent
    run = settings_of("classification", folder)
    return run, prepare(run, lambda text: None)


@pytest.mark.usefixtures("one_device")
def test_a_damaged_best_state_names_the_folder_to_delete(given, tmp_path, monkeypatch):
    """Every start of the same command would end there, though the last state is good."""
    current = State(jnp.int32(1), {"weight": jnp.zeros(3)}, ())
    folder = tmp_path / "runs" / "seed0"
    best = folder / "checkpoints" / "1"

    def train(stage, workdir, checkpoints, peak):
        for step, score in ((1, 0.9), (2, 0.5)):
            checkpoints.save(step, current, record={}, iterator={}, metrics={"score": score})
        checkpoints.wait()
        some = next(path for path in best.glob("arrays/**/*") if path.is_file())
        some.write_bytes(b"")
        return current, {}, 0

    one = SimpleNamespace(stage=SimpleNamespace(like=current))
    monkeypatch.setattr(finetune, "_Run", lambda *_: one)
    monkeypatch.setattr(finetune, "train", train)
    with pytest.raises(UserError) as told:
        finetune.finetune(*given, folder, NOBODY)
    said = str(told.value)
    assert said.startswith(f"{best}, the run's best state, is damaged: ")
    assert said.endswith(f"delete {folder}, and the same command trains that run again.")


def test_what_a_killed_run_left_beside_its_result_is_removed(given, tmp_path):
    run, materials = given
    with open_workdir(tmp_path / "run", run) as workdir:
        result = {"seed": 0, "metric": "accuracy", "dev": {"accuracy": 1.0}}
    folder = workdir.folder
    for name in ("model", "checkpoints/3", "intermediate/checkpoints/7"):
        (folder / name).mkdir(parents=True)
    (folder / "intermediate" / "metrics.jsonl").touch()
    (folder / "result.json").write_text(json.dumps(result))
    outcome = finetune.finetune(run, materials, folder, NOBODY)
    assert outcome == finetune.Outcome(result)
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert not any("checkpoints" in name for name in left)
    assert {"model", "intermediate/metrics.jsonl"} <= left
    # A run that lost its model may need them.
    (folder / "checkpoints").mkdir()
    (folder / "model").rmdir()
    with pytest.raises(UserError, match="its model/ is gone"):
        finetune.finetune(run, materials, folder, NOBODY)
    assert (folder / "checkpoints").is_dir()


def test_what_is_no_whole_number_of_steps_is_measured_at_the_nearest():
    def due(every, last):
        return [step for step in range(1, last + 1) if is_due(step, every)]

    assert due(2.4, 10) == [2, 5, 7, 10]  # An epoch of 77 rows in batches of 32.
    assert due(33 / 32, 10) == [*range(1, 11)]
    assert due(7.0000001, 29) == [7, 14, 21, 28] and due(0.3, 3) == [1, 2, 3]


def test_few_rows_are_seen_more_often_and_measured_as_often():
    training = Training(epochs=3.0, evaluate_epochs=0.5, min_steps=120)
    assert training.steps(70 / 32) == (120, pytest.approx(20.0))  # 7 steps by their epochs
    assert training.steps(80.0) == (240, 40.0)
    assert Training(epochs=0.1).steps(1.0)[0] == 1
