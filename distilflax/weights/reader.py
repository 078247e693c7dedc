"""A Hugging Face folder to a `Checkpoint`.

Everything is checked on descriptions first (`config.json`, the headers of the weights, the shapes
that follow from both); only then is memory taken and a tensor read.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distilflax.errors import UserError
from distilflax.settings import Encoder
from distilflax.weights import hf_config, names, sentence, source, task_head, tensor_file
from distilflax.weights.checkpoint import Checkpoint, fingerprint
from distilflax.weights.tensor_file import Entry

_WORD = "embeddings.word_embeddings.weight"


class _Plan(NamedTuple):
    """What will be read: our tensors with their entries, and the names that are left out."""

    encoder: Encoder
    tensors: list[tuple[names.Tensor, str, Entry]]
    ignored: tuple[str, ...]


def load(path: str | Path, *, with_task_head: bool = False) -> Checkpoint:
    """Read a BERT or DistilBERT, with or without its masked-LM head.

    `path` is a folder, a hub name, or `package:NAME/SUBFOLDER`. float16 and bfloat16 weights become
    float32. A decoder that equals the word embeddings is tied to them. `with_task_head` reads the
    head of a fine-tuned model too, where there is one; without, it is passed over.

    Raises:
      UserError: no such model, an architecture that is not supported, a damaged file, a tensor that
        is missing, unknown or misshapen: in one sentence, before any tensor is read.
    """
    found = source.find(path)
    folder = sentence.encoder_folder(found)
    description = hf_config.read(folder)
    entries = tensor_file.entries(folder, found)
    plan = _plan(folder, description, entries)
    sentence_files = sentence.read(found, plan.encoder.max_positions)

    by_name = {name: tensor for tensor, name, _ in plan.tensors}
    params: dict = {}
    for name, array in tensor_file.read((name, entry) for _, name, entry in plan.tensors):
        tensor = by_name[name]
        array = np.ascontiguousarray(array.T) if tensor.transposed else array
        names.put(params, tensor.path, array)

    headed = None
    if with_task_head:
        headed = task_head.read(folder, plan.encoder, {n: entries[n] for n in plan.ignored})
    if headed is not None:
        params["task_head"] = headed.params

    if description.tied:
        _tie(params)
    encoder = _drop_idle_token_type(plan.encoder, params)
    return Checkpoint(
        encoder=encoder,
        params=params,
        model_type=description.model_type,
        folder=folder,
        sentence=sentence_files,
        fingerprint=fingerprint(encoder, params),
        ignored=plan.ignored,
        head=headed and headed.head,
        own=headed.own if headed else {},
    )


def _plan(folder: Path, description: hf_config.Description, entries: Mapping[str, Entry]) -> _Plan:
    """Match what the files hold with what the description promises; every tensor and shape."""
    model_type = description.model_type
    prefix, by_name = _without_prefixes(folder, model_type, entries)
    head_names = {row.bert if model_type == "bert" else row.distilbert for row in names.MLM_HEAD}
    ignored = _take_decoder_bias(model_type, by_name)
    decoder_name = (
        names.MLM_HEAD[-1].bert if model_type == "bert" else names.MLM_HEAD[-1].distilbert
    )

    pooler = model_type == "bert" and any(name.startswith("pooler.") for name in by_name)
    encoder = replace(description.encoder, pooler=pooler)
    mlm_head = not head_names.isdisjoint(by_name)
    decoder = mlm_head and (decoder_name in by_name or not description.tied)

    planned = []
    for tensor in names.tensors(encoder, model_type, mlm_head=mlm_head, decoder=decoder):
        name = by_name.pop(tensor.name, None)
        if name is None:
            expected = prefix + tensor.name if tensor.path[0] == "encoder" else tensor.name
            raise UserError(
                f"{_file_of(folder, entries)} lacks tensor {expected!r} "
                f"({_show(tensor.shape)}), which the {encoder.num_layers}-layer {model_type} that "
                f"{hf_config.FILE} describes has; weights and config do not belong together."
            )
        found = entries[name]
        if found.shape != tensor.shape:
            raise UserError(
                f"{found.file}: tensor {name!r} is {_show(found.shape)}; {hf_config.FILE} makes it "
                f"{_show(tensor.shape)}: weights and config do not belong together."
            )
        planned.append((tensor, name, found))

    for canonical, name in by_name.items():
        if canonical in names.BUFFERS:
            continue
        if not canonical.startswith(names.OTHER_HEADS):
            raise UserError(
                f"{entries[name].file} holds tensor {name[:200]!r}, for which the "
                f"{encoder.num_layers}-layer {model_type} that {hf_config.FILE} describes has no "
                "place; weights and config do not belong together."
            )
        ignored.append(name)
    return _Plan(encoder, planned, tuple(sorted(ignored)))


def _without_prefixes(
    folder: Path, model_type: str, entries: Mapping[str, Entry]
) -> tuple[str, dict[str, str]]:
    """The prefix of the encoder's names, and {name in the table: name in the file}.

    The word embeddings, which every model has once, give the prefix away: none, `bert.`, or what a
    wrapper adds such as `0.auto_model.`. Heads stand beside `bert.`, inside of the wrapper.
    """
    words = [name for name in entries if name.endswith(_WORD)]
    if len(words) != 1:
        raise UserError(
            f"{_file_of(folder, entries)} holds {len(words)} tensors named {_WORD!r}; a "
            f"{model_type} has exactly one."
        )
    prefix = words[0].removesuffix(_WORD)
    wrapper = prefix.removesuffix(names.BASE_PREFIX[model_type])
    by_name: dict[str, str] = {}
    for name in entries:
        start = prefix if name.startswith(prefix) else wrapper
        canonical = names.modern(name.removeprefix(start))
        if canonical in by_name:
            raise UserError(
                f"{entries[name].file} holds the same tensor twice, as {by_name[canonical]!r} and "
                f"as {name!r}."
            )
        by_name[canonical] = name
    return prefix, by_name


def _take_decoder_bias(model_type: str, by_name: dict[str, str]) -> list[str]:
    """Let the decoder's own bias stand for the head's, where the file has it; returns what it
    displaced. The two are one parameter in a tied model. In an untied one transformers 5 keeps
    both apart, and computes with the decoder's."""
    own, name = names.DECODER_BIAS
    if model_type != "bert" or own not in by_name:
        return []
    displaced = by_name.pop(name, None)
    by_name[name] = by_name.pop(own)
    return [] if displaced is None else [displaced]


def _tie(params: dict) -> None:
    """Drop a decoder that is the word embeddings written out once more.

    One that differs is kept, although the config says tied: what was trained is in the file (and
    transformers 5 reads it so).
    """
    head = params.get("mlm_head", {})
    if "decoder" in head and np.array_equal(
        head["decoder"], params["encoder"]["embeddings"]["word"]
    ):
        del head["decoder"]


def _drop_idle_token_type(encoder: Encoder, params: dict) -> Encoder:
    """Take away a single token type of zeros: it adds nothing, and it is what `save` wrote for an
    encoder without token types that DistilBERT's fixed LayerNorm epsilon cannot hold."""
    embeddings = params["encoder"]["embeddings"]
    if encoder.type_vocab_size == 1 and not embeddings["token_type"].any():
        del embeddings["token_type"]
        return replace(encoder, type_vocab_size=0)
    return encoder


def _file_of(folder: Path, entries: Mapping[str, Entry]) -> Path:
    """The one file of an unsharded model, otherwise the folder: what an error points at."""
    files = {entry.file for entry in entries.values()}
    return files.pop() if len(files) == 1 else folder


def _show(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
