"""Whole runs, tiny: going on after a stop is bitwise the run that was never stopped."""

import contextlib
import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import models, settings, weights
from distilflax.errors import UserError
from distilflax.text import on_disk
from distilflax.text import tokenizer as text_tokenizer
from distilflax.train import head, loop, regression
from distilflax.train.setup import new_student, prepare
from distilflax.weights import surgery


def materials_of(which):
    return prepare(which, [which], lambda _: None)


def lines_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory):
    """(experiment, materials, folder, outcome) of a run over all devices that was never stopped."""
    which = experiment(student={"num_layers": 1})
    folder = tmp_path_factory.mktemp("whole")
    materials = materials_of(which)
    return which, materials, folder, loop.train(which, materials, folder)


def test_a_stopped_run_goes_on_to_the_same_bits(whole, tmp_path, monkeypatch):
    which, materials, folder, never_stopped = whole

    # A real SIGTERM, sent while the third step is under way.
    begin, calls = loop._Run._step_for, []

    def stopping(self, *args):
        calls.append(None)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return begin(self, *args)

    monkeypatch.setattr(loop._Run, "_step_for", stopping)
    stopped = loop.train(which, materials, tmp_path)
    assert (stopped.steps, stopped.exit_code) == (3, 128 + signal.SIGTERM)
    monkeypatch.undo()
    resumed = loop.train(which, materials, tmp_path)

    assert (resumed.steps, resumed.exit_code) == (6, 0)
    assert resumed.tokens == never_stopped.tokens
    jax.tree.map(np.testing.assert_array_equal, resumed.params, never_stopped.params)
    shown = [[line["loss"] for line in lines_of(f)] for f in (folder, tmp_path)]
    assert shown[0] == shown[1]
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_mesh_of_three_axes_changes_nothing_but_rounding(whole, tmp_path):
    """Its step was compiled for the first state, so the later ones must lie as that did."""
    which, materials, folder, _ = whole
    loop.train(dataclasses.replace(which, mesh=settings.Mesh(2, 2, 2)), materials, tmp_path)
    ours, theirs = ([line["loss"] for line in lines_of(f)] for f in (tmp_path, folder))
    assert len(ours) == 6
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_a_finished_run_is_not_run_again(whole):
    which, materials, folder, first = whole
    lines = lines_of(folder)
    again = loop.train(which, materials, folder)
    assert (again.steps, again.tokens) == (6, first.tokens)
    assert lines_of(folder) == lines
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)


def test_a_workdir_of_another_config_is_refused(whole):
    which, materials, folder, _ = whole
    other = dataclasses.replace(which, seed=7)
    with pytest.raises(UserError, match=r"seed is 0 there and 7 here"):
        loop.train(other, materials, folder)


def test_a_workdir_of_other_texts_or_another_teacher_is_refused(whole):
    which, materials, folder, _ = whole
    corpus = dataclasses.replace(materials.corpus, fingerprint="0" * 16)
    with pytest.raises(UserError, match="was begun with another text under the same name"):
        loop.train(which, dataclasses.replace(materials, corpus=corpus), folder)
    teacher = dataclasses.replace(materials.teacher, fingerprint="0" * 64)
    with pytest.raises(UserError, match="was begun with another teacher under"):
        loop.train(which, dataclasses.replace(materials, teacher=teacher), folder)


