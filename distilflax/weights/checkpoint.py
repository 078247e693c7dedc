"""A model in memory, and the fingerprint that says whether two of them are the same."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from distilflax import settings
from distilflax.models import TaskHead
from distilflax.weights import names, sentence


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model as read from a folder.

    Attributes:
      encoder: its architecture.
      params: {"encoder": ..., "mlm_head": ...?, "task_head": ...?}, float32 numpy arrays; see
        `weights/names.py`.
      model_type: `bert` or `distilbert`, as the folder calls itself.
      folder: where its config and weights were read from; the tokenizer's files are there too.
      sentence: what sentence-transformers adds, or None.
      fingerprint: `fingerprint(encoder, params)`.
      ignored: tensors of the file that belong to other heads, by name: not read.
      head: what params["task_head"] is, where it was asked for and is there.
      own: what a head's folder says to this project alone (`weights/task_head.py`).
    """

    encoder: settings.Encoder
    params: dict
    model_type: str
    folder: Path
    sentence: sentence.SentenceFiles | None
    fingerprint: str
    ignored: tuple[str, ...] = ()
    head: TaskHead | None = None
    own: dict = field(default_factory=dict)

    @functools.cached_property
    def vectors(self) -> sentence.SentenceFiles:
        """How a text's vector is made: as `sentence` says, else the mean, of unit length, of as
        much as the tokenizer's files let through."""
        if self.sentence is not None:
            return self.sentence
        longest = sentence.longest(self.folder, self.encoder.max_positions)
        return sentence.SentenceFiles(max_seq_length=longest)


def fingerprint(encoder: settings.Encoder, params: dict) -> str:
    """SHA-256 of what the encoder (and a masked-LM head) computes with: settings, and every
    parameter's float32 bytes. A task's head has its own: `fingerprint_of_head`.

    It does not depend on how a file names, orders, splits or prefixes the tensors, so a model
    that was saved again has the fingerprint that it had.
    """
    paths = [tensor.path for tensor in names.of_params(encoder, params)]
    return _digest(settings.to_json(encoder), params, paths)


def fingerprint_of_head(params: dict) -> str:
    """SHA-256 of every float32 byte of a task's head; empty where `params` has none."""
    paths = sorted(flatten_dict({"task_head": params.get("task_head", {})}))
    return _digest("", params, paths) if paths else ""


def _digest(told: str, params: dict, paths: Sequence[tuple[str, ...]]) -> str:
    digest = hashlib.sha256(told.encode())
    for path in paths:
        array = np.ascontiguousarray(names.get(params, path), np.float32)
        digest.update(f"\n{'/'.join(path)} {array.shape}\n".encode())
        # A view of the array's own memory: nothing is copied, whatever the size.
        digest.update(memoryview(array).cast("B"))
    return digest.hexdigest()
