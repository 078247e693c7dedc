"""Whole runs, tiny: learning, early stopping, resuming, teachers, low data, probes."""

import dataclasses
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from distilflax import weights
from distilflax.errors import UserError
from distilflax.tasks import TASKS, data, finetune, stage, teacher
from distilflax.tasks.data import prepare, training_rows
from distilflax.tasks.probe import probe
from distilflax.tasks.task import Task
from distilflax.tasks.teacher import teaching_of
from distilflax.train import sharding
from distilflax.weights.sentence import SentenceFiles

GOOD = ["very good film", "good film", "film was good", "good good", "birds sang good"]
BAD = ["very bad film", "bad film", "film was bad", "bad bad", "birds sang bad"]
QUIET = lambda _: None  # noqa: E731


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A folder of a task so easy that a few steps learn it."""
    folder = tmp_path_factory.mktemp("films")
    rows = ["text\tlabel"] + [f"{text}\t{y}" for y, ts in enumerate((BAD, GOOD)) for text in ts * 2]
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    (folder / "more.tsv").write_text("text\n" + "\n".join(GOOD[:3]) + "\n")
    (folder / "bad.tsv").write_text("text\tlabel\ngood\t7\nbad\nbad\t0\n")
    return folder


@pytest.fixture(scope="module")
def run_of(films, settings_of):
    """run_of(training={...}, ...) -> the settings of a run on `films`."""

    def make(**groups):
        training = {"batch_size": 8, "epochs": 12.0, "evaluate_epochs": 4.0}
        training |= groups.pop("training", {})
        return settings_of("classification", films, training=training, **groups)

    return make


def finish(run, folder):
    materials = prepare(run, QUIET)
    return finetune.finetune(run, materials, folder, teaching_of(run, materials, QUIET))


@pytest.fixture(scope="module")
def learned(run_of, tmp_path_factory):
    """(the settings, the outcome, the folder) of a run over all devices that learned the task, its
    parameters split by both axes that split them."""
    run = run_of(data={"test": "dev.tsv"}, mesh={"data": 2, "fsdp": 2, "tensor": 2})
    folder = tmp_path_factory.mktemp("learned") / "run"
    return run, finish(run, folder), folder


@pytest.mark.slow
def test_a_model_learns_is_saved_and_is_measured_once(learned):
    run, outcome, folder = learned
    result = outcome.result
    assert result["dev"]["accuracy"] == 1.0 == result["test"]["accuracy"]
    # Of 20 rows in batches of 8, which are 2.5 steps an epoch.
    assert [entry["step"] for entry in result["history"]] == [10, 20, 30]
    assert not (folder / "checkpoints").exists()
    saved = weights.load(folder / "model", with_task_head=True)
    assert saved.head.labels == ("0", "1") and saved.own["max_length"] == 16
    # The same command once more gives the same result, without training anything.
    assert finish(run, folder) == outcome
    with pytest.raises(UserError, match="belongs to another config: seed is 0 there and 1 here"):
        finish(dataclasses.replace(run, seed=1), folder)


@pytest.mark.slow
def test_a_folder_is_of_one_model_and_data(learned):
    run, outcome, folder = learned
    materials = prepare(run, QUIET)
    model = data.fingerprints_of_model(materials.checkpoint, materials.words)
    assert finetune.ended(run, folder, model) == outcome.result
    for name in ("model", "tokenizer"):
        with pytest.raises(UserError, match=f"was begun with another {name} under the same name"):
            finetune.ended(run, folder, model | {name: "0" * 64})
    train = dataclasses.replace(materials.train, examples=materials.train.examples[1:])
    other = dataclasses.replace(materials, train=train)
    with pytest.raises(UserError, match="begun with another train under"):
        finetune.finetune(run, other, folder, teaching_of(run, other, QUIET))
    words = dataclasses.replace(materials.words, fingerprint="another")
    sentence = SentenceFiles(pooling="cls")
    checkpoint = dataclasses.replace(materials.checkpoint, sentence=sentence)
    other = dataclasses.replace(materials, words=words, checkpoint=checkpoint)
    with pytest.raises(UserError, match="another tokenizer and way of making vectors under"):
        finetune.finetune(run, other, folder, teaching_of(run, other, QUIET))
    # A teacher whose labels were put in another order says other things.
    taught = weights.load(folder / "model", with_task_head=True)
    turned = dataclasses.replace(taught.head, labels=taught.head.labels[::-1])
    others = [taught, dataclasses.replace(taught, head=turned)]
    assert len({teacher._fingerprint(one, materials.words) for one in others}) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda f: (f / "result.json").write_text('{"seed"'),
            r"result\.json is damaged .*; del",
        ),
        (lambda f: (f / "result.json").write_text("null"), r"result\.json is damaged .*; delete"),
        (lambda f: (f / "result.json").write_text("{}"), r"result\.json is damaged .*; delete"),
        (lambda f: shutil.rmtree(f / "model"), r"model/ is gone; delete .*result\.json, and"),
        (
            lambda f: (f / "sources.json").write_text(""),
            r"sources\.json is dam.*; delete .*run,",
        ),
        (lambda f: (f / "sources.json").write_text("{}"), r"has no model\); delete .*run, and"),
    ],
)
def test_a_run_that_lost_what_it_left_has_not_ended(learned, tmp_path, damage, says):
    run, _, folder = learned
    there = shutil.copytree(folder, tmp_path / "run")
    damage(there)
    for again in (lambda: finish(run, there), lambda: finetune.ended(run, there, {})):
        with pytest.raises(UserError, match=says):
            again()


@pytest.mark.slow
def test_a_head_is_kept_in_the_order_of_the_data_or_refused(learned, run_of):
    folder = learned[2] / "model"
    saved = weights.load(folder, with_task_head=True).params["task_head"]["classifier"]
    run = run_of(model={"path": str(folder), "keep_head": True}, options={"labels": ("1", "0")})
    kept = finetune.starting_model(run, prepare(run, QUIET)).params["task_head"]["classifier"]
    np.testing.assert_array_equal(kept["bias"], saved["bias"][::-1])
    materials = prepare(run, QUIET)
    task = dataclasses.replace(materials.task, labels=("bad", "good"))
    with pytest.raises(UserError, match="is not one of the labels bad, good"):
        finetune.starting_model(run, dataclasses.replace(materials, task=task))


def test_thresholds_are_those_of_the_development_data(run_of, films, tmp_path):
    """There most is out of scope, and it is best to reject everything; on the test data little."""
    rows = {"train": (films / "train.tsv").read_text()}
    rows["dev"] = "text\tlabel\n" + "good film\toos\n" * 3 + "good film\t0\n"
    rows["test"] = "text\tlabel\n" + "good film\t0\n" * 3 + "good film\toos\n"
    for name, text in rows.items():
        (tmp_path / f"{name}.tsv").write_text(text)
    data = {"folder": str(tmp_path), "test": "test.tsv"}
    run = run_of(data=data, options={"out_of_scope": "oos"})
    materials = prepare(run, QUIET)
    mesh = sharding.make_mesh(run.mesh, run.training.batch_size)
    start, kept = finetune.starting_model(run, materials), training_rows(materials, 1.0, 0)
    with jax.set_mesh(mesh):
        one = finetune._Run(run, materials, None, start, kept, mesh)
    one.runner = lambda params, features: [np.array([1.0, 0.0])] * len(features.ids)
    task, result = one.result({}, 1, {"history": [{"step": 1}], "seconds": 0.0, "rows": 0})
    assert result["dev"]["accuracy"] == 0.75 and result["test"]["accuracy"] == 0.25
    assert result["test"]["out_of_scope_recall"] == 1.0 and task.threshold > 0


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_the_best_state_is_saved_and_not_the_last_nor_measured_again(run_of, tmp_path, monkeypatch):
    given, heads = iter([0.9, 0.5, 0.5]), []

    def of_dev(self, params):
        heads.append(jax.device_get(params["task_head"]))
        return self.task, {"accuracy": next(given)}

    monkeypatch.setattr(finetune._Run, "_of_dev", of_dev)
    run = run_of(training={"epochs": 1.1, "evaluate_epochs": 0.36})
    result = finish(run, tmp_path / "run").result
    assert [entry["accuracy"] for entry in result["history"]] == [0.9, 0.5, 0.5]
    assert result["best_step"] == result["history"][0]["step"] == 1
    assert result["dev"] == {"accuracy": 0.9}
    saved = weights.load(tmp_path / "run" / "model", with_task_head=True).params["task_head"]
    jax.tree.map(np.testing.assert_array_equal, saved, heads[0])
    assert not np.array_equal(heads[2]["classifier"]["kernel"], heads[0]["classifier"]["kernel"])


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_stopped_run_goes_on_to_the_same_bits(run_of, tmp_path, monkeypatch):
    run = run_of(training={"epochs": 6.0, "evaluate_epochs": 2.0})
    whole = finish(run, tmp_path / "whole").result
    stopping = finetune.batches.collate
    calls = []

    def collate(*arguments, **options):
        calls.append(options.get("teacher", "running"))
        if len([c for c in calls if c is None]) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return stopping(*arguments, **options)

    # In a context of its own: `undo` would give the resumed run all eight devices again.
    with monkeypatch.context() as patch:
        patch.setattr(finetune.batches, "collate", collate)
        assert finish(run, tmp_path / "parts").exit_code == 128 + signal.SIGTERM
    resumed = finish(run, tmp_path / "parts").result
    assert resumed["history"] == whole["history"]
    one, two = (
        weights.load(tmp_path / name / "model", with_task_head=True) for name in ("whole", "parts")
    )
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)


def test_training_ends_when_it_brings_nothing():
    scores = [0.5, 0.7, 0.7, 0.6]
    found = [stage.is_over(scores[:n], 2) for n in range(5)]
    assert found == [False, False, False, False, True]
    assert not stage.is_over(scores, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_task_teacher_teaches_what_has_no_label(learned, run_of, tmp_path):
    run = run_of(
        seed=3,
        data={"unlabelled": "more.tsv"},
        # Nothing but the teacher is learned from.
        distillation={"teacher": str(learned[2] / "model"), "weight": 1.0},
    )
    materials = prepare(run, QUIET)
    assert materials.labelled == 20 and len(materials.train.examples) == 23
    teacher = teaching_of(run, materials, QUIET)
    assert len(teacher.logits) == 23 and teacher.layers is None
    student = finetune.finetune(run, materials, tmp_path / "student", teacher)
    assert student.result["dev"]["accuracy"] >= 0.9
    lines = (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()
    shown = [json.loads(line) for line in lines]
    steps = [line for line in shown if line["kind"] == "train"]
    assert all(line["loss"] == pytest.approx(line["loss/teacher"]) for line in steps)
    assert steps[-1]["loss/teacher"] < steps[0]["loss/teacher"]


def test_a_teacher_of_other_labels_or_none_is_refused(run_of, model_folder, tmp_path):
    run = run_of(distillation={"teacher": str(model_folder)})
    materials = prepare(run, QUIET)
    with pytest.raises(UserError, match="has no head, so it was not fine-tuned"):
        teaching_of(run, materials, QUIET)
    for labels, sentence in ((("0", "x"), "0|x|1"), (("1", "0"), None)):
        task = dataclasses.replace(materials.task, labels=labels)
        one = dataclasses.replace(materials, task=task)
        encoder, head, params = finetune.starting_model(run, one)
        folder = tmp_path / "-".join(labels)
        weights.save(folder, encoder, params, tokenizer_folder=model_folder, head=head)
        taught = dataclasses.replace(
            run, distillation=dataclasses.replace(run.distillation, teacher=str(folder))
        )
        if sentence:
            with pytest.raises(UserError, match="do not have the same labels"):
                teaching_of(taught, materials, QUIET)
            continue
        # Its labels stand in another order: they are put into the student's.
        turned, straight = (teaching_of(taught, m, QUIET).logits for m in (materials, one))
        np.testing.assert_array_equal(np.stack(turned), np.stack(straight)[:, ::-1])


def test_a_teacher_without_names_is_taken_as_it_stands_and_that_is_said(
    run_of, model_folder, tmp_path
):
    run, said = run_of(distillation={"teacher": str(tmp_path / "t")}), []
    materials = prepare(run, QUIET)
    task = dataclasses.replace(materials.task, labels=("LABEL_0", "LABEL_1"))
    encoder, head, params = finetune.starting_model(run, dataclasses.replace(materials, task=task))
    weights.save(tmp_path / "t", encoder, params, tokenizer_folder=model_folder, head=head)
    teaching_of(run, materials, said.append)
    assert "does not name its labels; they are taken for 0, 1, in this order" in said[0]


def test_a_number_is_a_number_whatever_it_is_called(run_of, model_folder, tmp_path):
    run = run_of(options={"problem": "regression"}, distillation={"teacher": str(tmp_path / "t")})
    materials = prepare(run, QUIET)
    task = dataclasses.replace(materials.task, labels=("similarity",))
    encoder, head, params = finetune.starting_model(run, dataclasses.replace(materials, task=task))
    weights.save(tmp_path / "t", encoder, params, tokenizer_folder=model_folder, head=head)
    raw = teaching_of(run, materials, QUIET).logits
    # One whose numbers go through a sigmoid teaches what comes out of that.
    head = dataclasses.replace(head, activation="sigmoid")
    weights.save(tmp_path / "t", encoder, params, tokenizer_folder=model_folder, head=head)
    told = teaching_of(run, materials, QUIET).logits
    np.testing.assert_allclose(told, jax.nn.sigmoid(np.stack(raw)), rtol=1e-5)
    model = {"path": str(tmp_path / "t"), "keep_head": True}
    run = run_of(options={"problem": "regression"}, model=model)
    with pytest.raises(UserError, match=r"goes through sigmoid; set config.options.activation="):
        finetune.starting_model(run, prepare(run, QUIET))


def test_without_its_logits_only_what_has_a_label_is_compared(run_of):
    run = run_of(data={"unlabelled": "more.tsv"}, distillation={"teacher": "any"})
    materials = prepare(run, QUIET)
    rows = training_rows(materials, 1.0, 0)
    assert len(data.compared_rows(materials, rows, taught=True)) == len(rows) == 23
    assert len(data.compared_rows(materials, rows, taught=False)) == 20
    assert len(data.learned_from(materials, 0.1, 0)) == 2


def test_numbers_are_told_from_their_mean_on(run_of, films, tmp_path):
    for name in ("train", "dev"):
        rows = (films / f"{name}.tsv").read_text().replace("\t0", "\t30").replace("\t1", "\t50")
        (tmp_path / f"{name}.tsv").write_text(rows)
    run = run_of(options={"problem": "regression"}, data={"folder": str(tmp_path)})
    layers = finetune.starting_model(run, prepare(run, QUIET)).params["task_head"]
    assert layers["classifier"]["bias"].tolist() == [40.0]
    assert all(not layers[name]["bias"].any() for name in layers if name != "classifier")
    # Of the rows that a low-data run has, and of none where labels are to be told.
    few = dataclasses.replace(run, data=dataclasses.replace(run.data, fraction=0.1), seed=3)
    materials = prepare(few, QUIET)
    used = materials.train.features.targets["label"][training_rows(materials, 0.1, 3)]
    start = finetune.starting_model(few, materials).params["task_head"]["classifier"]["bias"]
    assert start.tolist() == [used.mean()] and used.mean() != 40.0
    labels = finetune.starting_model(run_of(), prepare(run_of(), QUIET)).params["task_head"]
    assert not labels["classifier"]["bias"].any()


def test_a_low_data_run_has_something_of_every_class(run_of):
    materials = prepare(run_of(), QUIET)
    few = [training_rows(materials, 0.1, seed) for seed in (0, 0, 1)]
    assert few[0].tolist() == few[1].tolist() != few[2].tolist()
    labels = materials.train.features.targets["label"]
    assert sorted(labels[few[0]]) == [0, 1]
    assert len(training_rows(materials, 1.0, 0)) == 20


def test_a_probe_reads_the_frozen_encoder(run_of):
    run = run_of(data={"test": "dev.tsv"})
    result = probe(run, prepare(run, QUIET))
    assert result["dev"]["accuracy"] == result["test"]["accuracy"] >= 0.9


@pytest.mark.parametrize("task", TASKS.values())
def test_no_option_hides_what_a_task_does(task):
    assert not {option.name for option in dataclasses.fields(task)} & set(vars(Task))


def test_a_file_that_is_read_twice_is_said(run_of):
    assert prepare(run_of(), QUIET).notes == []
    notes = prepare(run_of(data={"dev": "train.tsv", "test": "dev.tsv,train.tsv"}), QUIET).notes
    wanted = ["dev: train.tsv is train data too"]
    assert notes == [*wanted, *(f"test: train.tsv is {part} data too" for part in ("train", "dev"))]


def test_what_is_left_out_is_counted_and_said(run_of):
    run = run_of(data={"dev": "bad.tsv"})
    with pytest.raises(UserError, match=r"bad\.tsv line 3 has 1 columns"):
        prepare(run, QUIET)
    said = []
    run = run_of(data={"dev": "bad.tsv", "on_fault": "skip", "max_length": 8})
    materials = prepare(run, said.append)
    assert len(materials.dev.examples) == 1
    assert any("1 faulty record was skipped" in text and "line 3" in text for text in said)
    assert any("has the label '7'" in text for text in said)
    assert said == [text for text in said if text] and materials.notes


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ({"model": {"path": ""}}, "config.model.path is empty"),
        ({"data": {"folder": ""}}, "config.data.folder is empty"),
        ({"data": {"max_length": 64}}, "the model has 32 positions"),
        ({"data": {"train": ""}}, "config.data.train names no file"),
        ({"options": {"text": "sentence"}}, "no column 'sentence'.*choose from text, label"),
        ({"options": {"txt": "sentence"}}, "config.options.txt is not a setting"),
        ({"data": {"unlabelled": "more.tsv"}}, "is of use to a teacher alone"),
        ({"intermediate": {"epochs": 4.0}}, r"not by what; give a term"),
        (
            {"data": {"test": "more.tsv"}},
            r"no column 'label'.* To do without: --config\.data\.test=",
        ),
        ({"training": {"mode": "probes"}}, "choose from full, probe"),
        ({"task": "clasification"}, "did you mean 'classification'"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(run_of, groups, sentence):
    with pytest.raises(UserError, match=sentence):
        prepare(run_of(**groups), QUIET)


def test_a_column_that_no_record_has_is_named_however_faults_are_taken(run_of, tmp_path):
    rows = [json.dumps({"text": "good film", "label": "1"})] * 3
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    files = {"folder": str(tmp_path), "train": "t.jsonl", "dev": "t.jsonl", "on_fault": "skip"}
    with pytest.raises(UserError, match=r"train is left with no examples: .*no column 'txet'"):
        prepare(run_of(data=files, options={"text": "txet"}), QUIET)


def test_the_fingerprint_is_of_what_was_read(run_of):
    materials = prepare(run_of(), QUIET)
    assert data.fingerprint(materials.train.examples) == data.fingerprint(materials.dev.examples)
    assert data.fingerprint(materials.train.examples[:-1]) != data.fingerprint(
        materials.dev.examples
    )
