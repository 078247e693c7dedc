"""Fewer heads and narrower feed-forwards, chosen by importance; the result is an HF folder again.

Neurons go for good: every layer keeps as many, so that `intermediate_size` says it. The least
squares of those that go, from those that stay, over the texts (`weights/width.py`) is added to what
stays.

Heads stay in the folder as zeros: transformers divides the width by their number, so that with
fewer heads the others would have to be wider. What a head wrote on the mean goes into the bias.
Its query, key, value and output being zero, so is their gradient: a silent head stays silent
through a training with AdamW. The ONNX formats leave it out (`without_silent_heads`), and are
smaller and faster for it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from distilflax import weights
from distilflax.errors import UserError
from distilflax.export import samples
from distilflax.export.importance import Importance
from distilflax.export.subject import Subject
from distilflax.settings import Encoder
from distilflax.weights.width import Moments, all_moments, reading, stand_in

# Least squares on n tokens from p neurons is off by p / (n - p) of what it leaves, on other text.
_TOKENS_A_NEURON = 10


def prune(
    subject: Subject,
    importance: Importance,
    texts: Sequence[str],
    folder: str | Path,
    *,
    heads: int = 0,
    neurons: int = 0,
) -> Path:
    """Write the model with so many heads and neurons a layer, the most important; returns its path.

    0 keeps all. `texts` are what the rest is fitted on. Everything else stays as it is.

    Raises:
      UserError: more than there are, too little text for the fit, or as `weights.save` does.
    """
    encoder, checkpoint = subject.encoder, subject.checkpoint
    check(encoder, heads, neurons)
    fewer_neurons = 0 < neurons < encoder.intermediate_size
    # Of the texts alone: in pairs each comes again, and says little that is new.
    tokens = samples.token_count(subject, texts)
    if fewer_neurons and tokens < _TOKENS_A_NEURON * neurons:
        raise UserError(
            f"The texts have {tokens:,} tokens; {neurons:,} neurons want "
            f"{_TOKENS_A_NEURON * neurons:,} to be fitted on. Give more text."
        )
    alone = {"encoder": checkpoint.params["encoder"]}
    states, moments, _ = all_moments(encoder, alone, _batches(subject, texts), fewer_neurons)

    new = dict(checkpoint.params["encoder"])
    for i in range(encoder.num_layers):
        layer = dict(new[f"layers_{i}"])
        if heads:
            gone = np.argsort(-importance.heads[i], kind="stable")[heads:]
            silent = np.isin(np.arange(encoder.num_heads), gone)
            layer["attention"] = _silenced(layer["attention"], silent, states[2 * i].mean)
        if fewer_neurons:
            layer["ffn"] = _narrowed(layer["ffn"], importance.neurons[i], neurons, moments[i])
        new[f"layers_{i}"] = layer
    return weights.save(
        folder,
        replace(encoder, intermediate_size=neurons or encoder.intermediate_size),
        {**checkpoint.params, "encoder": new},
        tokenizer_folder=checkpoint.folder,
        sentence=checkpoint.sentence,
        head=checkpoint.head,
        own=checkpoint.own,
    )


def check(encoder: Encoder, heads: int, neurons: int) -> None:
    """Raises `UserError` where fewer are there than are to stay."""
    there = {"heads": encoder.num_heads, "neurons": encoder.intermediate_size}
    for what, asked in (("heads", heads), ("neurons", neurons)):
        if not 0 <= asked <= there[what]:
            most = there[what]
            raise UserError(f"--{what}={asked}: the model has {most} a layer; keep 1 to {most}.")


def without_silent_heads(flat: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """Weights by path (`Subject.flat`) whose attentions have no columns for heads that are silent.

    One head stays in a layer that has no other. `size` is the width of a head.
    """
    found = dict(flat)
    for path in flat:
        if not path.endswith("attention/value/kernel"):
            continue
        place = path.removesuffix("value/kernel")
        # Silent is who has no value or writes none; a bias of the values is one, too.
        value = (flat[path] != 0).any(axis=0) | (flat[f"{place}value/bias"] != 0)
        written = value & (flat[f"{place}output/kernel"] != 0).any(axis=1)
        silent = ~written.reshape(-1, size).any(axis=1)
        if not silent.any():
            continue
        silent[0] &= not silent.all()
        kept = np.repeat(~silent, size)
        for part in ("query", "key", "value"):
            for name in ("kernel", "bias"):
                found[f"{place}{part}/{name}"] = flat[f"{place}{part}/{name}"][..., kept]
        found[f"{place}output/kernel"] = flat[f"{place}output/kernel"][kept]
    return found


def _batches(subject: Subject, texts: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """Each text once, and the pairs where the model reads pairs, as `models.encode_batch` takes
    them."""
    found = []
    for batch in samples.unpadded(subject, texts):
        # What is filled up is no real token, and is not counted.
        fill = samples.filling(subject, batch.input_ids.shape[1])
        rows = {name: getattr(batch, name) for name in subject.inputs}
        found.append({name: np.pad(x, ((0, 0), (0, fill))) for name, x in rows.items()})
    return found


def _silenced(attention: dict, silent: Bool[np.ndarray, " H"], mean: np.ndarray) -> dict:
    """All four parts of the silent heads zero, and their mean output in the bias.

    The weights of an attention add up to 1, so that on the mean a head gives its value of the mean.
    """
    columns = np.repeat(silent, len(attention["value"]["bias"]) // len(silent))
    value, output = attention["value"], attention["output"]
    given = np.where(columns, mean @ value["kernel"] + value["bias"], 0.0)
    found = {
        part: {
            "kernel": np.where(columns, 0.0, attention[part]["kernel"]).astype(np.float32),
            "bias": np.where(columns, 0.0, attention[part]["bias"]).astype(np.float32),
        }
        for part in ("query", "key", "value")
    }
    found["output"] = {
        "kernel": np.where(columns[:, None], 0.0, output["kernel"]).astype(np.float32),
        "bias": (output["bias"] + given @ output["kernel"]).astype(np.float32),
    }
    return found


def _narrowed(ffn: dict, importance: np.ndarray, size: int, neurons: Moments) -> dict:
    """The `size` most important neurons, in their order, with the others' least squares."""
    kept = np.sort(np.argsort(-importance, kind="stable")[:size])
    up = {"kernel": ffn["up"]["kernel"][:, kept], "bias": ffn["up"]["bias"][kept]}
    down = reading(ffn["down"], stand_in(neurons, kept))
    return {
        "up": up,
        "down": {name: np.asarray(array, np.float32) for name, array in down.items()},
    }
