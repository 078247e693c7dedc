"""A model run over rows of any length: compiled once for each shape, and thread-safe."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Int

from distilflax.batches import plan
from distilflax.tasks import batches
from distilflax.tasks.task import Features

T = TypeVar("T")

# (params, **batch) to an array: one vector a row, or one a token.
Forward = Callable[..., jax.Array]
Place = Callable[[dict[str, np.ndarray]], dict]


class Runner:
    """Features to what `forward` computes of them.

    `batch_sizes` are the numbers of rows that a batch may have: a single text does not wait for a
    full batch, and yet there are few shapes. Long rows come in smaller full batches
    (`batches.rows_at`). A row that comes again, such as a document that answers many queries, is
    computed once. `with_types` passes token types on. `place` puts host arrays where the
    parameters are, divided among `shards` devices. `compiled` holds a program for each (rows,
    length) met so far.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        with_types: bool,
        batch_sizes: Sequence[int],
        buckets: tuple[int, ...],
        place: Place = jax.device_put,
        shards: int = 1,
    ):
        self.batch_sizes, self.buckets = sorted(batch_sizes), buckets
        self.compiled: dict[tuple[int, ...], Callable] = {}
        self._with_types, self._place, self._shards = with_types, place, shards
        self._jitted = jax.jit(lambda params, batch: forward(params, **batch))
        self._lock = threading.Lock()

    def __call__(self, params: dict, features: Features) -> list[np.ndarray]:
        """What was computed of each row, in the order of the rows: [N], or [tokens, N]. Equal rows
        share one array."""
        if not features.ids:
            return []
        first, number = distinct(features, with_types=self._with_types)
        rows: list[np.ndarray | None] = [None] * len(features.ids)
        parts = self._plan(features.lengths[first])
        parts = [plan.Batch(first[part.indices], part.length) for part in parts]
        for part, out in one_late((part, self._start(params, features, part)) for part in parts):
            _fetch(part, out, features, rows)
        return [rows[first[i]] for i in number]

    def _plan(self, lengths: Int[np.ndarray, "rows"]) -> list[plan.Batch]:
        return plan.validation_plan(
            lengths,
            batch_size=self.batch_sizes[-1],
            buckets=self.buckets,
            rows_at=self._rows_at,
        )

    def _rows_at(self, length: int) -> int:
        return batches.rows_at(length, self.batch_sizes[-1], self._shards)

    def _start(self, params: dict, features: Features, part: plan.Batch) -> jax.Array:
        sizes = (*self.batch_sizes[:-1], self._rows_at(part.length))
        size = min(size for size in sizes if size >= len(part.indices))
        given = batches.collate(
            Features(features.ids, features.types, features.owner),
            part.indices,
            size,
            part.length,
            with_types=self._with_types,
        )
        placed = self._place(given)
        return self._program(params, placed)(params, placed)

    def _program(self, params: dict, batch: dict) -> Callable:
        shape = batch["input_ids"].shape
        # The lock is held while compiling: two threads that meet a shape share one program.
        with self._lock:
            if shape not in self.compiled:
                self.compiled[shape] = self._jitted.lower(params, batch).compile()
            return self.compiled[shape]


def distinct(
    features: Features, *, with_types: bool
) -> tuple[Int[np.ndarray, "distinct"], Int[np.ndarray, "rows"]]:
    """(where each row that is like none before it stands, which of these every row is like)."""
    read = [features.ids, features.types] if with_types else [features.ids]
    seen: dict[tuple[bytes, ...], int] = {}
    first, number = [], []
    for i, row in enumerate(zip(*read, strict=True)):
        known = seen.setdefault(tuple(part.tobytes() for part in row), len(first))
        if known == len(first):
            first.append(i)
        number.append(known)
    return np.array(first, np.int64), np.array(number, np.int64)


def one_late(started: Iterable[T]) -> Iterator[T]:
    """The same, each when the next has been started: while the host fetches what was computed of
    one batch, the device is at work on the next."""
    waiting = []
    for batch in started:
        yield from waiting
        waiting = [batch]
    yield from waiting


def _fetch(part: plan.Batch, out: jax.Array, features: Features, rows: list) -> None:
    host = jax.device_get(out)
    for row, index in zip(host, part.indices, strict=False):
        # A copy, or every row would keep its whole padded batch alive.
        rows[index] = (row if row.ndim == 1 else row[: len(features.ids[index])]).copy()
