import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import models
from distilflax.errors import UserError
from distilflax.settings import Compute, Encoder

PLAIN = Compute(attention="plain")
FUSED = Compute(attention="fused")


# Compiled once for each signature: the tests ask for the same few over and over.
jitted_encode = jax.jit(models.encode, static_argnums=(0, 1), static_argnames="outputs")
jitted_layer = jax.jit(models.encode_layer, static_argnums=(0, 1), static_argnames="outputs")
jitted_init = jax.jit(models.init, static_argnums=0, static_argnames="mlm_head")


def encode(encoder, params, ids, mask, compute=PLAIN, **kwargs):
    return jitted_encode(encoder, compute, params["encoder"], ids, mask, **kwargs)


def last(*args, **kwargs):
    return encode(*args, **kwargs)["last_hidden_state"]


def real_rows(hidden, mask):
    return np.asarray(hidden, np.float32)[np.asarray(mask) > 0]


# --- what is built


def test_parameter_counts_are_the_published_ones():
    bert = Encoder()
    distilbert = Encoder(num_layers=6, type_vocab_size=0, pooler=False)
    count = models.parameter_count
    assert count(models.shapes(bert)) == 109_482_240
    assert count(models.shapes(distilbert)) == 66_362_880
    assert count(models.shapes(distilbert, mlm_head=True)) == 66_985_530


def started(encoder, seed):
    """Enough words for a standard deviation, and all that may be drawn: one program an encoder."""
    wide = dataclasses.replace(encoder, vocab_size=2000)
    return wide, jitted_init(wide, jax.random.key(seed), mlm_head=True)


def test_initial_values_are_berts(bert):
    _, params = started(bert, 3)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        assert leaf.dtype == jnp.float32, name
        if "bias" in name:
            assert not leaf.any(), name
        elif "scale" in name:
            assert (leaf == 1).all(), name
    word = params["encoder"]["embeddings"]["word"]
    assert float(word.std()) == pytest.approx(0.02, rel=0.02)
    assert float(word.mean()) == pytest.approx(0.0, abs=1e-3)


def test_another_key_gives_other_parameters(bert):
    first, second = (started(bert, seed)[1]["encoder"] for seed in (0, 1))
    kernel = first["layers_0"]["ffn"]["up"]["kernel"]
    assert not np.allclose(kernel, second["layers_0"]["ffn"]["up"]["kernel"])
    # No two layers start alike either.
    assert not np.allclose(kernel, first["layers_1"]["ffn"]["up"]["kernel"])


def test_shapes_allocate_nothing_and_tell_the_truth(encoder):
    def description(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    wide, params = started(encoder, 0)
    shapes = models.shapes(wide, mlm_head=True)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
    assert description(shapes) == description(params)


def test_a_start_runs_no_forward_pass(bert):
    drawn = jax.make_jaxpr(functools.partial(models.init, bert, mlm_head=True))(jax.random.key(0))
    assert "erf_inv" in str(drawn) and "dot_general" not in str(drawn)


def test_the_settings_decide_what_is_there(bert, distilbert):
    assert {"pooler", "embeddings"} < set(models.shapes(bert)["encoder"])
    bare = models.shapes(distilbert)["encoder"]
    assert "pooler" not in bare
    assert "token_type" not in bare["embeddings"]


# --- padding and packing


@pytest.mark.parametrize("compute", [PLAIN, FUSED], ids=["plain", "fused"])
def test_padding_further_changes_nothing(encoder, make_params, batch, compute):
    params, (ids, mask) = make_params(encoder), batch
    more = ((0, 0), (0, 7))
    short = last(encoder, params, ids, mask, compute)
    # The added ids are garbage, not the padding id: nobody may look at them.
    long = last(
        encoder, params, jnp.pad(ids, more, constant_values=17), jnp.pad(mask, more), compute
    )
    np.testing.assert_allclose(
        real_rows(long[:, : ids.shape[1]], mask), real_rows(short, mask), atol=2e-6
    )


def test_the_ids_at_padding_get_no_gradient(shallow_bert, make_params, batch):
    params, (ids, mask) = make_params(shallow_bert), batch
    unused = next(i for i in range(shallow_bert.vocab_size) if i not in np.asarray(ids))
    ids = jnp.where(mask > 0, ids, unused)

    def loss(params):
        return jnp.sum(
            jnp.where(mask[..., None] > 0, last(shallow_bert, params, ids, mask), 0) ** 3
        )

    word = jax.jit(jax.grad(loss))(params)["encoder"]["embeddings"]["word"]
    assert np.abs(word[unused]).max() == 0
    assert np.abs(word[int(ids[0, 0])]).max() > 0


# Either attention in either precision, and either encoder with each of these.
ONE_OF_EACH = [
    ("bert", "float32", "plain"),
    ("bert", "bfloat16", "fused"),
    ("distilbert", "float32", "fused"),
    ("distilbert", "bfloat16", "plain"),
]


@pytest.mark.parametrize("encoder, dtype, attention", ONE_OF_EACH, indirect=["encoder"])
def test_a_row_of_padding_alone_stays_finite(shallow, make_params, batch, dtype, attention):
    params, (ids, mask) = make_params(shallow), batch
    mask = mask.at[1].set(0)
    compute = Compute(dtype=dtype, attention=attention)

    def loss(params):
        hidden = last(shallow, params, ids, mask, compute).astype(jnp.float32)
        return jnp.sum(hidden**2 * jnp.arange(24.0)), hidden

    (_, hidden), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert np.isfinite(hidden).all()
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in jax.tree.leaves(grads))


