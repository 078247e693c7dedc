"""The stage on a task teacher's layers: what it trains, what it leaves alone, what it refuses."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distilflax import models, settings, weights
from distilflax.errors import UserError
from distilflax.models import TaskHead
from distilflax.tasks import finetune, intermediate
from distilflax.tasks.data import prepare, training_rows
from distilflax.tasks.settings import default_config, from_values
from distilflax.tasks.teacher import teaching_of
from distilflax.text import tokenizer as text_tokenizer
from distilflax.train import sharding
from distilflax.train.state import State

TEXTS = [("good film", "y"), ("bad film", "n"), ("the cat sat on a mat", "y"), ("dog ran", "n")]
QUIET = lambda _: None  # noqa: E731


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    rows = ["text\tlabel", *("\t".join(row) for row in TEXTS * 4)]
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, model_folder):
    """A wider and deeper model with a head for the films, without token types."""
    words = text_tokenizer.load(model_folder)
    encoder = settings.Encoder(
        vocab_size=words.vocab_size,
        hidden_size=24,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        max_positions=32,
        type_vocab_size=0,
        pooler=False,
    )
    params = jax.device_get(models.init(encoder, jax.random.key(5)))
    head = TaskHead("sequence", ("n", "y"))
    params["task_head"] = jax.device_get(models.init_head(head, encoder, jax.random.key(6)))
    folder = tmp_path_factory.mktemp("teacher") / "model"
    weights.save(folder, encoder, params, tokenizer_folder=model_folder, head=head)
    return folder


@pytest.fixture
def run_of(films, settings_of, teacher):
    def make(losses=None, **groups):
        terms = losses or {
            "attention_mse": {"weight": 1.0, "layers": "uniform_last"},
            "hidden_mse": {"weight": 3.0, "layers": "embeddings,final", "projection": "shared"},
        }
        optimizer = {"learning_rate": 1e-2, "schedule": "constant"}
        between = {"losses": terms, "epochs": 4.0, "optimizer": optimizer}
        groups = {"distillation": {"teacher": str(teacher)}} | groups
        return settings_of(
            "classification",
            films,
            intermediate=between,
            training={"batch_size": 8, "epochs": 1.0},
            **groups,
        )

    return make


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_the_stage_trains_the_layers_and_goes_on_where_it_was(run_of, tmp_path, monkeypatch):
    run = run_of()
    materials = prepare(run, QUIET)
    teacher = teaching_of(run, materials, QUIET)
    start = finetune.starting_model(run, materials)
    seen = {}
    learn = intermediate.learn

    def watched(*arguments):
        seen["model"], *rest = learn(*arguments)
        return seen["model"], *rest

    monkeypatch.setattr(intermediate, "learn", watched)
    stopping, calls = intermediate.to_global, []

    def to_global(*arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return stopping(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intermediate, "to_global", to_global)
        stopped = finetune.finetune(run, materials, tmp_path / "run", teacher)
    assert stopped.exit_code == 128 + signal.SIGTERM
    outcome = finetune.finetune(run, materials, tmp_path / "run", teacher)
    assert outcome.result["intermediate"]["steps"] == 8 and not outcome.exit_code
    lines = (tmp_path / "run" / "intermediate" / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if line["kind"] == "train"]
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert steps[-1]["loss"] < 0.8 * steps[0]["loss"]
    assert not list((tmp_path / "run").rglob("checkpoints"))

    # The labels' layers are as they were drawn, and what leads to them was trained.
    after = seen["model"].params
    for left in (("task_head",), ("encoder", "pooler")):
        one, two = (
            jax.tree.leaves(p[left[0]] if len(left) == 1 else p[left[0]][left[1]])
            for p in (start.params, after)
        )
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert set(after) == {"encoder", "task_head"}
    assert not np.array_equal(
        after["encoder"]["layers_0"]["ffn"]["up"]["kernel"],
        start.params["encoder"]["layers_0"]["ffn"]["up"]["kernel"],
    )


def test_a_student_and_a_teacher_of_which_one_is_given_types_read_unlike_rows(run_of, model_folder):
    run = run_of()
    materials, taught = prepare(run, QUIET), weights.load(model_folder)
    without = dataclasses.replace(materials.words, typed=False)
    with pytest.raises(UserError, match="one is given token types and the other is not"):
        intermediate.check_teacher(run, materials, taught, without)


def test_the_step_compares_a_student_in_training_with_a_teacher_at_rest():
    """Of a pair of texts, by the mean of the student's vectors and the teacher's of [CLS]."""
    between = {"losses": {"sentence": {"weight": 1.0, "pooling": "own"}}}
    run = from_values(default_config("classification").to_dict() | {"intermediate": between})
    noisy = settings.Encoder(
        vocab_size=32,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        intermediate_size=8,
        max_positions=8,
        pooler=False,
        dropout=0.5,
    )
    rng, mask = np.random.default_rng(0), np.arange(8) < np.array([8, 6, 3])[:, None]
    batch = {"input_ids": rng.integers(1, 32, mask.shape) * mask, "attention_mask": 1 * mask}
    batch["token_type_ids"] = (np.arange(8) > 2) * mask * 1
    batch = jax.tree.map(lambda array: jnp.asarray(array, jnp.int32), batch)
    student, teacher = (
        jax.tree.map(lambda leaf: jnp.array(rng.normal(size=leaf.shape)), models.shapes(noisy))
        for _ in range(2)
    )
    key, still = jax.random.key(7), optax.sgd(0.0)

    @jax.jit
    def encoded(params, dropout_key):
        inner, options = params["encoder"], {"dropout_key": dropout_key}
        return models.encode(noisy, run.compute, inner, **batch, **options)["last_hidden_state"]

    own = np.asarray(encoded(student, jax.random.fold_in(key, 3)))
    a = (own * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    b = np.asarray(encoded(teacher, None))[:, 0]
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

    step = intermediate.make_step(run, noisy, noisy, ("mean", "cls"), still, 10)
    state = State(jnp.int32(3), student, still.init(student))
    _, metrics = step(state, batch, teacher, key)
    assert float(metrics["loss"]) == pytest.approx(np.mean(1 - cosines), rel=1e-5)


def test_sentence_vectors_are_made_as_each_model_makes_its_own(run_of, teacher, monkeypatch):
    run, given = run_of({"attention_mse": {"weight": 1.0}}), []
    materials = prepare(run, QUIET)
    model, rows = finetune.starting_model(run, materials), training_rows(materials, 1.0, 0)
    other = dataclasses.replace(weights.load(teacher), sentence=weights.SentenceFiles("cls"))
    make_step = intermediate.make_step

    def watched(*arguments):
        given.append(arguments[3])
        return make_step(*arguments)

    monkeypatch.setattr(intermediate, "make_step", watched)
    mesh = sharding.make_mesh(run.mesh, run.training.batch_size)
    with jax.set_mesh(mesh):
        intermediate._stage(run, materials, other, model, rows, mesh)
    assert given == [("mean", "cls")]


@pytest.mark.parametrize(
    ("losses", "groups", "sentence"),
    [
        ({}, {"distillation": {"teacher": ""}}, "config.distillation.teacher, which is empty"),
        ({"kl": {"weight": 1.0}}, {}, "config.intermediate.losses.kl is about words"),
        ({"cosine": {"weight": 1.0, "positions": "masked"}}, {}, "texts of a task are whole"),
        ({"cosine": {"weight": 1.0}}, {}, "intermediate.losses.cosine compares vectors of 16"),
        ({"hidden": {"weight": 1.0}}, {}, "intermediate.losses.hidden is not a term"),
    ],
)
def test_what_cannot_be_learned_is_one_sentence(run_of, losses, groups, sentence):
    run = run_of(losses, **groups)
    with pytest.raises(UserError, match=sentence):
        teaching_of(run, prepare(run, QUIET), QUIET)


def test_another_vocabulary_is_refused(run_of, teacher, tmp_path):
    words = text_tokenizer.train(lambda: ["other words good film"] * 3, tmp_path, 60)
    encoder = settings.Encoder(
        vocab_size=words.vocab_size,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=16,
        max_positions=32,
    )
    params = jax.device_get(models.init(encoder, jax.random.key(0)))
    weights.save(tmp_path / "m", encoder, params, tokenizer_folder=tmp_path)
    run = run_of(distillation={"teacher": str(tmp_path / "m")})
    with pytest.raises(UserError, match="has another tokenizer than the student"):
        teaching_of(run, prepare(run, QUIET), QUIET)
