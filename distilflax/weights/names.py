"""What each parameter is called on Hugging Face: one declared table for BERT and DistilBERT.

Our tree of parameters is nested dicts of float32 arrays:

    {"encoder": {"embeddings": {...}, "layers_0": {...}, ..., "pooler": {...}?},
     "mlm_head": {"transform": {...}, "norm": {...}, "bias": ..., "decoder": ...?}?}

A row of the table is one parameter: its path in that tree, its name in a BERT folder, its name in
a DistilBERT folder (None where DistilBERT has no such thing), and its shape in letters. A path that
ends in `kernel` is (in, out) here and transposed, (out, in), in the files: torch's convention.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from distilflax.settings import Encoder


class Row(NamedTuple):
    """One parameter of the table.

    Letters of `shape`: V words, P positions, T token types, D wide, F inside the feed-forward.
    """

    path: str
    bert: str
    distilbert: str | None
    shape: str


EMBEDDINGS = (
    Row(
        "embeddings/word",
        "embeddings.word_embeddings.weight",
        "embeddings.word_embeddings.weight",
        "VD",
    ),
    Row(
        "embeddings/position",
        "embeddings.position_embeddings.weight",
        "embeddings.position_embeddings.weight",
        "PD",
    ),
    Row("embeddings/token_type", "embeddings.token_type_embeddings.weight", None, "TD"),
    Row("embeddings/norm/scale", "embeddings.LayerNorm.weight", "embeddings.LayerNorm.weight", "D"),
    Row("embeddings/norm/bias", "embeddings.LayerNorm.bias", "embeddings.LayerNorm.bias", "D"),
)

# One of our submodules of a layer: its path, its name in either family, the shape of its kernel
# (a LayerNorm has none).
_LAYER = (
    ("attention/query", "attention.self.query", "attention.q_lin", "DD"),
    ("attention/key", "attention.self.key", "attention.k_lin", "DD"),
    ("attention/value", "attention.self.value", "attention.v_lin", "DD"),
    ("attention/output", "attention.output.dense", "attention.out_lin", "DD"),
    ("attention_norm", "attention.output.LayerNorm", "sa_layer_norm", None),
    ("ffn/up", "intermediate.dense", "ffn.lin1", "DF"),
    ("ffn/down", "output.dense", "ffn.lin2", "FD"),
    ("ffn_norm", "output.LayerNorm", "output_layer_norm", None),
)


def _both(path: str, bert: str, distilbert: str | None, kernel: str | None) -> tuple[Row, Row]:
    """The weight and the bias of a dense layer (`kernel` is its shape) or of a LayerNorm."""
    weight = f"{path}/scale" if kernel is None else f"{path}/kernel"
    other = (None, None) if distilbert is None else (f"{distilbert}.weight", f"{distilbert}.bias")
    return (
        Row(weight, f"{bert}.weight", other[0], kernel or "D"),
        Row(f"{path}/bias", f"{bert}.bias", other[1], kernel[-1] if kernel else "D"),
    )


LAYER = tuple(
    row
    for path, bert, distilbert, kernel in _LAYER
    for row in _both(
        f"layers_{{i}}/{path}",
        f"encoder.layer.{{i}}.{bert}",
        f"transformer.layer.{{i}}.{distilbert}",
        kernel,
    )
)

POOLER = _both("pooler", "pooler.dense", None, "DD")

MLM_HEAD = (
    *_both("transform", "cls.predictions.transform.dense", "vocab_transform", "DD"),
    *_both("norm", "cls.predictions.transform.LayerNorm", "vocab_layer_norm", None),
    Row("bias", "cls.predictions.bias", "vocab_projector.bias", "V"),
    Row("decoder", "cls.predictions.decoder.weight", "vocab_projector.weight", "VD"),
)

# What stands before the encoder's names in a model with a head; the head's own names have nothing.
BASE_PREFIX = {"bert": "bert.", "distilbert": "distilbert."}

# BERT's decoder has a bias under a second name, in some files instead of the first and in some
# beside it. transformers 5 computes an untied model with this one alone.
DECODER_BIAS = ("cls.predictions.decoder.bias", "cls.predictions.bias")

# Buffers that old versions saved beside the parameters: 0, 1, 2, ... and zeros.
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")

# Heads of other tasks, put on the same encoder. They say nothing about the encoder: left out. So
# are the maps to its teacher's width that TinyBERT was distilled through.
OTHER_HEADS = ("cls.seq_relationship.", "classifier.", "pre_classifier.", "qa_outputs.")
OTHER_HEADS += ("fit_dense.", "fit_denses.")

# The first version of BERT called LayerNorm's parameters what TensorFlow calls them.
_OLD_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class Tensor(NamedTuple):
    """One tensor of one model: where it lives in our tree, and how a file names and shapes it."""

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    transposed: bool


def tensors(
    encoder: Encoder, model_type: str, *, mlm_head: bool, decoder: bool = False, prefix: str = ""
) -> Iterator[Tensor]:
    """Every tensor of a model in file order, lazily: an absurd depth costs nothing to name.

    Args:
      encoder: the settings that give depth and sizes.
      model_type: `bert` or `distilbert`, whose names are used.
      mlm_head: whether there is a masked-LM head, and with `decoder` one that is not tied.
      prefix: what stands before the encoder's names; the head's names have none.
    """
    for row in EMBEDDINGS:
        if row.path != "embeddings/token_type" or encoder.type_vocab_size:
            yield _tensor("encoder", row, prefix, encoder, model_type)
    for i in range(encoder.num_layers):
        for row in LAYER:
            yield _tensor("encoder", row, prefix, encoder, model_type, layer=i)
    if encoder.pooler:
        for row in POOLER:
            yield _tensor("encoder", row, prefix, encoder, model_type)
    if mlm_head:
        for row in MLM_HEAD:
            if row.path != "decoder" or decoder:
                yield _tensor("mlm_head", row, "", encoder, model_type)


def of_params(encoder: Encoder, params: Mapping, model_type: str = "bert") -> list[Tensor]:
    """The tensors that `params` should consist of: its head says whether there is one, and tied."""
    head = params.get("mlm_head")
    decoder = head is not None and "decoder" in head
    return list(tensors(encoder, model_type, mlm_head=head is not None, decoder=decoder))


def _tensor(
    group: str, row: Row, prefix: str, encoder: Encoder, model_type: str, layer: int = 0
) -> Tensor:
    sizes = {
        "V": encoder.vocab_size,
        "P": encoder.max_positions,
        "T": encoder.type_vocab_size,
        "D": encoder.hidden_size,
        "F": encoder.intermediate_size,
    }
    name = row.bert if model_type == "bert" else row.distilbert
    transposed = row.path.endswith("kernel")
    shape = tuple(sizes[letter] for letter in row.shape)
    return Tensor(
        path=(group, *row.path.replace("{i}", str(layer)).split("/")),
        name=prefix + name.replace("{i}", str(layer)),
        shape=shape[::-1] if transposed else shape,
        transposed=transposed,
    )


def modern(name: str) -> str:
    """`name` with LayerNorm's `gamma` and `beta` called weight and bias."""
    for old, new in _OLD_ENDINGS.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def get(tree: Mapping, path: tuple[str, ...]) -> Any:
    """The leaf of `tree` at `path`, or None."""
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def put(tree: dict, path: tuple[str, ...], leaf: Any) -> None:
    """Set the leaf of `tree` at `path`, making the dicts on the way."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf
