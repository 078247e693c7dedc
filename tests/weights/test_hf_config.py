"""config.json: value by value, and refused where this project would compute something else."""

import json

import pytest

from distilflax.errors import UserError
from distilflax.settings import Encoder
from distilflax.weights import hf_config


@pytest.fixture
def config(golden, tmp_path):
    """config("bert", key=value, ...) reads that golden config with those values (... removes)."""

    def read(name, **changes):
        values = json.loads((golden(name)[0] / "config.json").read_text()) | changes
        values = {key: value for key, value in values.items() if value is not ...}
        (tmp_path / "config.json").write_text(json.dumps(values))
        return hf_config.read(tmp_path)

    return read


def test_bert(config):
    found = config("bert", layer_norm_eps=1e-7, hidden_dropout_prob=0.3, hidden_act="relu")
    assert found == hf_config.Description(
        "bert",
        Encoder(
            vocab_size=64,
            hidden_size=16,
            num_layers=3,
            num_heads=4,
            intermediate_size=32,
            max_positions=24,
            type_vocab_size=2,
            pooler=False,
            hidden_act="relu",
            dropout=0.3,
            layer_norm_eps=1e-7,
        ),
        tied=True,
    )


def test_distilbert_has_names_of_its_own(config):
    found = config("distilbert", attention_dropout=0.2, dim=8, hidden_dim=20, n_heads=2)
    assert found.model_type == "distilbert"
    encoder = found.encoder
    assert (encoder.hidden_size, encoder.intermediate_size, encoder.num_heads) == (8, 20, 2)
    assert (encoder.num_layers, encoder.type_vocab_size, encoder.pooler) == (3, 0, False)
    assert (encoder.dropout, encoder.attention_dropout) == (0.1, 0.2)


def test_absent_keys_mean_what_transformers_takes_them_for(config):
    found = config("bert", pad_token_id=None, tie_word_embeddings=..., hidden_act=...)
    assert (found.encoder.pad_token_id, found.tied, found.encoder.hidden_act) == (0, True, "gelu")
    for name in ("gelu_pytorch_tanh", "gelu_fast"):
        assert config("bert", hidden_act=name).encoder.hidden_act == "gelu_new"
    assert not config("bert", tie_word_embeddings=False).tied


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'.*bert and distilbert are"),
        ({"model_type": ...}, 'model_type is missing; if .* is a BERT, add "model_type": "bert"'),
        ({"model_type": ["bert"]}, "model_type"),
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"hidden_size": "768"}, "hidden_size is '768'; it must be a whole number"),
        ({"hidden_size": 16.0}, "hidden_size is 16.0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it must .* at least 1"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_attention_heads": 5}, "hidden_size 16 does not divide into 5 heads"),
        ({"pad_token_id": 64}, "pad_token_id is 64, but there are only 64 words"),
        ({"pad_token_id": 10**400}, "pad_token_id is 1000"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"type_vocab_size": 0}, "type_vocab_size is 0"),
        ({"hidden_act": "swish"}, "hidden_act is 'swish'; choose from gelu"),
        ({"hidden_act": {"a": 1}}, "hidden_act"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false"),
        ({"position_embedding_type": "relative_key"}, "'relative_key'; only 'absolute'"),
        ({"position_embedding_type": "alibi"}, "alibi"),
        ({"is_decoder": True}, "is_decoder is set.*causal"),
        ({"add_cross_attention": True}, "cross attention"),
        ({"quantization_config": {"bits": 8}}, "quantised"),
        ({"pruned_heads": {"0": [1]}}, "pruned"),
        ({"auto_map": {"AutoModel": "modeling.Mine"}}, "code of its own"),
    ],
)
def test_what_is_refused(config, changes, says):
    with pytest.raises(UserError, match=says) as error:
        config("bert", **changes)
    assert "config.json" in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[1]", "JSON object"),
        (b'{"vocab_size": ' + b"9" * 9000 + b"}", "not valid JSON"),
        (b'{"a": 1, "a": 2}', "'a' twice"),
        (b" " * (16 * 2**20 + 1), "far smaller"),
    ],
)
def test_a_config_that_is_no_config(tmp_path, text, says):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(UserError, match=says) as error:
        hf_config.read(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_no_config(tmp_path):
    with pytest.raises(UserError, match=r"has no config.json"):
        hf_config.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "model_type"),
    [
        ({}, "distilbert"),
        ({"type_vocab_size": 2}, "bert"),
        ({"pooler": True}, "bert"),
        ({"layer_norm_eps": 1e-5}, "bert"),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_what_describe_writes_read_reads_back(tmp_path, changes, model_type, tied):
    values = {"type_vocab_size": 0, "pooler": False, "dropout": 0.25, "hidden_act": "gelu_new"}
    encoder = Encoder(**(values | changes))
    text = hf_config.describe(encoder, mlm_head=True, tied=tied)
    (tmp_path / "config.json").write_text(json.dumps(text))
    found = hf_config.read(tmp_path)
    assert (found.model_type, found.tied) == (model_type, tied)
    assert hf_config.describe(found.encoder, mlm_head=True, tied=tied)["vocab_size"] == 30522
    for field in ("hidden_size", "num_layers", "dropout", "hidden_act", "layer_norm_eps"):
        assert getattr(found.encoder, field) == getattr(encoder, field)
