"""A task's head in a Hugging Face folder: its tensors, and what `config.json` says of it.

transformers keeps the names of the labels in `id2label`, tells heads apart by `architectures`, and
passes over keys that it does not know: `OWN` holds what only this project reads, such as the
thresholds that were chosen on development data.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from distilflax import json_file, models
from distilflax.errors import UserError
from distilflax.models import TaskHead
from distilflax.settings import Encoder
from distilflax.weights import hf_config, sentence, tensor_file
from distilflax.weights.tensor_file import Entry

OWN = "distilflax"
_CLASSES = {
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "answer": "ForQuestionAnswering",
}
_FAMILIES = {"bert": "Bert", "distilbert": "DistilBert"}
_PROBLEMS = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}
# By the last part of the class that sentence-transformers names for a head of one output, and what
# it is to be told.
_ACTIVATIONS = {
    "Identity": ("identity", "torch.nn.modules.linear.Identity"),
    "Sigmoid": ("sigmoid", "torch.nn.modules.activation.Sigmoid"),
}
# Where it does so, from version 4 on and before.
_SENTENCE, _NAMED, _NAMED_BEFORE = (
    "sentence_transformers",
    "activation_fn",
    "sbert_ce_default_activation_function",
)
# Where a head's dropout is kept, and what an absent key means there: None is the encoder's own.
_DROPOUT = {
    ("bert", "sequence"): ("classifier_dropout", None),
    ("bert", "token"): ("classifier_dropout", None),
    ("distilbert", "sequence"): ("seq_classif_dropout", 0.2),
    ("distilbert", "token"): ("dropout", None),
    ("distilbert", "answer"): ("qa_dropout", 0.1),
}


@dataclass(frozen=True, eq=False)
class Headed:
    """A head as read from a folder: what it is, its parameters, and what `OWN` holds."""

    head: TaskHead
    params: dict
    own: dict


def dropout(folder: Path, encoder: Encoder, kind: str) -> float:
    """What a folder, be there a head in it or not, has dropped before the last layer of such a
    head; where it does not say, as transformers.

    Raises:
      UserError: a value that is no rate.
    """
    path = folder / hf_config.FILE
    return _dropout(json_file.read(path), str(path), encoder, kind)


def _dropout(config: dict, where: str, encoder: Encoder, kind: str) -> float:
    key, usual = _DROPOUT.get((config["model_type"], kind), (None, 0.0))
    usual = encoder.dropout if usual is None else usual
    if key is None:
        return usual
    return json_file.number(config, key, where, least=0.0, most=0.99, default=usual)


def prepare(
    encoder: Encoder, params: Mapping, kind: str, key: PRNGKeyArray
) -> tuple[Encoder, dict]:
    """The encoder as transformers has it below such a head: {"encoder": ...} alone.

    BERT's sequence head reads the pooler: an encoder without one gets one, drawn from `key`. The
    other heads have none below them.
    """
    wanted = kind == "sequence" and encoder.family == "bert"
    inner = {name: leaf for name, leaf in params["encoder"].items() if name != "pooler"}
    if wanted:
        drawn = {
            "kernel": encoder.initializer_range
            * jax.random.normal(key, (encoder.hidden_size, encoder.hidden_size)),
            "bias": np.zeros(encoder.hidden_size, np.float32),
        }
        inner["pooler"] = params["encoder"].get("pooler", drawn)
    return replace(encoder, pooler=wanted), {"encoder": inner}


def read(folder: Path, encoder: Encoder, spare: Mapping[str, Entry]) -> Headed | None:
    """The head of a folder, or None where `architectures` names no head that is known here.

    Args:
      spare: the tensors that are not the encoder's, by their names in the file.

    Raises:
      UserError: labels that are not numbered 0, 1, ..., an activation that is not known here, or
        tensors that are missing or misshapen.
    """
    config, where = json_file.read(folder / hf_config.FILE), str(folder / hf_config.FILE)
    named = config.get("architectures")
    named = str(named[0]) if isinstance(named, list) and named else ""
    kind = next((kind for kind, ending in _CLASSES.items() if named.endswith(ending)), None)
    if kind is None:
        return None
    labels = () if kind == "answer" else _labels(config, spare, where)
    problem = _problem(config, labels, where)
    number = kind == "sequence" and problem == "regression"
    activation = _activation(folder, config) if number else ""
    rate = _dropout(config, where, encoder, kind)
    head = TaskHead(kind, labels, problem, rate, activation=activation)
    own = config.get(OWN) or {}
    if not isinstance(own, dict):
        raise UserError(f"{where}: {OWN} should be an object; remove it.")
    return Headed(head, _params(folder, head, encoder, spare), own)


def _labels(config: dict, spare: Mapping[str, Entry], where: str) -> tuple[str, ...]:
    names = config.get("id2label")
    if names is None:
        # transformers writes no names where there are two, which is its own default.
        named = (name for name in spare if f".{name}".endswith(".classifier.bias"))
        # Not those of pre_classifier; and of a bias that is one number, `_params` tells.
        rows = [size for name in named for size in spare[name].shape[:1]]
        return _numbered(max(rows, default=2))
    numbered = [str(i) for i in range(len(names))] if isinstance(names, dict) else []
    if not numbered or set(names) != set(numbered):
        raise UserError(f"{where}: id2label should name the labels 0, 1, ... one by one.")
    found = tuple(str(names[i]) for i in numbered)
    if len(set(found)) < len(found):
        raise UserError(f"{where}: id2label has the same name for two labels.")
    return found


def _problem(config: dict, labels: tuple[str, ...], where: str) -> str:
    for ours, theirs in _PROBLEMS.items():
        if config.get("problem_type") == theirs:
            if ours == "regression" and len(labels) > 1:
                raise UserError(
                    f"{where}: a regression of {len(labels)} numbers is not supported; give a "
                    "model of one."
                )
            return ours
    # As transformers decides where the problem was left open: one output is a number.
    return "regression" if len(labels) == 1 else "single"


def _activation(folder: Path, config: dict) -> str:
    """What a cross-encoder's number goes through; empty where neither file says.

    The class is never imported, whatever is named.
    """
    of_model, told = json_file.read_if_there(folder / sentence.SETTINGS), config.get(_SENTENCE)
    path, named = folder / sentence.SETTINGS, of_model.get(_NAMED)
    if named is None:
        path = folder / hf_config.FILE
        named = told.get(_NAMED) if isinstance(told, dict) else None
        named = config.get(_NAMED_BEFORE) if named is None else named
    if named is None:
        return ""
    found = _ACTIVATIONS.get(str(named).rpartition(".")[2])
    if found is None:
        raise UserError(
            f"{path} has the activation {named!r:.80}, and of one number only Sigmoid and Identity "
            "are supported; give a model with one of these."
        )
    return found[0]


def _params(folder: Path, head: TaskHead, encoder: Encoder, spare: Mapping[str, Entry]) -> dict:
    wanted, params = {}, {}
    for layer, part, shape in _tensors(head, encoder):
        ending = f"{layer}.{part}"
        name = next((n for n in spare if n == ending or n.endswith(f".{ending}")), None)
        if name is None:
            raise UserError(
                f"{folder} lacks tensor {ending!r} of the head that its {hf_config.FILE} promises."
            )
        if spare[name].shape != shape:
            raise UserError(
                f"{spare[name].file}: tensor {name!r} is {spare[name].shape}; the labels in "
                f"{hf_config.FILE} make it {shape}."
            )
        wanted[name] = (layer, part)
    for name, array in tensor_file.read((name, spare[name]) for name in wanted):
        layer, part = wanted[name]
        leaf = np.ascontiguousarray(array.T) if part == "weight" else array
        params.setdefault(layer, {})["kernel" if part == "weight" else "bias"] = leaf
    return params


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{i}" for i in range(count))


def is_numbered(labels: Sequence[str]) -> bool:
    """Whether the labels have no names but those that transformers gives."""
    return tuple(labels) == _numbered(len(labels))


def order(theirs: TaskHead, ours: TaskHead) -> list[int] | None:
    """Where each of our outputs stands among theirs; None where they have not the same ones."""
    if theirs.kind == ours.kind and theirs.outputs == ours.outputs == 1:
        return [0]  # one number, whatever it is called and was learned by
    same = (theirs.kind, theirs.problem, sorted(theirs.labels))
    if same != (ours.kind, ours.problem, sorted(ours.labels)):
        return None
    return [theirs.labels.index(label) for label in ours.labels] or list(range(ours.outputs))


def reordered(theirs: TaskHead, params: Mapping, ours: TaskHead) -> dict | None:
    """The parameters of one head as those of another with the same outputs in its own order; None
    where they have not the same."""
    where, last = order(theirs, ours), "classifier"
    if where is None:
        return None
    if last not in params:
        return dict(params)
    return dict(params) | {last: {name: leaf[..., where] for name, leaf in params[last].items()}}


def tensors(
    head: TaskHead, encoder: Encoder, params: Mapping
) -> dict[str, Float[np.ndarray, "..."]]:
    """The head's tensors as a file has them: torch's (out, in)."""
    found = {}
    for layer, part, shape in _tensors(head, encoder):
        leaf = params.get(layer, {}).get("kernel" if part == "weight" else "bias")
        array = np.asarray(0.0 if leaf is None else leaf, np.float32)
        array = np.ascontiguousarray(array.T if part == "weight" else array)
        if array.shape != shape:
            raise UserError(
                f"The head's {layer}.{part} is {array.shape}; its labels make it {shape}."
            )
        found[f"{layer}.{part}"] = array
    return found


def _tensors(head: TaskHead, encoder: Encoder) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    for layer, (rows, columns) in models.head_shapes(head, encoder).items():
        yield layer, "weight", (columns, rows)
        yield layer, "bias", (columns,)


def describe(head: TaskHead, encoder: Encoder, own: Mapping) -> dict:
    """What `config.json` says of a head, to be put over what it says of the encoder."""
    model_type = encoder.family
    if head.kind == "sequence" and encoder.pooler != (model_type == "bert"):
        raise UserError(
            "BERT's sequence head needs a pooler below it and DistilBERT's none; start from "
            "weights.task_head.prepare."
        )
    config = {"architectures": [f"{_FAMILIES[model_type]}{_CLASSES[head.kind]}"]}
    if head.labels:
        config["id2label"] = {str(i): name for i, name in enumerate(head.labels)}
        config["label2id"] = {name: i for i, name in enumerate(head.labels)}
    if head.kind == "sequence":
        config["problem_type"] = _PROBLEMS[head.problem]
    if head.activation:
        named = next(path for ours, path in _ACTIVATIONS.values() if ours == head.activation)
        config[_SENTENCE] = {_NAMED: named}
    key, _ = _DROPOUT.get((model_type, head.kind), ("dropout", None))
    if key != "dropout":
        config[key] = head.dropout
    if own:
        config[OWN] = dict(own)
    return config
