"""Rows that a CPU takes in turn: the same values and gradients, out of less memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import models
from distilflax.models import TaskHead
from distilflax.settings import Compute, Encoder
from distilflax.tasks import batches, step

ENCODER = Encoder(
    vocab_size=40,
    hidden_size=32,
    num_layers=3,
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
