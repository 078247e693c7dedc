from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import settings
from distilflax.errors import UserError
from distilflax.evaluate.held_out import held_out_batches, mask_batches
from distilflax.evaluate.masked_lm import layer_pairs, masked_lm
from distilflax.evaluate.vectors import tokenize
from distilflax.losses import total
from distilflax.models import decoder, encode, mlm_transform

MASKING = settings.Masking(rate=0.3)
COMPUTE = settings.Compute()
DATA = settings.Data(max_length=32, buckets=(16, 32))


@pytest.fixture(scope="module")
def host_batches(words, sentences):
    evaluation = settings.Evaluation(batch_size=3, masked_lm_batches=5)
    return held_out_batches(tokenize(words, sentences, 32), DATA, evaluation)


@pytest.fixture(scope="module")
def batches(host_batches, table):
    return mask_batches(host_batches, jax.random.key(3), table, MASKING)


def plain_logits(model, batch):
    """Logits of every position, all at once: what the measurements must never hold."""

    @jax.jit
    def run(params):
        ids, real = batch.masked.input_ids, batch.attention_mask
        out = encode(
            model.encoder, COMPUTE, params["encoder"], ids, real, outputs=("hidden_states",)
        )
        matrix, bias = decoder(params)
        hidden = mlm_transform(model.encoder, COMPUTE, params, out["last_hidden_state"])
        return hidden @ matrix.T + bias, out["hidden_states"]

    logits, states = run(model.params)
    return np.asarray(logits, np.float64), states


def figures(model, reference, batches):
    """(MaskedLM, Agreement) of `model` beside `reference`."""
    return masked_lm([reference, model], batches, COMPUTE)[1]


def alike(one, other, rel):
    """Whether two figures agree, number by number; approx does not look into tuples of tuples."""
    flat = [np.hstack([np.ravel(value) for value in figure]) for figure in (one, other)]
    return flat[0] == pytest.approx(flat[1], rel=rel)


def masked_positions(batch):
    """(row, position, label) of everything that is masked."""
    for row, slot in np.argwhere(np.asarray(batch.masked.weights) > 0):
        yield row, int(batch.masked.positions[row, slot]), int(batch.masked.labels[row, slot])


def log_softmax(logits):
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def test_every_sequence_is_there_once_and_nothing_else(host_batches, sentences):
    real = np.concatenate([batch["attention_mask"].any(axis=1) for batch in host_batches])
    assert real.sum() == len(sentences)
    assert all(len(batch["input_ids"]) == 3 for batch in host_batches)


def test_a_sample_is_fixed_and_of_all_lengths(words, sentences):
    many = tokenize(words, sentences * 20, 32)
    evaluation = settings.Evaluation(batch_size=4, masked_lm_batches=12)
    first, again = (held_out_batches(many, DATA, evaluation) for _ in range(2))
    assert len(first) == 12
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one["input_ids"], other["input_ids"])
    lengths = {int(n) for batch in first for n in batch["attention_mask"].sum(axis=1)}
    assert {min(many.lengths), max(many.lengths)} <= lengths


def test_masks_are_those_of_the_key(host_batches, batches, table):
    again = mask_batches(host_batches, jax.random.key(3), table, MASKING)
    other = mask_batches(host_batches, jax.random.key(4), table, MASKING)
    for first, second, third in zip(batches, again, other, strict=True):
        assert np.array_equal(first.masked.input_ids, second.masked.input_ids)
        assert not np.array_equal(first.masked.input_ids, third.masked.input_ids)


def test_masked_lm_is_the_plain_formula(student, batches):
    loss, right, positions = 0.0, 0, 0
    for batch in batches:
        logits, _ = plain_logits(student, batch)
        for row, at, label in masked_positions(batch):
            loss -= log_softmax(logits[row, at])[label]
            right += logits[row, at].argmax() == label
            positions += 1
    ((found, agreement),) = masked_lm([student], batches, COMPUTE)
    assert agreement is None
    assert found.positions == positions > 10
    assert found.accuracy == pytest.approx(right / positions)
    assert found.cross_entropy == pytest.approx(loss / positions, rel=1e-5)
    assert found.perplexity == pytest.approx(np.exp(loss / positions), rel=1e-4)


def test_chunks_change_nothing(student, teacher, batches, monkeypatch):
    """The rows of one batch do not divide into the chunks."""
    from distilflax.evaluate import masked_lm as module

    whole = figures(student, teacher, batches)
    monkeypatch.setattr(module, "CHUNK_ROWS", 4)
    module._sums.clear_cache()
    in_chunks = figures(student, teacher, batches)
    module._sums.clear_cache()
    for one, other in zip(in_chunks, whole, strict=True):
        assert alike(one, other, rel=1e-5)
    assert total.CHUNK_ROWS != 4


def test_what_stands_on_padding_changes_nothing(student, teacher, host_batches, table):
    def measured(fill):
        filled = [
            {**b, "input_ids": np.where(b["attention_mask"] > 0, b["input_ids"], fill)}
            for b in host_batches
        ]
        masked = mask_batches(filled, jax.random.key(3), table, MASKING)
        return figures(student, teacher, masked)

    for one, other in zip(measured(np.int32(7)), measured(np.int32(0)), strict=True):
        assert alike(one, other, rel=1e-6)


def test_a_model_agrees_with_itself(teacher, batches):
    _, found = figures(replace(teacher, name="twin"), teacher, batches)
    assert found.kl == pytest.approx(0.0, abs=1e-5)
    assert found.top_1 == 1.0
    assert found.cosines == pytest.approx([1.0] * 3, abs=1e-5)


def test_agreement_is_the_plain_formula(student, teacher, batches):
    kl, same, positions, tokens = 0.0, 0, 0, 0
    cosines = np.zeros(2)
    for batch in batches:
        (ours, our_states), (theirs, their_states) = (
            plain_logits(model, batch) for model in (student, teacher)
        )
        for row, at, _ in masked_positions(batch):
            q, p = log_softmax(ours[row, at]), log_softmax(theirs[row, at])
            kl += np.sum(np.exp(p) * (p - q))
            same += ours[row, at].argmax() == theirs[row, at].argmax()
            positions += 1
        for row, at in np.argwhere(np.asarray(batch.attention_mask) > 0):
            tokens += 1
            for i, (m, n) in enumerate([(0, 0), (1, 2)]):
                x, y = np.asarray(our_states[m][row, at]), np.asarray(their_states[n][row, at])
                cosines[i] += x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    _, found = figures(student, teacher, batches)
    assert found.layers == ((0, 0), (1, 2))
    assert (found.positions, found.tokens) == (positions, tokens)
    assert found.kl == pytest.approx(kl / positions, rel=1e-4)
    assert found.top_1 == pytest.approx(same / positions)
    assert found.cosines == pytest.approx(cosines / tokens, abs=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [(6, 12, [0, 2, 4, 6, 8, 10, 12]), (3, 6, [0, 2, 4, 6]), (2, 5, [0, 2, 5]), (4, 4, range(5))],
)
def test_layers_stand_for_layers_of_the_same_depth(student, teacher, pairs):
    assert layer_pairs(student, teacher) == tuple(enumerate(pairs))


def test_a_model_deeper_than_its_reference_is_compared_at_the_ends():
    assert layer_pairs(6, 3) == ((0, 0), (6, 3))


def test_without_a_head_hidden_states_are_still_compared(make_model, teacher, batches):
    headless = make_model("headless", 1, mlm_head=False)
    for model, reference in ((headless, teacher), (teacher, headless)):
        masked, found = figures(model, reference, batches)
        assert (masked is None) == (model is headless)
        assert found.kl is found.top_1 is None
        assert found.cosines == pytest.approx(found.cosines) and 0.0 not in found.cosines


def test_of_another_width_words_are_compared_and_states_are_not(make_model, teacher, batches):
    narrow = make_model("narrow", 1, hidden_size=16)
    _, found = figures(narrow, teacher, batches)
    assert found.kl > 0 and 0 <= found.top_1 <= 1
    assert found.cosines == found.layers == ()


def test_models_of_other_words_are_not_compared(make_model, teacher, batches):
    fewer = make_model("fewer", 1, vocab_size=teacher.encoder.vocab_size - 1)
    with pytest.raises(UserError, match="'fewer' has vocab_size"):
        figures(fewer, teacher, batches)


def test_where_nothing_is_masked_states_are_compared_all_the_same(student, teacher, batches):
    none = [
        b._replace(masked=b.masked._replace(weights=jnp.zeros_like(b.masked.weights)))
        for b in batches
    ]
    masked, found = figures(student, teacher, none)
    assert masked is None and found.kl is None and found.top_1 is None
    assert found.cosines == pytest.approx(figures(student, teacher, batches)[1].cosines)


def test_where_nothing_is_held_out_nothing_is_compared(student, teacher):
    assert figures(student, teacher, []) == (None, None)
