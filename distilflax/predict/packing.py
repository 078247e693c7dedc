"""Sentence vectors of many texts without padding: several share a row, and none sees another.

In batches of like lengths a fifth of what a model computes is still padding, since every length
would need a program of its own. Packed, one program serves all short texts and next to nothing of
it is padding. Krell et al. 2021 (arXiv:2107.02027) pack BERT's training data for the same reason.
"""

import threading
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Int

from distilflax.batches.pipeline import positions_in_segment
from distilflax.tasks.runner import Runner, distinct, one_late
from distilflax.tasks.task import Features

# Tokens of a row, and rows of a batch. Longer rows hold longer texts, but every token is compared
# with all of its row before the mask takes the other texts away.
LENGTH, ROWS = 64, 16


class PackedRunner:
    """Features to one vector a row, as `Runner` makes them, and by it what is not worth packing.

    `forward` is given params, input_ids, attention_mask, position_ids and segment_ids, [16, L],
    and returns [16, L / 2, D]: a vector for each text of each row (`models.pool_passages`). L is
    64, or `longest` where the model takes less. Longer texts, and those that do not fill a batch,
    are left to `runner`.
    """

    def __init__(self, forward: Callable[..., jax.Array], runner: Runner, longest: int):
        self._length = min(LENGTH, longest)
        self._runner, self._jitted = runner, jax.jit(lambda params, batch: forward(params, **batch))
        self._program: Callable | None = None
        self._lock = threading.Lock()

    @property
    def compiled(self) -> int:
        """How many programs were compiled so far."""
        return len(self._runner.compiled) + (self._program is not None)

    def __call__(self, params: dict, features: Features) -> list[np.ndarray]:
        """A vector for each row of the features, in their order; none has token types. Equal rows
        share one array: beside other texts a vector may differ in its last bits."""
        first, number = distinct(features, with_types=False)
        ids, types = ([kind[i] for i in first] for kind in (features.ids, features.types))
        vectors = self._vectors(params, Features(ids, types, np.arange(len(first))))
        return [vectors[i] for i in number]

    def _vectors(self, params: dict, features: Features) -> list[np.ndarray]:
        lengths = features.lengths
        short = np.flatnonzero(lengths <= self._length)
        packed = [[int(short[i]) for i in row] for row in pack(lengths[short], self._length)]
        # The emptiest come last: those go one text a row, in a batch that is as long as they are.
        packed = packed[: len(packed) // ROWS * ROWS]
        vectors: list[np.ndarray | None] = [None] * len(features.ids)
        batches = (packed[first : first + ROWS] for first in range(0, len(packed), ROWS))
        for rows, out in one_late(
            (rows, self._start(params, collate(features, rows, self._length))) for rows in batches
        ):
            _fetch(rows, out, vectors)
        rest = [i for i, vector in enumerate(vectors) if vector is None]
        ids, types = ([kind[i] for i in rest] for kind in (features.ids, features.types))
        others = self._runner(params, Features(ids, types, np.arange(len(rest))))
        for i, vector in zip(rest, others, strict=True):
            vectors[i] = vector
        return vectors

    def _start(self, params: dict, batch: dict[str, np.ndarray]) -> jax.Array:
        placed = jax.device_put(batch)
        with self._lock:
            if self._program is None:
                self._program = self._jitted.lower(params, placed).compile()
        return self._program(params, placed)


def pack(lengths: Int[np.ndarray, "n"], room: int) -> list[list[int]]:
    """The texts of each row, the fullest rows first: each goes, the longest first, where it leaves
    the least room (best fit decreasing).

    `lengths` are from 2 to `room`.
    """
    rows: list[list[int]] = []
    left: list[list[int]] = [[] for _ in range(room + 1)]  # the rows that have so much room left
    for text in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[text])
        tightest = next((space for space in range(length, room + 1) if left[space]), room)
        if left[tightest]:
            row = left[tightest].pop()
        else:
            row = len(rows)
            rows.append([])
        rows[row].append(text)
        left[tightest - length].append(row)
    return [rows[row] for same in left for row in same]


def collate(features: Features, rows: list[list[int]], length: int) -> dict[str, np.ndarray]:
    """Rows of texts as a batch: positions begin anew with each text; segments are 1, 2, ... and 0
    for padding."""
    ids, segments = np.zeros((2, len(rows), length), np.int32)
    for row, texts in enumerate(rows):
        own = [features.ids[i] for i in texts]
        total = sum(map(len, own))
        ids[row, :total] = np.concatenate(own)
        segments[row, :total] = np.repeat(np.arange(1, len(own) + 1), [len(text) for text in own])
    return {
        "input_ids": ids,
        "attention_mask": (segments > 0).astype(np.int32),
        "position_ids": positions_in_segment(segments),
        "segment_ids": segments,
    }


def _fetch(rows: list[list[int]], out: jax.Array, vectors: list) -> None:
    host = jax.device_get(out)
    for row, texts in enumerate(rows):
        for place, text in enumerate(texts):
            # A copy, or every vector would keep its whole batch alive.
            vectors[text] = host[row, place].copy()
