"""Narrower students: those that lose nothing equal their teacher, the others have their shapes."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from distilflax import models
from distilflax.errors import UserError
from distilflax.settings import Compute, Encoder, Student
from distilflax.weights import surgery, width

ENCODER = Encoder(
    vocab_size=40,
    hidden_size=12,
    num_layers=2,
    num_heads=2,
    intermediate_size=10,
    max_positions=16,
    type_vocab_size=0,
    pooler=False,
)
LINEAR = ("query", "key", "value", "output")


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    out = []
    for _ in range(2):
        mask = (np.arange(12) < rng.integers(3, 13, (24, 1))).astype(np.int32)
        ids = rng.integers(0, ENCODER.vocab_size, mask.shape).astype(np.int32) * mask
        out.append({"input_ids": ids, "attention_mask": mask})
    return out


@pytest.fixture(scope="module")
def params():
    """Random, and nothing in it zero or one: biases, scales and an untied decoder too."""
    rng = np.random.default_rng(1)
    drawn = jax.device_get(models.init(ENCODER, jax.random.key(0), mlm_head=True))
    drawn["mlm_head"]["decoder"] = drawn["encoder"]["embeddings"]["word"]
    return jax.tree.map(lambda x: (x + rng.normal(0, 0.3, x.shape)).astype(np.float32), drawn)


def seen(encoder, params, batch):
    """Hidden states and logits at real tokens."""
    real = batch["attention_mask"] > 0
    return [np.asarray(out)[real] for out in run(encoder, params, batch)]


@partial(jax.jit, static_argnums=0)
def run(encoder, params, batch):
    ids, mask = batch["input_ids"], batch["attention_mask"]
    out = models.encode(encoder, Compute(), params["encoder"], ids, mask)["last_hidden_state"]
    matrix, bias = models.decoder(params)
    return out, models.mlm_transform(encoder, Compute(), params, out) @ matrix.T + bias


def twice(params):
    """The same model on a doubled width: each coordinate and each neuron is there two times."""

    def last(x, times=1):
        return np.concatenate([x, times * x], axis=-1)

    def reading(linear):
        half = linear["kernel"] / 2
        return {"kernel": np.concatenate([half, half]), "bias": linear["bias"]}

    def writing(linear):
        return {name: last(x) for name, x in linear.items()}

    encoder = params["encoder"]
    word, position = (encoder["embeddings"][name] for name in ("word", "position"))
    out = {"embeddings": {"word": last(word), "position": last(position)}}
    out["embeddings"]["norm"] = writing(encoder["embeddings"]["norm"])
    for i in range(ENCODER.num_layers):
        layer = encoder[f"layers_{i}"]
        attention = {name: reading(layer["attention"][name]) for name in LINEAR[:3]}
        up, down = reading(layer["ffn"]["up"]), reading(layer["ffn"]["down"])
        # As many heads again, which write nothing and so are the first to go.
        for linear in attention.values():
            linear["kernel"] = last(linear["kernel"], 0)
            linear["bias"] = last(linear["bias"], 0)
        output = layer["attention"]["output"]
        kernel = np.concatenate([output["kernel"], output["kernel"]])
        attention["output"] = writing({"kernel": kernel, "bias": output["bias"]})
        out[f"layers_{i}"] = {
            "attention": attention,
            "attention_norm": writing(layer["attention_norm"]),
            "ffn": {"up": writing(up), "down": writing(down)},
            "ffn_norm": writing(layer["ffn_norm"]),
        }
    head = params["mlm_head"]
    half = head["decoder"] / 2
    return {
        "encoder": out,
        "mlm_head": {
            "transform": writing(reading(head["transform"])),
            "norm": writing(head["norm"]),
            "bias": head["bias"],
            "decoder": np.concatenate([half, half], axis=-1),
        },
    }


@pytest.mark.parametrize("tied", [True, False])
def test_full_width_is_the_teacher(params, batches, tied):
    if tied:
        head = {name: x for name, x in params["mlm_head"].items() if name != "decoder"}
        params = params | {"mlm_head": head}
    same = width.narrow(ENCODER, params, ENCODER, batches)
    for ours, theirs in zip(
        seen(ENCODER, same, batches[0]), seen(ENCODER, params, batches[0]), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_what_is_there_twice_is_needed_once(params, batches):
    wide = replace(ENCODER, hidden_size=24, num_heads=4, intermediate_size=20)
    doubled = twice(params)
    hidden, _ = seen(ENCODER, params, batches[0])
    own, of_words = seen(wide, doubled, batches[0])
    np.testing.assert_allclose(own, np.concatenate([hidden, hidden], -1), atol=1e-4)

    halved = width.narrow(wide, doubled, ENCODER, batches)
    found, found_logits = seen(ENCODER, halved, batches[0])
    # Which of two twins stays is left open, and so is the order of the coordinates.
    np.testing.assert_allclose(np.sort(found), np.sort(hidden), atol=2e-3)
    np.testing.assert_allclose(found_logits, of_words, atol=2e-2)


def test_a_head_of_low_rank_needs_no_more_room():
    rng = np.random.default_rng(2)

    def plane():
        """A projection on 4 of the 6 dimensions of a head."""
        basis = np.linalg.qr(rng.normal(size=(6, 6)))[0][:, :4]
        return basis @ basis.T

    scores, values = plane(), plane()
    head = [
        {"kernel": rng.normal(size=(12, 6)) @ onto, "bias": rng.normal(size=6)}
        for onto in (scores, scores, values)
    ]
    output = {"kernel": rng.normal(size=(6, 12))}
    x = rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12)) + rng.normal(size=12)
    spread = width.Moments(x.mean(0), np.cov(x.T, bias=True))
    root = np.linalg.cholesky(spread.covariance).T
    *cut, out, constant = width._smaller_head(*head, output, 4, spread, root)
    assert cut[0]["kernel"].shape == (12, 4) and out["kernel"].shape == (4, 12)

    def attended(query, key, value, output, constant):
        query, key, value = (x @ one["kernel"] + one["bias"] for one in (query, key, value))
        scores = query @ key.T / np.sqrt(query.shape[1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return (weights / weights.sum(-1, keepdims=True)) @ value @ output["kernel"] + constant

    whole = attended(*head, output, 0.0)
    np.testing.assert_allclose(attended(*cut, out, constant), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "sizes, expected",
    [
        ({"hidden_size": 6}, (6, 1, 5)),
        ({"hidden_size": 8}, (8, 2, 6)),
        ({"hidden_size": 9, "num_heads": 3}, None),
        ({"hidden_size": 10, "num_heads": 2, "intermediate_size": 7}, (10, 2, 7)),
        ({"num_heads": 2, "intermediate_size": 3}, (12, 2, 3)),
    ],
)
def test_sizes(params, batches, sizes, expected):
    student = Student(num_layers=2, **sizes)
    if expected is None:
        with pytest.raises(UserError, match="num_heads is 3 but the teacher's is 2"):
            surgery.check_cut(ENCODER, student)
        return
    surgery.check_cut(ENCODER, student)
    encoder = surgery.student_encoder(ENCODER, student)
    assert (encoder.hidden_size, encoder.num_heads, encoder.intermediate_size) == expected
    found = width.narrow(ENCODER, params, encoder, batches)
    shapes = models.shapes(encoder, mlm_head=True)
    shapes["mlm_head"]["decoder"] = shapes["encoder"]["embeddings"]["word"]
    assert jax.tree.map(np.shape, found) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize(
    "sizes, says",
    [
        ({"hidden_size": 24}, "hidden_size is 24 but the teacher's is 12"),
        ({"intermediate_size": 11}, "intermediate_size is 11 but the teacher's is 10"),
        ({"num_heads": 1}, "heads of 12 numbers, but the teacher's have 6; give at least 2 heads"),
        ({"hidden_size": 7}, "divides neither into heads of 6 numbers nor into 2 heads"),
        ({"hidden_size": 9, "num_heads": 2}, "does not divide into 2 heads"),
    ],
)
def test_sizes_that_cannot_be(sizes, says):
    with pytest.raises(UserError, match=says):
        surgery.check_cut(ENCODER, Student(num_layers=2, **sizes))


def test_a_random_student_may_have_any_size(params):
    student = Student(num_layers=2, init="random", hidden_size=24, num_heads=3)
    surgery.check_cut(ENCODER, student)
    assert not surgery.can_be_cut(ENCODER, replace(student, init="teacher"))
    encoder, made = surgery.make_student(ENCODER, params, student, jax.random.key(0))
    assert made["encoder"]["embeddings"]["word"].shape == (40, 24)
    assert (encoder.num_heads, encoder.intermediate_size) == (3, 20)


def test_copying_alone_makes_nobody_narrower(params):
    with pytest.raises(UserError, match="at_full_width"):
        surgery.make_student(
            ENCODER, params, Student(num_layers=2, hidden_size=6), jax.random.key(0)
        )


def test_the_pivots_are_those_that_explain_the_rest():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)) @ np.diag([3.0, 2.0, 1.0, 0.5])
    # Coordinates 1, 3 and 5 say nothing of their own.
    x = np.stack([x[:, 0], 0.9 * x[:, 0], x[:, 1], x[:, 0] + 0.1 * x[:, 1], x[:, 2], x[:, 3]], 1)
    x[:, 5] *= 0.0
    covariance = np.cov(x.T)
    kept = width.choose(covariance, 3)
    rest = width.stand_in(width.Moments(x.mean(0), covariance), kept)
    np.testing.assert_allclose(x[:, kept] @ rest.matrix + rest.offset, x, atol=1e-3)
