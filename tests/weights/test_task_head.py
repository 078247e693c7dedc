"""Heads of fine-tuned models: out and in again to the last bit, and as transformers has them."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import distilflax
from distilflax import models, weights
from distilflax.errors import UserError
from distilflax.models import TaskHead
from distilflax.settings import Compute
from distilflax.tasks import Classification

HEADS = {
    "sequence": TaskHead("sequence", ("bad", "good", "so so"), dropout=0.2),
    "token": TaskHead("token", ("O", "B-person", "I-person")),
    "answer": TaskHead("answer", dropout=0.1),
}


def headed(folder, kind, **changes):
    """(encoder, params, head): the golden model of `folder` below a random head."""
    checkpoint = weights.load(folder)
    key = jax.random.key(3)
    encoder, params = weights.task_head.prepare(checkpoint.encoder, checkpoint.params, kind, key)
    rate = weights.task_head.dropout(folder, checkpoint.encoder, kind)
    head = replace(HEADS[kind], dropout=rate, **changes)
    drawn = jax.tree.map(lambda x: x * 20 + 0.1, models.init_head(head, encoder, key))
    return encoder, params | {"task_head": drawn}, head


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_is_read_back_as_it_was_saved(golden, family, kind, tmp_path):
    folder, _ = golden(family)
    encoder, params, head = headed(folder, kind)
    own = {"threshold": 0.25}
    weights.save(tmp_path / "m", encoder, params, tokenizer_folder=folder, head=head, own=own)
    again = weights.load(tmp_path / "m", with_task_head=True)
    assert (again.head, again.encoder, again.own) == (head, encoder, own)
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    assert "task_head" not in weights.load(tmp_path / "m").params


def test_two_labels_need_no_names(golden, family, tmp_path):
    """transformers writes no id2label where it is its own default."""
    folder, _ = golden(family)
    encoder, params, head = headed(folder, "sequence", labels=("LABEL_0", "LABEL_1"))
    place = tmp_path / "m"
    weights.save(place, encoder, params, tokenizer_folder=folder, head=head)
    config = json.loads((place / "config.json").read_text())
    kept = {name: value for name, value in config.items() if name not in ("id2label", "label2id")}
    (place / "config.json").write_text(json.dumps(kept))
    assert weights.load(place, with_task_head=True).head == head


def test_what_a_config_leaves_open_is_as_transformers_has_it(golden, tmp_path):
    folder, _ = golden("distilbert")
    encoder, params, head = headed(folder, "sequence", labels=("score",), problem="regression")
    other = replace(head, dropout=0.3)
    weights.save(tmp_path / "m", encoder, params, tokenizer_folder=folder, head=other)
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("problem_type") == "regression" and config.pop("seq_classif_dropout") == 0.3
    path.write_text(json.dumps(config))
    read = weights.load(tmp_path / "m", with_task_head=True).head
    assert read == replace(head, dropout=0.2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"bert": (0.1, 0.1, 0.0), "distilbert": (0.2, 0.1, 0.1)}),
        (
            {"hidden_dropout_prob": 0.3, "dropout": 0.3},
            {"bert": (0.3, 0.3, 0.0), "distilbert": (0.2, 0.3, 0.1)},
        ),
        (
            {"classifier_dropout": 0.4, "seq_classif_dropout": 0.5, "qa_dropout": 0.6},
            {"bert": (0.4, 0.4, 0.0), "distilbert": (0.5, 0.1, 0.6)},
        ),
    ],
)
def test_a_folder_says_what_a_new_head_drops(golden, family, tmp_path, changes, expected):
    """As transformers builds such heads, `nn.Dropout` for `nn.Dropout`."""
    folder, _ = golden(family)
    shutil.copytree(folder, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    known = {"hidden_dropout_prob": 0.1, "dropout": 0.1}
    path.write_text(json.dumps(json.loads(path.read_text()) | known | changes))
    encoder = weights.load(tmp_path / "m").encoder
    found = tuple(weights.task_head.dropout(tmp_path / "m", encoder, kind) for kind in HEADS)
    assert found == expected[family]


def test_a_head_has_its_outputs_in_the_order_that_is_asked_for(golden):
    _, params, head = headed(golden("distilbert")[0], "sequence")
    turned = replace(head, labels=head.labels[::-1])
    found = weights.task_head.reordered(head, params["task_head"], turned)
    for name, leaf in found["classifier"].items():
        np.testing.assert_array_equal(leaf[..., ::-1], params["task_head"]["classifier"][name])
    assert found["pre_classifier"] is params["task_head"]["pre_classifier"]
    other = replace(head, labels=("a", "b", "c"))
    assert weights.task_head.reordered(head, params["task_head"], other) is None


def test_vectors_have_no_layers_and_only_outputs_begin_at_a_prior(golden):
    encoder = weights.load(golden("bert")[0]).encoder
    assert models.init_head(TaskHead("vector"), encoder, jax.random.key(0)) == {}
    below = replace(encoder, pooler=False)
    drawn = models.init_head(TaskHead("sequence", ("x",)), below, jax.random.key(0), 2.5)
    assert drawn["classifier"]["bias"].tolist() == [2.5]
    assert not drawn["pre_classifier"]["bias"].any()


def test_a_folder_without_a_head_has_none(golden, family):
    checkpoint = weights.load(golden(family)[0], with_task_head=True)
    assert checkpoint.head is None and "task_head" not in checkpoint.params


NOW, BEFORE = "sentence_transformers", "sbert_ce_default_activation_function"


@pytest.mark.parametrize(
    ("keys", "beside", "activation"),
    [
        ({}, {}, ""),
        ({NOW: {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, {}, "sigmoid"),
        ({BEFORE: "torch.nn.modules.linear.Identity"}, {}, "identity"),
        ({BEFORE: "torch.nn.Identity"}, {"activation_fn": "torch.nn.Sigmoid"}, "sigmoid"),
        ({NOW: {"activation_fn": "os.system"}}, {}, None),
    ],
)
def test_what_a_number_goes_through_is_read_from_either_file_and_kept(
    golden, tmp_path, keys, beside, activation
):
    folder, _ = golden("bert")
    encoder, params, head = headed(folder, "sequence", labels=("score",), problem="regression")
    weights.save(tmp_path / "m", encoder, params, tokenizer_folder=folder, head=head)
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    (tmp_path / "m" / "config_sentence_transformers.json").write_text(json.dumps(beside))
    if activation is None:
        with pytest.raises(UserError, match="only Sigmoid and Identity are supported"):
            weights.load(tmp_path / "m", with_task_head=True)
        return
    head = weights.load(tmp_path / "m", with_task_head=True).head
    assert head.activation == activation
    weights.save(tmp_path / "again", encoder, params, tokenizer_folder=folder, head=head)
    assert weights.load(tmp_path / "again", with_task_head=True).head == head


@pytest.mark.parity
@pytest.mark.parametrize("activation", ["", "sigmoid"])
def test_a_regression_has_the_number_of_cross_encoder(golden, tmp_path, activation):
    theirs = pytest.importorskip("sentence_transformers")
    task, (source, _) = Classification(problem="regression", activation=activation), golden("bert")
    encoder, params, _ = headed(source, "sequence", labels=("score",), problem="regression")
    head, own, path = task.learn([]).head(encoder), {"pair": "second"}, tmp_path / "m"
    weights.save(path, encoder, params, tokenizer_folder=source, head=head, own=own)
    pairs = [("the student", "reads"), ("a bad", "model")]
    ours = [distilflax.load(path).classify(*pair)["value"] for pair in pairs]
    found = theirs.CrossEncoder(str(path), device="cpu").predict(pairs)
    np.testing.assert_allclose(ours, found, atol=1e-5)


def test_of_labels_no_activation_is_asked(golden, tmp_path):
    folder, _ = golden("bert")
    encoder, params, head = headed(folder, "sequence")
    weights.save(tmp_path / "m", encoder, params, tokenizer_folder=folder, head=head)
    path = tmp_path / "m" / "config.json"
    named = {"sentence_transformers": {"activation_fn": "torch.nn.Softmax"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | named))
    assert weights.load(tmp_path / "m", with_task_head=True).head == head


def test_an_encoder_without_pooler_gets_one_below_berts_sequence_head(golden):
    checkpoint = weights.load(golden("bert")[0])
    bare = {"encoder": {k: v for k, v in checkpoint.params["encoder"].items() if k != "pooler"}}
    encoder = replace(checkpoint.encoder, pooler=False)
    for kind in HEADS:
        prepared, params = weights.task_head.prepare(encoder, bare, kind, jax.random.key(0))
        assert prepared.pooler == (kind == "sequence") == ("pooler" in params["encoder"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"id2label": {"0": "a", "2": "b", "3": "c"}}, "should name the labels 0, 1"),
        ({"id2label": {"0": "a", "1": "a", "2": "c"}}, "same name for two labels"),
        ({"id2label": {"0": "a", "1": "b"}}, "the labels in config.json make it"),
        ({"distilflax": 3}, "distilflax should be an object"),
        ({"problem_type": "regression"}, "a regression of 3 numbers is not supported"),
    ],
)
def test_a_config_that_does_not_fit_its_head_is_refused(golden, tmp_path, change, sentence):
    folder, _ = golden("distilbert")
    encoder, params, head = headed(folder, "sequence")
    weights.save(tmp_path / "m", encoder, params, tokenizer_folder=folder, head=head)
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=sentence):
        weights.load(tmp_path / "m", with_task_head=True)


def test_a_bias_of_no_dimensions_is_refused(golden, tmp_path):
    """Where no labels are named, their number is that of the biases."""
    folder, _ = golden("distilbert")
    encoder, params, head = headed(folder, "sequence")
    weights.save(tmp_path / "m", encoder, params, tokenizer_folder=folder, head=head)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    del config["id2label"], config["label2id"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    path = tmp_path / "m" / "model.safetensors"
    tensors = dict(load_file(path)) | {"classifier.bias": np.zeros((), np.float32)}
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"the labels in config.json make it"):
        weights.load(tmp_path / "m", with_task_head=True)


@pytest.mark.parity
@pytest.mark.parametrize("kind", HEADS)
def test_transformers_computes_the_same_with_our_folder_and_we_with_its_own(
    golden, family, kind, tmp_path
):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder, arrays = golden(family)
    encoder, params, head = headed(folder, kind)
    weights.save(tmp_path / "ours", encoder, params, tokenizer_folder=folder, head=head)
    auto = {
        "sequence": transformers.AutoModelForSequenceClassification,
        "token": transformers.AutoModelForTokenClassification,
        "answer": transformers.AutoModelForQuestionAnswering,
    }[kind]
    theirs, report = auto.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    if head.labels:
        assert theirs.config.id2label == dict(enumerate(head.labels))
    theirs.eval().save_pretrained(tmp_path / "theirs")
    weights_again = weights.load(tmp_path / "theirs", with_task_head=True)
    assert weights_again.head == head

    given = {name: arrays[name] for name in ("input_ids", "attention_mask")}
    if family == "bert":
        given["token_type_ids"] = arrays["token_type_ids"]
    with torch.no_grad():
        out = theirs(**{name: torch.tensor(array) for name, array in given.items()})
    if kind == "answer":
        expected = np.stack([out.start_logits.numpy(), out.end_logits.numpy()], axis=-1)
    else:
        expected = out.logits.numpy()
    given = {name: jnp.asarray(array) for name, array in given.items()}
    for tree in (params, weights_again.params):
        ours = models.task_logits(encoder, Compute(), head, tree, **given)
        np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=1e-4)