@pytest.fixture(scope="module")
def packed(batch):
    """Passages of 4, 5 and 3 tokens: alone [3, 10], and together in one row of 14."""
    rng = np.random.default_rng(5)
    passages = [rng.integers(1, 50, n) for n in (4, 5, 3)]
    alone = np.stack([np.pad(p, (0, 10 - len(p))) for p in passages])
    lengths = np.array([len(p) for p in passages])
    fields = {
        "ids": np.concatenate([*passages, [0, 0]]),
        "mask": np.repeat([1, 0], [12, 2]),
        "segment_ids": np.concatenate([np.repeat([1, 2, 3], lengths), [0, 0]]),
        "position_ids": np.concatenate([*map(np.arange, lengths), [0, 0]]),
    }
    together = {name: jnp.asarray(values[None], jnp.int32) for name, values in fields.items()}
    alone_mask = np.arange(10) < lengths[:, None]
    return jnp.asarray(alone, jnp.int32), jnp.asarray(alone_mask, jnp.int32), together


@pytest.mark.parametrize("compute", [PLAIN, FUSED], ids=["plain", "fused"])
def test_packed_passages_equal_the_passages_alone(encoder, make_params, packed, compute):
    params, (ids, mask, together) = make_params(encoder), packed
    alone = real_rows(last(encoder, params, ids, mask, compute), mask)
    row = last(
        encoder,
        params,
        together["ids"],
        together["mask"],
        compute,
        segment_ids=together["segment_ids"],
        position_ids=together["position_ids"],
    )
    np.testing.assert_allclose(real_rows(row, together["mask"]), alone, atol=5e-6)


@pytest.mark.parametrize(
    "encoder, left_out",
    [("bert", "segment_ids"), ("distilbert", "position_ids")],
    indirect=["encoder"],
)
def test_packing_needs_both_segments_and_positions(encoder, make_params, packed, left_out):
    params, (ids, mask, together) = make_params(encoder), packed
    given = {name: together[name] for name in ("segment_ids", "position_ids") if name != left_out}
    row = last(encoder, params, together["ids"], together["mask"], **given)
    alone = real_rows(last(encoder, params, ids, mask), mask)
    # The first passage has its own positions either way, the later ones do not.
    assert np.abs(real_rows(row, together["mask"])[4:] - alone[4:]).max() > 0.1


# --- inputs that may be left out


def test_positions_count_from_zero_unless_given(encoder, make_params, batch):
    params, (ids, mask) = make_params(encoder), batch
    counted = jnp.broadcast_to(jnp.arange(10, dtype=jnp.int32), ids.shape)
    implicit, explicit, shifted = (
        last(encoder, params, ids, mask, position_ids=p) for p in (None, counted, counted + 1)
    )
    np.testing.assert_allclose(implicit, explicit, atol=1e-6)
    assert np.abs(implicit - shifted).max() > 0.1


