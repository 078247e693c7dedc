"""LiteRT (TFLite) files: written from the weights, and run by LiteRT's interpreter with XNNPACK.

Only this file, `litert_graph` and `litert_model` need the package of the extra `litert`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from distilflax.errors import UserError, first_line
from distilflax.export import litert_model
from distilflax.export.parity import Run
from distilflax.export.samples import Batch
from distilflax.export.subject import Subject

FILE = "model.tflite"
# What has an entry for each token, beside the logits of some heads.
_OF_TOKENS = frozenset({"last_hidden_state", "start_logits", "end_logits"})
_SHORTEST = 3  # a pair of empty texts: [CLS] [SEP] [SEP]


def write(
    subject: Subject, folder: Path, *, int8: bool, lengths: Sequence[int] = ()
) -> dict[str, Any]:
    """Write model.tflite; returns what the manifest says of it.

    Args:
      int8: weights and embeddings of 8 bits, activations quantised as they come.
      lengths: one graph for each, which share their weights in the file; without any there is one
        graph, which takes every length.

    Raises:
      UserError: a length that the model has no positions for or that no pair fits into, or a model
        too large for one file.
    """
    most = subject.encoder.max_positions
    for length in lengths:
        if not _SHORTEST <= length <= most:
            raise UserError(
                f"--lengths={length}: [CLS] and [SEP] take up to {_SHORTEST} tokens, and the model "
                f"has {most} positions; choose {_SHORTEST} to {most}."
            )
    chosen = sorted(set(lengths)) or [None]
    file = litert_model.build(
        subject.settings(), subject.flat(), chosen, with_types=subject.with_types, int8=int8
    )
    file.write(folder / FILE)
    weights = {"weights": "float32"}
    if int8:
        weights = {
            "weights": "int8, -127 to 127, one scale for each output; the last layer of a task's "
            "head in float32",
            "activations": "int8, one scale for each token, as they come",
        }
    return {
        "batch": 1,
        "length": [1, chosen[-1] or most],
        "signatures": {litert_model.key(length): length for length in chosen},
        **weights,
    }


def interpreter(path: Path, threads: int | None = None) -> Interpreter:
    """LiteRT on the CPU with so many threads; its own choice if none is given.

    Raises:
      UserError: a file that this version does not load.
    """
    try:
        return Interpreter(model_path=str(path), num_threads=threads)
    except (ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise UserError(
            f"LiteRT does not load {path} ({reason[:300]}); export the model again, or update "
            "ai-edge-litert."
        ) from None


def load(folder: Path, manifest: dict[str, Any], threads: int | None = None) -> Run:
    """The file in an interpreter, which takes one row after the other; raises as it does.

    A row goes in without the padding at its end, or with as much as its graph needs, and what comes
    of padding is zeros.

    Raises (when called):
      UserError: more tokens than the longest graph takes.
    """
    path, model = folder / FILE, manifest["model"]
    opened = interpreter(path, threads)
    runners = {length: opened.get_signature_runner(name) for name, length in _signatures(manifest)}
    most = max(length or model["max_positions"] for length in runners)
    of_tokens = _OF_TOKENS | ({"logits"} if model["head"] in ("masked_lm", "token") else set())

    def row(columns: Batch) -> dict[str, np.ndarray]:
        """One text; `columns` are vectors."""
        real = int(columns.attention_mask.nonzero()[0].max(initial=0)) + 1
        if real > most:
            raise UserError(
                f"{path} takes at most {most} tokens, and a text has {real}; cut it, or export the "
                "model with other --lengths."
            )
        size = real if None in runners else min(length for length in runners if length >= real)
        given = {name: _sized(getattr(columns, name), size)[None] for name in model["inputs"]}
        found = runners.get(size, runners.get(None))(**given)
        length = len(columns.input_ids)
        return {
            name: _sized(array[0][:real], length) if name in of_tokens else array[0]
            for name, array in found.items()
        }

    def run(batch: Batch) -> dict[str, np.ndarray]:
        integers = (array.astype(np.int32) for array in batch)
        rows = [row(Batch(*columns)) for columns in zip(*integers, strict=True)]
        return {name: np.stack([found[name] for found in rows]) for name in model["outputs"]}

    return run


def _signatures(manifest: dict[str, Any]) -> list[tuple[str, int | None]]:
    """The names of the graphs, and the length that each takes; None is any."""
    listed = manifest.get("signatures")
    if not isinstance(listed, dict) or not listed:
        raise UserError("The manifest of the LiteRT file names no signatures; export it again.")
    return list(listed.items())


def _sized(array: np.ndarray, length: int) -> np.ndarray:
    """The first `length` entries, with zeros where there are not as many."""
    found = np.zeros((length, *array.shape[1:]), array.dtype)
    found[: len(array)] = array[:length]
    return found