@pytest.mark.usefixtures("one_device")
def test_held_out_batches_are_no_larger_than_a_micro_batch(small, tmp_path, monkeypatch):
    which = small(training={"steps": 2, "evaluate_every": 2, "accumulate": 2})
    rows, drawn = [], loop._Run._draw_held_out

    def counted(self):
        for batch in drawn(self):
            rows.append(batch["input_ids"].shape[0])
            yield batch

    monkeypatch.setattr(loop._Run, "_draw_held_out", counted)
    loop.train(which, materials_of(which), tmp_path)
    assert set(rows) == {which.training.batch_size // 2}


@pytest.mark.usefixtures("one_device")
def test_a_learning_rate_beyond_reason_stops_and_names_the_step(small, tmp_path):
    which = small(
        optimizer={"learning_rate": 1e30, "clip_norm": 0.0},
        training={"evaluate_every": 0},
    )
    with pytest.raises(UserError, match=r"step \d: .* is (nan|inf)"):
        loop.train(which, materials_of(which), tmp_path)


def test_the_fitted_head_is_kept_and_found_again(experiment):
    which = experiment(head_fit={"tokens": 300})
    said = []
    first = prepare(which, [which], said.append).teacher.params["mlm_head"]
    assert len(said) == 2
    again = prepare(which, [which], said.append).teacher.params["mlm_head"]
    assert len(said) == 2, "fitted a second time"
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_a_head_that_another_command_fitted_meanwhile_is_taken(experiment, monkeypatch):
    fitted = materials_of(experiment()).teacher.params["mlm_head"]
    waited = []

    @contextlib.contextmanager
    def after_another(path, what):
        with on_disk.exclusive(path, what):
            waited.append(path)
            head._write(path.with_suffix(".safetensors"), fitted)
            yield

    monkeypatch.setattr(head, "exclusive", after_another)
    which, said = experiment(head_fit={"tokens": 301}), []
    found = prepare(which, [which], said.append).teacher.params["mlm_head"]
    assert len(waited) == 1 and not said, "fitted a second time"
    jax.tree.map(np.testing.assert_array_equal, found, fitted)


def test_own_head_is_asked_for_where_there_is_none(experiment):
    which = experiment(teacher={"mlm_head": "own"})
    with pytest.raises(UserError, match="has no masked-LM head"):
        materials_of(which)


def test_sequences_beyond_the_teachers_positions_are_refused(experiment):
    which = experiment(data={"max_length": 32, "buckets": (32,)})
    with pytest.raises(UserError, match="max_length is 32 but the teacher has 24 positions"):
        materials_of(which)


def test_a_student_deeper_than_its_teacher_is_refused_before_the_text_is_read(experiment):
    which = experiment(student={"num_layers": 9}, data={"sources": "nowhere.txt"})
    with pytest.raises(UserError, match="layer"):
        materials_of(which)


def hidden_of(materials, encoder, params):
    sequences = materials.corpus.validation
    ids = np.stack([np.resize(sequences[i], 8) for i in range(16)]).astype(np.int32)
    out = models.encode(
        encoder, settings.Compute(), params["encoder"], jnp.asarray(ids), jnp.ones_like(ids)
    )
    return np.asarray(out["last_hidden_state"])


def test_regression_brings_the_copied_student_nearer_to_its_teacher(experiment):
    copied, regressed = (
        experiment(student={"num_layers": 2, "init": init, "regression_tokens": 1000})
        for init in ("teacher", "regressed")
    )
    materials = materials_of(copied)
    teacher = hidden_of(materials, materials.teacher.encoder, materials.teacher.params)
    far, near = (
        np.square(hidden_of(materials, *new_student(which, materials)) - teacher).mean()
        for which in (copied, regressed)
    )
    assert near < 0.6 * far


def test_what_a_norm_multiplies_by_nothing_stays_as_it_was():
    key = jax.random.split(jax.random.key(0), 4)
    x, residual, target = (jax.random.normal(k, (2, 3, 4)) for k in key[:3])
    linear = {"kernel": jax.random.normal(key[3], (4, 4)), "bias": jnp.zeros(4)}
    norm = {"scale": jnp.array([1.0, 0.0, 2.0, 1.0]), "bias": jnp.zeros(4)}
    real = jnp.ones((2, 3), bool)
    _, xy = regression._moments(x, linear, residual, norm, target, real)
    assert np.isfinite(xy).all()
    ones = jnp.concatenate([x, jnp.ones((2, 3, 1))], axis=-1).reshape(-1, 5)
    present = (x @ linear["kernel"]).reshape(-1, 4)[:, 1]
    np.testing.assert_allclose(xy[:, 1], ones.T @ present, rtol=1e-4, atol=1e-5)


def test_regression_leaves_a_student_with_all_layers_as_it_is(experiment):
    which = experiment(student={"num_layers": 4, "init": "regressed", "regression_tokens": 500})
    materials = materials_of(which)
    encoder, params = surgery.make_student(
        materials.teacher.encoder, materials.teacher.params, which.student, jax.random.key(0)
    )
    refitted = regression.regress(which, materials.teacher, encoder, params, materials.corpus.train)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), refitted, params)


def test_a_narrower_student_is_cut_and_goes_on_from_its_folder(experiment, tmp_path):
    sizes = {"num_layers": 2, "hidden_size": 8, "regression_tokens": 300}
    terms = {name: {"weight": 0.0} for name in ("kl", "mlm")}
    terms["cosine"] = {"weight": 1.0, "projection": "shared"}
    which = experiment(student=sizes, losses=terms)
    materials = materials_of(which)
    encoder, params = new_student(which, materials)
    assert (encoder.hidden_size, encoder.num_heads, encoder.intermediate_size) == (8, 1, 16)
    assert params["encoder"]["layers_1"]["ffn"]["down"]["kernel"].shape == (16, 8)

    folder = tmp_path / "model"
    weights.save(folder, encoder, params, tokenizer_folder=materials.teacher.folder)
    again = experiment(student={"num_layers": 2, "path": str(folder)}, losses=terms)
    _, found = new_student(again, materials_of(again))
    jax.tree.map(np.testing.assert_array_equal, found["encoder"], params["encoder"])
    text_tokenizer.train(lambda: ["aa bb ab ba"] * 9, folder, encoder.vocab_size, min_frequency=1)
    with pytest.raises(UserError, match=r"student\.path .* has another tokenizer"):
        materials_of(again)

    without = experiment(student=sizes, losses=terms | {"cosine": {"weight": 1.0}})
    with pytest.raises(UserError, match=r"losses\.cosine compares vectors of 8 .*projection="):
        materials_of(without)
    wider = experiment(student=sizes | {"hidden_size": 32}, losses=terms)
    with pytest.raises(UserError, match="hidden_size is 32 but the teacher's is 16"):
        materials_of(wider)
