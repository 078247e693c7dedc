"""Rows that a CPU takes in turn, or without their padding: the same values and gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distilflax import models
from distilflax.models import TaskHead
from distilflax.settings import Compute, Encoder
from distilflax.tasks import Retrieval, batches, step
from distilflax.tasks.settings import default_config, from_values
from distilflax.tasks.task import Features
from distilflax.train.state import State

ENCODER = Encoder(
    vocab_size=40,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    intermediate_size=64,
    max_positions=128,
    type_vocab_size=2,
    dropout=0.0,
    attention_dropout=0.0,
)
HEAD = TaskHead(kind="vector")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """What is many and long, and what is taken at once, on the scale of these tests."""
    monkeypatch.setattr(step, "_MANY", 16 * 128)
    monkeypatch.setattr(batches, "CPU_TOKENS", 4 * 128)


def gradient(in_turn, rows, encoder=ENCODER, seed=None):
    def forward(params, rows, key):
        ids, mask = rows["input_ids"], rows["attention_mask"]
        options = {"token_type_ids": rows["token_type_ids"], "dropout_key": key if seed else None}
        return models.task_logits(encoder, Compute(), HEAD, params, ids, mask, **options)

    def loss(params):
        key = jax.random.key(seed or 0)
        # Of all rows at once, as a contrastive loss is.
        vectors = (
            step.in_turn(lambda rows, key: forward(params, rows, key), rows, key)
            if in_turn
            else forward(params, rows, key)
        )
        return jnp.sum(jax.nn.logsumexp(vectors @ vectors.T, axis=1)), vectors

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def rows_of(count, length=128):
    rng = np.random.default_rng(0)
    mask = np.arange(length) < rng.integers(4, length + 1, (count, 1))
    return {
        "input_ids": jnp.asarray(rng.integers(1, 40, (count, length)) * mask),
        "attention_mask": jnp.asarray(mask.astype(np.int32)),
        "token_type_ids": jnp.asarray(rng.integers(0, 2, (count, length))),
    }


@pytest.mark.parametrize("count", [16, 20])
def test_rows_in_turn_have_the_values_and_the_gradient_of_all_at_once(count):
    params, rows = models.init(ENCODER, jax.random.key(1)), rows_of(count)
    assert batches.rows_at(128, count) < count
    (whole, vectors), expected = gradient(False, rows)(params)
    (parts, same), grads = gradient(True, rows)(params)
    np.testing.assert_allclose(same, vectors, atol=1e-5)
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), grads, expected)


def test_rows_in_turn_take_less_memory():
    rows = rows_of(32)

    def temporary(in_turn):
        compiled = gradient(in_turn, rows).lower(models.shapes(ENCODER)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(True) < 0.3 * temporary(False)


def test_each_row_has_its_own_dropout():
    encoder = dataclasses.replace(ENCODER, dropout=0.3)
    params = models.init(encoder, jax.random.key(1))
    rows = {name: jnp.repeat(array[:1], 16, axis=0) for name, array in rows_of(16).items()}
    (_, vectors), _ = gradient(True, rows, encoder, seed=3)(params)
    assert len(np.unique(np.asarray(vectors), axis=0)) == 16


def test_few_rows_and_an_accelerator_take_all_at_once(monkeypatch):
    called = []

    def forward(rows, key):
        called.append(rows["input_ids"].shape)
        return rows["input_ids"][:, :1]

    step.in_turn(forward, rows_of(15), jax.random.key(0))
    monkeypatch.setattr(batches.jax, "default_backend", lambda: "gpu")
    step.in_turn(forward, rows_of(16), jax.random.key(0))
    assert called == [(15, 128), (16, 128)]


def test_what_little_is_kept_is_not_computed_again():
    called = []

    def forward(rows, key):
        called.append(rows["input_ids"].shape)
        return rows["input_ids"][:, :1]

    step.in_turn(forward, rows_of(16), jax.random.key(0), many=16 * 128 + 1)
    step.in_turn(forward, rows_of(16), jax.random.key(0), many=16 * 128)
    assert called[0] == (16, 128) and called[1][0] < 16
    # `step._MANY` is 2,048 here.
    sizes = ((6, 384), (12, 768))
    minilm, base = (Encoder(num_layers=n, hidden_size=width) for n, width in sizes)
    assert step.tokens_kept(minilm) == 8680 and step.tokens_kept(base) == 2170


def groups_of(many):
    """16 queries, each with a document of 4 to 128 tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, [[9, 129]] * 16).ravel()
    ids, types = ([rng.integers(1, most, n) for n in lengths] for most in (40, 2))
    targets = {"text": np.arange(32), "score": np.full(32, np.nan, np.float32)}
    features = Features(ids, types, np.arange(32) // 2, targets)
    rows, options = np.arange(32).reshape(16, 2), {"buckets": (32, 128), "with_types": True}
    return batches.collate_groups(features, rows, 16, 128, many=many, **options)


def updated(batch):
    run, optimizer = from_values(default_config("retrieval").to_dict()), optax.sgd(1.0)
    params = models.init(ENCODER, jax.random.key(1))
    taken = step.make_step(run, Retrieval(negatives=0), ENCODER, HEAD, optimizer)
    return taken(State(jnp.int32(0), params, optimizer.init(params)), batch, jax.random.key(0))


@functools.cache
def padded_update():
    return updated(groups_of(None))


@pytest.mark.parametrize("many", [2048, 0])
def test_padding_that_is_left_out_changes_no_step(monkeypatch, many):
    monkeypatch.setattr(step, "_MANY", many)
    monkeypatch.setattr(step, "_KEPT", 0)
    padded, batch = groups_of(None), groups_of(many)
    parts = 1 if many else 4
    assert batch["real_places"].shape == (parts, 1536 // parts)
    assert "first_real_places" not in batch  # So little padding is not worth a program.
    # Dealt to turns, but each where `order` says.
    assert ("order" in batch) == (parts > 1)
    rows = batch.get("order", np.arange(16))
    np.testing.assert_array_equal(batch["input_ids"][rows], padded["input_ids"])
    (state, metrics), (same, found) = padded_update(), updated(batch)
    np.testing.assert_allclose(found["loss"], metrics["loss"], rtol=1e-5)
    check = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(check, same.params, state.params)
    assert found["tokens"] == metrics["tokens"]