def test_token_types_are_zero_unless_given_and_never_dropped(bert, make_params, batch):
    params, (ids, mask) = make_params(bert), batch
    implicit, zeros, ones = (
        last(bert, params, ids, mask, token_type_ids=t)
        for t in (None, jnp.zeros_like(ids), jnp.ones_like(ids))
    )
    np.testing.assert_allclose(implicit, zeros, atol=1e-6)
    assert np.abs(implicit - ones).max() > 0.1
    rows = {"input_ids": ids, "attention_mask": mask, "token_type_ids": jnp.ones_like(ids)}
    run = jax.jit(models.encode_batch, static_argnums=(0, 1))
    of_batch = run(bert, PLAIN, params["encoder"], rows)["last_hidden_state"]
    np.testing.assert_allclose(of_batch, ones, atol=1e-6)


# --- outputs


def test_only_what_was_asked_for_is_returned(bert, make_params, batch):
    params = make_params(bert)["encoder"]
    for wanted in [(), ("hidden_states",), ("queries", "values"), models.OUTPUTS]:
        run = functools.partial(models.encode, bert, PLAIN, outputs=wanted)
        named = jax.eval_shape(run, params, *batch)
        assert set(named) == {"last_hidden_state", *wanted}


def test_what_was_not_asked_for_is_not_computed(bert, make_params, batch):
    params = make_params(bert)

    def program(**kwargs):
        return str(jax.make_jaxpr(lambda p: encode(bert, p, *batch, **kwargs))(params))

    # GELU is erf here, so the pooler has the only tanh.
    assert " tanh " not in program()
    assert " tanh " in program(outputs=("pooler_output",))


def test_outputs_have_their_shapes_and_agree_with_each_other(bert, make_params, batch):
    params, (ids, mask) = make_params(bert), batch
    out = encode(bert, params, ids, mask, outputs=models.OUTPUTS)
    (size, length), heads, width = ids.shape, bert.num_heads, bert.hidden_size

    assert [h.shape for h in out["hidden_states"]] == [(size, length, width)] * (
        bert.num_layers + 1
    )
    np.testing.assert_array_equal(out["hidden_states"][-1], out["last_hidden_state"])
    assert out["pooler_output"].shape == (size, width)
    pooler = params["encoder"]["pooler"]
    np.testing.assert_allclose(
        out["pooler_output"],
        np.tanh(out["last_hidden_state"][:, 0] @ pooler["kernel"] + pooler["bias"]),
        atol=1e-6,
    )
    for layer in range(bert.num_layers):
        probabilities = np.asarray(out["attentions"][layer])
        assert probabilities.shape == (size, heads, length, length)
        np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-6)
        assert (probabilities * (1 - np.asarray(mask))[:, None, None] == 0).all()
        query, key = out["queries"][layer], out["keys"][layer]
        assert query.shape == key.shape == out["values"][layer].shape == (size, length, heads, 6)
        scores = np.einsum("bqhk,bmhk->bhqm", query, key) / np.sqrt(6)
        np.testing.assert_allclose(out["attention_scores"][layer], scores, atol=1e-5)
        context = np.einsum("bhqm,bmhk->bqhk", probabilities, out["values"][layer])
        context = context.reshape(size, length, width)
        np.testing.assert_allclose(out["contexts"][layer], context, atol=1e-5)


def test_a_layer_by_itself_is_the_layer_in_the_encoder(encoder, make_params, batch):
    params, (ids, mask) = make_params(encoder), batch
    out = encode(encoder, params, ids, mask, outputs=("hidden_states", "ffn_inputs"))
    for i in range(encoder.num_layers):
        layer, entered = params["encoder"][f"layers_{i}"], out["hidden_states"][i]
        asked = ("ffn_inputs",)
        left, shown = jitted_layer(encoder, PLAIN, layer, entered, mask, outputs=asked)
        np.testing.assert_allclose(left, out["hidden_states"][i + 1], atol=1e-6)
        np.testing.assert_allclose(shown["ffn_inputs"], out["ffn_inputs"][i], atol=1e-6)


