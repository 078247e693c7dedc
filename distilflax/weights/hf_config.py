"""`config.json`: Hugging Face's description of an architecture, and ours.

BERT and DistilBERT call the same things by different names; `_FIELDS` is the dictionary. Values
that this project computes differently, or not at all, are refused rather than passed over: a model
that loads and then computes something else is the worst of outcomes.
"""

from pathlib import Path
from typing import NamedTuple

from distilflax import json_file
from distilflax.errors import UserError, choose_from
from distilflax.settings import DISTILBERT_EPS, Encoder

FILE = "config.json"
MODEL_TYPES = ("bert", "distilbert")

# Field of `Encoder`: BERT's key, DistilBERT's key, least value; None is a key that must be there.
_SIZES = {
    "vocab_size": ("vocab_size", "vocab_size", 1, None),
    "hidden_size": ("hidden_size", "dim", 1, None),
    "num_layers": ("num_hidden_layers", "n_layers", 1, None),
    "num_heads": ("num_attention_heads", "n_heads", 1, None),
    "intermediate_size": ("intermediate_size", "hidden_dim", 1, None),
    "max_positions": ("max_position_embeddings", "max_position_embeddings", 1, None),
    "pad_token_id": ("pad_token_id", "pad_token_id", 0, 0),
}
# Field of `Encoder`: BERT's key, DistilBERT's key, most, what an absent key means.
_NUMBERS = {
    "dropout": ("hidden_dropout_prob", "dropout", 0.99, 0.1),
    "attention_dropout": ("attention_probs_dropout_prob", "attention_dropout", 0.99, 0.1),
    "initializer_range": ("initializer_range", "initializer_range", 10.0, 0.02),
}
_ACTIVATION_KEY = {"bert": "hidden_act", "distilbert": "activation"}

# The same function under its other names.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "relu": "relu",
}

_ARCHITECTURES = {
    ("bert", False): "BertModel",
    ("bert", True): "BertForMaskedLM",
    ("distilbert", False): "DistilBertModel",
    ("distilbert", True): "DistilBertForMaskedLM",
}


class Description(NamedTuple):
    """What `config.json` says. Whether there is a pooler, only the weights say."""

    model_type: str
    encoder: Encoder
    tied: bool


def read(folder: Path) -> Description:
    """The architecture that `folder/config.json` describes, with `pooler=False`.

    Raises:
      UserError: the file is absent or damaged, another architecture, a value that is missing or out
        of range, or a variant of BERT that is not computed here.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"{folder} has no {FILE}; give the folder that the model was saved to.")
    config = json_file.read(path)
    where = str(path)

    model_type = config.get("model_type")
    if model_type is None:
        raise UserError(
            f'{where}: model_type is missing; if the model is a BERT, add "model_type": "bert".'
        )
    if model_type not in MODEL_TYPES:
        raise UserError(
            f"{where}: model_type is {str(model_type)[:80]!r}, an architecture that is not "
            f"supported; {' and '.join(MODEL_TYPES)} are."
        )
    _refuse_variants(config, where)

    column = MODEL_TYPES.index(model_type)
    values: dict = {"hidden_act": _activation(config, model_type, where)}
    for field, (*keys, least, default) in _SIZES.items():
        values[field] = json_file.integer(config, keys[column], where, least=least, default=default)
    for field, (*keys, most, default) in _NUMBERS.items():
        values[field] = json_file.number(
            config, keys[column], where, least=0.0, most=most, default=default
        )
    if model_type == "bert":
        values["type_vocab_size"] = json_file.integer(
            config, "type_vocab_size", where, least=1, default=2
        )
        values["layer_norm_eps"] = json_file.number(
            config, "layer_norm_eps", where, least=0.0, most=1.0, default=1e-12
        )
    else:
        values |= {"type_vocab_size": 0, "layer_norm_eps": DISTILBERT_EPS}
    try:
        encoder = Encoder(pooler=False, **values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if encoder.pad_token_id >= encoder.vocab_size:
        raise UserError(
            f"{where}: pad_token_id is {encoder.pad_token_id!s:.40}, but there are only "
            f"{encoder.vocab_size:,} words."
        )
    tied = config.get("tie_word_embeddings", True)
    if not isinstance(tied, bool):
        raise UserError(f"{where}: tie_word_embeddings must be true or false.")
    return Description(model_type, encoder, tied)


def _activation(config: dict, model_type: str, where: str) -> str:
    key = _ACTIVATION_KEY[model_type]
    name = config.get(key, "gelu")
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        name = str(name)[:80]
        raise UserError(f"{where}: {key} is {name!r}; {choose_from(name, _ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _refuse_variants(config: dict, where: str) -> None:
    """Refuse the variants of BERT that share its model_type and compute something else."""
    positions = config.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise UserError(
            f"{where}: position_embedding_type is {str(positions)[:80]!r}; only 'absolute' "
            "(learned) positions are supported."
        )
    for key, means in (
        ("is_decoder", "a decoder with causal attention"),
        ("add_cross_attention", "a decoder with cross attention"),
        ("is_encoder_decoder", "an encoder and a decoder"),
        ("quantization_config", "a quantised model"),
        ("pruned_heads", "a model with heads pruned away"),
    ):
        if config.get(key):
            raise UserError(f"{where}: {key} is set, so this is {means}; only encoders are read.")
    code = config.get("auto_map")
    if isinstance(code, dict) and any(key.startswith("AutoModel") for key in code):
        raise UserError(
            f"{where}: auto_map says that the model runs code of its own; only the standard "
            f"architectures are read: {', '.join(MODEL_TYPES)}."
        )


def describe(encoder: Encoder, *, mlm_head: bool, tied: bool) -> dict:
    """The `config.json` of `encoder`, the reverse of `read`; no file is touched."""
    model_type = encoder.family
    column = MODEL_TYPES.index(model_type)
    config = {
        "architectures": [_ARCHITECTURES[model_type, mlm_head]],
        "model_type": model_type,
        "tie_word_embeddings": tied,
        _ACTIVATION_KEY[model_type]: encoder.hidden_act,
    }
    for field, (*keys, _, _) in (_SIZES | _NUMBERS).items():
        config[keys[column]] = getattr(encoder, field)
    if model_type == "bert":
        # BERT's code cannot do without token types: `writer.save` gives it one, of zeros.
        config["type_vocab_size"] = max(encoder.type_vocab_size, 1)
        config["layer_norm_eps"] = encoder.layer_norm_eps
        config["position_embedding_type"] = "absolute"
    else:
        config["sinusoidal_pos_embds"] = False
    return dict(sorted(config.items()))
