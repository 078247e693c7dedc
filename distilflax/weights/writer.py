"""A model to a Hugging Face folder, whole or not at all."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from distilflax import json_file
from distilflax.errors import UserError
from distilflax.models import TaskHead
from distilflax.settings import Encoder
from distilflax.text import pair_layout, tokenizer_config
from distilflax.text import tokenizer as text_tokenizer
from distilflax.weights import (
    hf_config,
    names,
    surgery,
    task_head,
    tensor_file,
    whole_folder,
)
from distilflax.weights import sentence as sentence_files
from distilflax.weights.checkpoint import Checkpoint

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)

# A folder that holds anything else is not ours to replace.
_REPLACEABLE = {
    hf_config.FILE,
    tensor_file.SINGLE,
    *TOKENIZER_FILES,
    sentence_files.MODULES,
    sentence_files.LENGTH,
    sentence_files.SETTINGS,
    sentence_files.POOLING_FOLDER,
}


def save_student(folder: Path, encoder: Encoder, params: Mapping, teacher: Checkpoint) -> Path:
    """`save` of a student with what it has of its teacher: tokenizer, sentence-transformers files
    and, for whoever fine-tunes it, dropout.

    Raises:
      UserError: as `save` does.
    """
    encoder = surgery.as_left(encoder, teacher.encoder)
    given = {"tokenizer_folder": teacher.folder, "sentence": teacher.sentence}
    return save(folder, encoder, params, **given)


def save(
    folder: str | Path,
    encoder: Encoder,
    params: Mapping,
    *,
    tokenizer_folder: str | Path,
    sentence: sentence_files.SentenceFiles | None = None,
    head: TaskHead | None = None,
    own: Mapping | None = None,
) -> Path:
    """Write a folder that transformers (and sentence-transformers) load; returns its path.

    An encoder without token types and pooler is written as DistilBERT, any other as BERT. The
    folder is made beside its place and moved there when it is complete and on the disk, so that a
    kill or a full disk leaves what was there before. A model folder that is there is replaced.

    Args:
      folder: where to; its parents are made.
      encoder: the architecture of `params["encoder"]`.
      params: float32 arrays, numpy or jax, of one process (not sharded over several).
      tokenizer_folder: where the tokenizer's files are copied from.
      sentence: writes the sentence-transformers files too.
      head: what params["task_head"] is; the folder is then a model for that task.
      own: JSON values that only this project reads, kept in `config.json` with a head.

    Raises:
      UserError: parameters that are not those of `encoder`, no tokenizer files, a folder that is no
        model's, or a disk that cannot take it.
    """
    folder, tokenizer_folder = Path(folder).expanduser().resolve(), Path(tokenizer_folder)
    _check_replaceable(folder)
    config = describe(encoder, params, head, own)
    tied = config["tie_word_embeddings"]
    if head is None:
        tensors = _file_tensors(
            encoder, params, tied, under_head=params.get("mlm_head") is not None
        )
    else:
        tensors = _file_tensors(encoder, {"encoder": params["encoder"]}, tied, under_head=True)
        tensors |= task_head.tensors(head, encoder, params["task_head"])
    longest = sentence.max_seq_length if sentence is not None else (own or {}).get("max_length")
    # Refuses before anything is written.
    changed = _tokenizer_json(tokenizer_folder, encoder, longest)
    texts = {hf_config.FILE: config}
    if sentence is not None:
        texts |= sentence_files.files(sentence, encoder.hidden_size)

    with whole_folder.written(folder) as making:
        tensor_file.write(making / tensor_file.SINGLE, tensors)
        _put_tokenizer(tokenizer_folder, making, changed)
        for name, content in texts.items():
            write_json(making / name, content)
    return folder


def describe(
    encoder: Encoder, params: Mapping, head: TaskHead | None = None, own: Mapping | None = None
) -> dict:
    """The `config.json` of a model: of its encoder, and of its head where it has one."""
    mlm_head = params.get("mlm_head")
    tied = mlm_head is None or "decoder" not in mlm_head
    config = hf_config.describe(encoder, mlm_head=mlm_head is not None, tied=tied)
    return config if head is None else config | task_head.describe(head, encoder, own or {})


def copy_tokenizer(encoder: Encoder, source: Path, folder: Path) -> None:
    """Put the tokenizer's files of the folder `source` beside a model of `encoder`.

    Raises:
      UserError: there are none.
    """
    _put_tokenizer(source, folder, _tokenizer_json(source, encoder, None))


def _put_tokenizer(source: Path, folder: Path, changed: Mapping[str, dict]) -> None:
    """Copy the tokenizer's files but for those that are `changed`."""
    for name in TOKENIZER_FILES:
        if name not in changed and (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    for name, content in changed.items():
        write_json(folder / name, content)


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder to save the model to.")
    inside = sorted(path.name for path in folder.iterdir())
    if not inside:
        return
    foreign = [name for name in inside if name not in _REPLACEABLE]
    if hf_config.FILE not in inside or foreign:
        raise UserError(
            f"{folder} holds {(foreign or inside)[0]!r}, so it is not just a saved model and will "
            "not be replaced; give another folder, or move that away."
        )


def _file_tensors(
    encoder: Encoder, params: Mapping, tied: bool, *, under_head: bool
) -> dict[str, np.ndarray]:
    """The tensors as the file has them, after checking that they are exactly those of `encoder`."""
    model_type = encoder.family
    found, count = {}, 0
    for tensor in names.of_params(encoder, params, model_type):
        path, leaf = "/".join(tensor.path), names.get(params, tensor.path)
        if leaf is None:
            raise UserError(f"The parameters lack {path}, which the encoder's settings describe.")
        array = np.asarray(leaf, np.float32)
        array = np.ascontiguousarray(array.T) if tensor.transposed else np.ascontiguousarray(array)
        if array.shape != tensor.shape:
            raise UserError(
                f"The parameter {path} is {np.shape(leaf)}, which the encoder's settings do not "
                f"describe (the file's shape would be {tensor.shape})."
            )
        prefix = names.BASE_PREFIX[model_type] if under_head and tensor.path[0] == "encoder" else ""
        found[prefix + tensor.name] = array
        count += 1
    if model_type == "bert" and not tied:
        own, name = names.DECODER_BIAS
        found[own] = found[name].copy()
    extra = _count_leaves(params) - count
    if extra:
        raise UserError(f"The parameters hold {extra} more than the encoder's settings describe.")
    if model_type == "bert" and not encoder.type_vocab_size:
        # BERT's code always adds a token type; one of zeros adds nothing. `reader` drops it again.
        row = next(row for row in names.EMBEDDINGS if row.path == "embeddings/token_type")
        prefix = names.BASE_PREFIX[model_type] if under_head else ""
        found[prefix + row.bert] = np.zeros((1, encoder.hidden_size), np.float32)
    return found


def _count_leaves(tree: Mapping) -> int:
    return sum(
        _count_leaves(leaf) if isinstance(leaf, Mapping) else leaf is not None
        for leaf in tree.values()
    )


def _tokenizer_json(folder: Path, encoder: Encoder, longest: int | None) -> dict[str, dict]:
    """`tokenizer_config.json` where it must change on the way; the other files are copied.

    BERT's tokenizer returns token types and DistilBERT's model does not take any, so a DistilBERT
    beside BERT's tokenizer fails on `model(**tokenizer(text))`: it gets DistilBERT's. A BERT that
    has no token types is not given any either. One that has them is given them where neither the
    file nor the class says so: transformers' general class makes none by itself. Others cut texts
    to `model_max_length`: to `longest`, which the model was fine-tuned with, and never beyond its
    positions.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise UserError(
            f"{folder} has no tokenizer (tokenizer.json or vocab.txt) to save beside the weights."
        )
    path = folder / "tokenizer_config.json"
    config = json_file.read_if_there(path)
    changed = dict(config)
    if not config.get("tokenizer_class"):
        changed |= _as_it_is(folder)
    kind = changed.get("tokenizer_class")
    if not encoder.type_vocab_size:
        distilbert = encoder.family == "distilbert"
        if distilbert and kind in ("BertTokenizer", "BertTokenizerFast"):
            changed["tokenizer_class"] = f"Distil{kind}"
        changed["model_input_names"] = ["input_ids", "attention_mask"]
    elif (
        encoder.type_vocab_size > 1
        and not tokenizer_config.is_berts(kind)
        # Otherwise it was trained without them.
        and pair_layout.typed(changed, str(kind), str(path))
    ):
        changed["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    wanted = longest or config.get("model_max_length", config.get("max_len"))
    limits = [n for n in (wanted, encoder.max_positions) if isinstance(n, int) and n > 0]
    changed["model_max_length"] = min(limits)
    return {} if path.is_file() and changed == config else {path.name: changed}


def _as_it_is(folder: Path) -> dict:
    """What a `tokenizer_config.json` that names no class is to say, so that texts are read in the
    new folder as in this one: left to itself transformers takes the class of the model that lies
    beside it, and BERT's usual normalizer."""
    words = text_tokenizer.load(folder)
    roles = {
        f"{role}_token": words.fast.id_to_token(getattr(words, f"{role}_id"))
        for role in text_tokenizer.ROLES
    }
    normalizer = json.loads(words.fast.to_str()).get("normalizer") or {}
    if normalizer.get("type") != "BertNormalizer":
        return {"tokenizer_class": "PreTrainedTokenizerFast"} | roles
    names = {"lowercase": "do_lower_case", "handle_chinese_chars": "tokenize_chinese_chars"}
    names["strip_accents"] = "strip_accents"
    stated = {theirs: normalizer[ours] for ours, theirs in names.items() if ours in normalizer}
    return {"tokenizer_class": "BertTokenizer"} | stated


def write_json(path: Path, content: dict | list) -> None:
    """Write readable JSON, and see it onto the disk."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