@pytest.mark.parametrize("compute", [PLAIN, FUSED, Compute(remat=True)])
def test_asking_changes_no_other_output(bert, make_params, batch, compute):
    params, (ids, mask) = make_params(bert), batch
    plain = last(bert, params, ids, mask, compute)
    asked = last(bert, params, ids, mask, compute, outputs=models.OUTPUTS)
    np.testing.assert_allclose(real_rows(asked, mask), real_rows(plain, mask), atol=2e-6)


# --- dropout


def test_without_a_key_dropout_is_off(encoder, make_params, batch):
    params = make_params(encoder)
    no_dropout = dataclasses.replace(encoder, dropout=0.0, attention_dropout=0.0)
    expected = last(no_dropout, params, *batch)
    np.testing.assert_array_equal(last(encoder, params, *batch), expected)
    with_key = last(no_dropout, params, *batch, dropout_key=jax.random.key(0))
    np.testing.assert_array_equal(with_key, expected)


@pytest.mark.parametrize("place, remat", [("dropout", False), ("attention_dropout", True)])
def test_with_a_key_dropout_is_that_keys(shallow_bert, make_params, batch, place, remat):
    params = make_params(shallow_bert)
    rates = {"dropout": 0.0, "attention_dropout": 0.0, place: 0.3}
    dropping = dataclasses.replace(shallow_bert, **rates)
    off, first, again, second = (
        last(dropping, params, *batch, Compute(remat=remat), dropout_key=key)
        for key in (None, jax.random.key(1), jax.random.key(1), jax.random.key(2))
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - off).max() > 0.1
    assert np.abs(first - second).max() > 0.1


def test_dropout_takes_its_share_and_keeps_the_mean(shallow_bert, make_params, batch):
    # With only the embeddings' LayerNorm bias not zero, their state is that bias or nothing.
    ones = jax.tree.map(np.zeros_like, make_params(shallow_bert)["encoder"])
    ones["embeddings"]["norm"]["bias"] += 1
    half = dataclasses.replace(shallow_bert, dropout=0.5)
    states = encode(
        half, {"encoder": ones}, *batch, outputs=("hidden_states",), dropout_key=jax.random.key(0)
    )["hidden_states"]
    kept = np.asarray(states[0])
    assert set(np.unique(kept)) == {0.0, 2.0}  # what is kept is scaled to keep the mean
    assert 0.4 < (kept == 0).mean() < 0.6


def test_the_attentions_shown_are_those_before_dropout(shallow_bert, make_params, batch):
    dropping = dataclasses.replace(shallow_bert, dropout=0.0, attention_dropout=0.5)
    out = encode(
        dropping,
        make_params(shallow_bert),
        *batch,
        outputs=("attentions",),
        dropout_key=jax.random.key(0),
    )
    np.testing.assert_allclose(np.asarray(out["attentions"][0]).sum(-1), 1, atol=1e-6)


# --- mistakes


def test_sequences_longer_than_the_positions_are_refused(bert, make_params):
    ids = jnp.ones((1, 21), jnp.int32)
    with pytest.raises(UserError, match=r"21 tokens long .* 20 positions; shorten data.max_length"):
        encode(bert, make_params(bert), ids, ids)


def test_token_types_for_a_distilbert_are_refused(distilbert, make_params, batch):
    with pytest.raises(UserError, match=r"token_type_ids .* no token types .* leave them out"):
        encode(distilbert, make_params(distilbert), *batch, token_type_ids=batch[0])


def test_an_unknown_output_is_answered_with_the_nearest(bert, make_params, batch):
    with pytest.raises(UserError, match=r"'hiden_states' .* did you mean 'hidden_states'\?"):
        encode(bert, make_params(bert), *batch, outputs=("hiden_states",))


def test_the_pooler_of_a_distilbert_is_refused(distilbert, make_params, batch):
    with pytest.raises(UserError, match=r"without a pooler; use mean or CLS pooling"):
        encode(distilbert, make_params(distilbert), *batch, outputs=("pooler_output",))
