import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax.models import attention
from distilflax.settings import Compute


def qkv(dtype, size=1.0):
    # Each of its own: [B, L, H, K] with all four different.
    rng = np.random.default_rng(0)
    return [jnp.asarray(size * rng.normal(size=(2, 7, 3, 4)), dtype) for _ in range(3)]


def plain(query, key, value, mask):
    scores = attention.attention_scores(query, key)
    return attention.plain_attention(scores, mask, value)


def shown(query, key, value, mask):
    scores = attention.attention_scores(query, key)
    return attention.shown_attention(scores, mask, value, lambda probabilities: probabilities)[0]


def test_a_token_sees_real_tokens_of_its_own_segment():
    mask = jnp.array([[1, 1, 1, 0]])
    assert np.asarray(attention.visible(mask, None)).tolist() == [[[[True, True, True, False]]]]
    segments = jnp.array([[1, 1, 2, 2]])
    assert np.asarray(attention.visible(mask, segments))[0, 0].astype(int).tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 1, 0],
    ]


@pytest.mark.parametrize("path", [plain, shown])
def test_plain_attention_is_the_formula(path):
    query, key, value = (np.asarray(x, np.float64) for x in qkv(jnp.float32))
    mask = np.arange(7) < np.array([7, 4])[:, None]
    scores = np.einsum("bqhk,bmhk->bhqm", query, key) / 2.0
    weights = np.exp(scores) * mask[:, None, None]
    expected = np.einsum("bhqm,bmhk->bqhk", weights / weights.sum(-1, keepdims=True), value)
    ours = path(*qkv(jnp.float32), jnp.asarray(mask)[:, None, None])
    np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize(
    "path", [plain, shown, attention.fused_attention], ids=["plain", "shown", "fused"]
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_masks_make_no_nan_in_half_precision(path, dtype, size):
    # The trap: a bias of 1e30 * (1 - mask) is inf in float16, and 0 * inf is NaN.
    mask = jnp.array([[1, 1, 1, 0, 0, 0, 0], [0] * 7]) > 0

    def loss(query, key, value):
        out = path(query, key, value, mask[:, None, None])
        return jnp.sum(out.astype(jnp.float32)), out

    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    # In one piece the fused one has no float16 on a CPU.
    in_pieces = path is attention.fused_attention and dtype == "float16"
    (_, out), grads = (gradient if in_pieces else jax.jit(gradient))(*qkv(dtype, size))
    assert out.dtype == dtype
    for array in (out, *grads):
        assert np.isfinite(np.asarray(array, np.float32)).all()
    # Padding gets no attention at all, not merely little.
    assert not np.asarray(grads[2], np.float32)[0, 3:].any()


def test_a_query_that_sees_nothing_weighs_all_alike():
    query, key, value = qkv(jnp.float32)
    scores = attention.attention_scores(query, key)
    nothing = jnp.zeros((2, 1, 1, 7), bool)
    _, probabilities = attention.shown_attention(scores, nothing, value, lambda x: x)
    np.testing.assert_allclose(probabilities, 1 / 7, rtol=1e-6)
    mean = jnp.broadcast_to(value.mean(1, keepdims=True), value.shape)
    np.testing.assert_allclose(plain(query, key, value, nothing), mean, atol=1e-6)


def test_scores_and_probabilities_are_float32():
    query, key, value = qkv(jnp.bfloat16)
    scores = attention.attention_scores(query, key)
    mask = jnp.ones((2, 1, 1, 7), bool)
    context, probabilities = attention.shown_attention(scores, mask, value, lambda x: x)
    assert scores.dtype == probabilities.dtype == jnp.float32
    assert context.dtype == jnp.bfloat16
    assert attention.plain_attention(scores, mask, value).dtype == jnp.bfloat16


def test_fused_only_where_it_can_serve():
    for choice, dropout, wanted in itertools.product(("plain", "fused"), (0.0, 0.1), (False, True)):
        takes = attention.takes_fused(Compute(attention=choice), dropout, wanted, 128, 64)
        assert takes == (choice == "fused" and not dropout and not wanted)


@pytest.mark.parametrize(
    "backend, dtype, expected",
    [
        ("gpu", "bfloat16", True),
        ("gpu", "float32", False),
        ("cpu", "bfloat16", False),
        ("tpu", "bfloat16", False),
    ],
)
def test_auto_takes_the_kernel_where_there_is_one(monkeypatch, backend, dtype, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert attention.takes_fused(Compute(dtype=dtype), 0.0, False, 128, 64) == expected
    # TinyBERT's heads of 26, heads beyond what every card takes, and odd lengths.
    for length, head_size in ((128, 26), (128, 256), (127, 64)):
        assert not attention.takes_fused(Compute(dtype=dtype), 0.0, False, length, head_size)
