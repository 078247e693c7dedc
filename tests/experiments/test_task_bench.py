"""What holds the runs of a task of `experiments.task_results` together, without making any."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from distilflax.errors import UserError
from distilflax.tasks.settings import default_config, from_values
from experiments import task_bench
from experiments.task_bench import Bench, check_given, check_run, parts_of

READ = {"model": "m", "train": "a", "dev": "b", "test": "c"}
QUIET = lambda _: None  # noqa: E731
MODELS = {"teacher": "t", "copied": "c", "distilled": "d"}


@pytest.fixture
def bench(tmp_path):
    """SubjQA, whose models are put to other data too."""
    run = from_values(default_config("answering"))
    return Bench("subjqa", run, run, tmp_path, [1e-4])


def taught_of(run):
    """The same with a teacher that speaks on more texts."""
    values = dataclasses.asdict(run)
    values["distillation"]["teacher"] = "t"
    values["data"]["unlabelled"] = "more.json"
    return from_values(values)


def changed(bench, group, **values):
    """The same task with other values of its config."""
    part = dataclasses.replace(getattr(bench.run, group), **values)
    return dataclasses.replace(bench, run=dataclasses.replace(bench.run, **{group: part}), data={})


def test_runs_of_a_task_are_of_the_same_data(bench):
    bench.check_data(parts_of(READ, bench.run), Path("teacher/seed0"))
    bench.check_data(parts_of(READ, bench.run), Path("teacher/seed1"))
    bench.check_data(parts_of({"model": "m"}, bench.run), Path("older"))
    for part in ("train", "dev", "test"):
        other = parts_of(READ | {part: "other"}, bench.run)
        with pytest.raises(UserError, match=f"teacher/seed0 and new are of different {part} data"):
            bench.check_data(other, Path("new"))
        with pytest.raises(UserError, match=f"teacher/seed0 is of other {part} data than .* DATA"):
            bench.check_coming(other, "DATA")
    # Of taught students more texts are training data, and have to be the same among them.
    taught = taught_of(bench.run)
    bench.check_data(parts_of(READ | {"train": "more"}, taught), Path("taught/seed0"))
    with pytest.raises(UserError, match="taught/seed0 and taught/seed1 are of different train"):
        bench.check_data(parts_of(READ, taught), Path("taught/seed1"))
    with pytest.raises(UserError, match="teacher/seed0 and taught/seed2 are of different test"):
        bench.check_data(
            parts_of(READ | {"test": "d", "train": "more"}, taught), Path("taught/seed2")
        )


@pytest.mark.parametrize(
    ("given", "rates", "by"),
    [
        ("seed=1", False, "--seeds"),
        ("model.path=m", False, "--teacher and --distilled"),
        ("data.folder=d", False, "--data"),
        ("training.seeds=2", False, "--seeds"),
        ("distillation.teacher=t", False, "the fine-tuned --teacher"),
        ("optimizer.learning_rate=1e-4", True, "--rates"),
    ],
)
def test_what_the_command_decides_is_given_to_it_alone(given, rates, by):
    key = given.partition("=")[0]
    with pytest.raises(UserError, match=f"--set=sst2.{given}: {key} is decided by {by}; leave"):
        check_given(given, f"--set=sst2.{given}", rates=rates)
    check_given("optimizer.learning_rate=1e-4", "--set=...", rates=False)
    check_given("training.epochs=2.0", "--set=...", rates=True)


@pytest.mark.parametrize(
    ("group", "change", "says"),
    [
        ("training", {"mode": "probe"}, "training.mode of sst2 is 'probe', and whole models"),
        ("data", {"test": ""}, "data.test of sst2 is empty; give the file"),
    ],
)
def test_a_config_that_models_cannot_be_put_to_is_refused(bench, group, change, says):
    check_run("sst2", bench.run)
    part = dataclasses.replace(getattr(bench.run, group), **change)
    with pytest.raises(UserError, match=says):
        check_run("sst2", dataclasses.replace(bench.run, **{group: part}))


def test_what_was_measured_is_of_the_data_of_the_runs(bench, tmp_path):
    bench.check_data(parts_of(READ, bench.run), Path("teacher/seed0"))
    path, found = tmp_path / "measured.json", measured_before(bench)
    path.write_text(json.dumps(found))
    assert task_bench.measured(bench, 0, MODELS, None, None, make=False) == found
    path.write_text(json.dumps(found | {"data": {"test": {"examples": 1, "fingerprint": "d"}}}))
    with pytest.raises(UserError, match=r"seed0 and .*measured.json are of different test data"):
        task_bench.measured(bench, 0, MODELS, None, None, make=False)
    path.unlink()
    ready = SimpleNamespace(fingerprints=READ | {"dev": "d"})
    with pytest.raises(UserError, match="teacher/seed0 is of other dev data than"):
        task_bench.measured(bench, 0, MODELS, Path, lambda: ready, make=True)


def measured_before(bench):
    """What an earlier command left."""
    return {
        "made_of": task_bench._made_of(bench.run, MODELS),
        "seconds_per_1000": {},
        "data": {"test": {"examples": 1, "fingerprint": "c"}},
    }


def test_what_was_measured_is_of_the_config_and_the_models(bench, tmp_path):
    path, found = tmp_path / "measured.json", measured_before(bench)
    path.write_text(json.dumps(found))
    kept = (
        changed(bench, "optimizer", learning_rate=1e-3),
        changed(bench, "training", epochs=9.0),
        changed(bench, "data", folder="where they are now"),
        changed(bench, "model", path="of an arm"),
    )
    for same in kept:
        assert task_bench.measured(same, 0, MODELS, None, None, make=False) == found
    others = {
        "data.fraction": changed(bench, "data", fraction=0.1),
        "data.max_length": changed(bench, "data", max_length=64),
        "training.batch_size": changed(bench, "training", batch_size=7),
        "options.unanswerable": dataclasses.replace(
            bench,
            run=dataclasses.replace(bench.run, options=bench.run.options | {"unanswerable": True}),
        ),
    }
    for key, other in others.items():
        says = rf"measured.json was measured with another {key} than .*; delete it, and the same"
        with pytest.raises(UserError, match=says):
            task_bench.measured(other, 0, MODELS, None, None, make=True)
    with pytest.raises(UserError, match="measured with another model called distilled than"):
        new = MODELS | {"distilled": "longer trained"}
        task_bench.measured(bench, 0, new, None, None, make=False)
    # One that does not say it counts as none.
    path.write_text(json.dumps({"seconds_per_1000": {}, "data": {}}))
    assert task_bench.measured(bench, 0, MODELS, None, None, make=False) == {}


def test_it_is_measured_when_the_last_model_has_ended_whoever_made_it(bench, tmp_path, monkeypatch):
    part = SimpleNamespace(examples=["question"])
    parts = {"train": part, "dev": part, "test": part}
    ready = SimpleNamespace(fingerprints=READ, notes=["a note"], **parts)
    loaded = []

    def load(path, name, run, examples):
        assert run is bench.run and examples == ["question"]
        loaded.append((name, path))
        return SimpleNamespace(predict=None)

    monkeypatch.setattr(task_bench.fine_tuned, "load", load)
    monkeypatch.setattr(task_bench.fine_tuned, "seconds", lambda answers, asked: [2.0] * 3)
    monkeypatch.setattr(task_bench.classic, "baseline", lambda *given: None)
    monkeypatch.setattr(task_bench.data, "learned_from", lambda *given: [])
    there = {"teacher": Path("t"), "copied": None, "distilled": Path("d")}
    assert task_bench.measured(bench, 0, MODELS, there.get, None, make=True) == {}
    there["copied"] = Path("c")
    assert task_bench.measured(bench, 0, MODELS, there.get, None, make=False) == {}
    (tmp_path / "measured.json").write_text(json.dumps({"seconds_per_1000": {}}))  # of before
    found = task_bench.measured(bench, 0, MODELS, there.get, lambda: ready, make=True)
    assert loaded == [(arm, f"{path}/model") for arm, path in there.items()]
    assert found["seconds_per_1000"] == dict.fromkeys(there, 2.0)
    assert found["notes"] == ["subjqa: a note"]
    assert json.loads((tmp_path / "measured.json").read_text()) == found
    assert task_bench.measured(bench, 0, MODELS, there.get, None, make=True) == found


def test_figures_on_other_data_say_of_which_they_are_and_whose(bench, tmp_path, monkeypatch):
    class Reader:
        """Of a folder with one example."""

        def __init__(self, run, say):
            del run, say

        def examples(self, task, name, file):
            del task, name, file
            return ["question"]

        def checked(self, task, name, examples):
            del task, name
            return examples

    @dataclasses.dataclass
    class Task:
        unanswerable: bool = True

        def metrics(self, predictions, examples):
            assert predictions == examples == ["question"] and not self.unanswerable
            return {"f1": 50.0}

    @dataclasses.dataclass
    class Model:
        task: Task = dataclasses.field(default_factory=Task)
        predict: object = staticmethod(list)

    monkeypatch.setattr(task_bench.data, "Reader", Reader)
    monkeypatch.setattr(task_bench.data, "fingerprint", lambda examples: "abc")
    monkeypatch.setattr(task_bench.fine_tuned, "load", lambda *given: Model())
    folders = [tmp_path / f"seed{i}" for i in range(3)]
    for folder in folders:
        folder.mkdir()
    trained = {str(folder / "model"): f"of {folder.name}" for folder in folders}

    def load(path, *, with_task_head):
        assert with_task_head
        return SimpleNamespace(fingerprint=trained[path], params={})

    monkeypatch.setattr(task_bench.weights, "load", load)

    def measure(folder, make=True):
        return task_bench.on_other_data(bench, folder, bench.run, tmp_path, QUIET, make=make)

    assert measure(folders[0], make=False) is None
    for make in (True, False):  # Made, then read.
        assert measure(folders[0], make=make) == {"f1": 0.5}
    found = json.loads((folders[0] / "xquad.json").read_text())
    assert found["data"] == {"xquad": "abc"}
    assert found["made_of"] == {"model": "of seed0", "head": ""}
    # One that does not say it is made anew.
    (folders[1] / "xquad.json").write_text(json.dumps({"f1": 40.0}))
    assert measure(folders[1], make=False) is None
    assert measure(folders[1]) == {"f1": 0.5}
    trained[str(folders[1] / "model")] = "trained again"
    with pytest.raises(UserError, match=r"seed1/xquad.json was measured with another model than"):
        measure(folders[1])
    other = {"data": {"xquad": "d"}, "made_of": {"model": "of seed2", "head": ""}}
    (folders[2] / "xquad.json").write_text(json.dumps({"f1": 40.0} | other))
    with pytest.raises(UserError, match=r"seed0/xquad.json and .*seed2/.* of different xquad data"):
        measure(folders[2])
    monkeypatch.setattr(task_bench.data, "fingerprint", lambda examples: "d")
    (folders[2] / "xquad.json").unlink()
    with pytest.raises(UserError, match=r"seed0/xquad.json is of other xquad data than"):
        measure(folders[2])
