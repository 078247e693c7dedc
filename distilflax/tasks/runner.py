"""A model with a head, run over rows of any length: compiled once for each shape, thread-safe."""

import threading
from collections.abc import Callable, Sequence

import jax
import numpy as np

from distilflax import models
from distilflax.batches import plan
from distilflax.models import TaskHead
from distilflax.settings import Compute, Encoder
from distilflax.tasks import batches
from distilflax.tasks.task import Features

Place = Callable[[dict[str, np.ndarray]], dict]


class Runner:
    """Features to logits.

    `batch_sizes` are the numbers of rows that a batch may have, rising: a single text does not wait
    for a full batch, and yet there are few shapes. `place` puts host arrays where the parameters
    are. `compiled` holds a program for each (rows, length) that was met.
    """

    def __init__(
        self,
        encoder: Encoder,
        compute: Compute,
        head: TaskHead,
        *,
        batch_sizes: Sequence[int],
        buckets: tuple[int, ...],
        place: Place = jax.device_put,
    ):
        self.encoder, self.compute, self.head = encoder, compute, head
        self.batch_sizes, self.buckets = sorted(batch_sizes), buckets
        self.with_types = encoder.type_vocab_size > 1
        self.compiled: dict[tuple[int, int], Callable] = {}
        self._place = place
        self._lock = threading.Lock()

    def logits(
        self,
        params: dict,
        features: Features,
        advance: Callable[[int], None] | None = None,
    ) -> list[np.ndarray]:
        """Float32 logits of each row, [N] of a sequence head and [tokens, N] of others, in the
        order of the rows. `advance` is told how many rows were done."""
        if not features.ids:
            return []
        rows: list[np.ndarray | None] = [None] * len(features.ids)
        waiting = None
        # Fetched one batch late, so that the device never waits for the host.
        for part in self._plan(features):
            started = part, self._start(params, features, part)
            if waiting is not None:
                self._fetch(*waiting, features, rows, advance)
            waiting = started
        self._fetch(*waiting, features, rows, advance)
        return rows

    def _plan(self, features: Features) -> list[plan.Batch]:
        return plan.validation_plan(
            features.lengths, batch_size=self.batch_sizes[-1], buckets=self.buckets
        )

    def _start(self, params: dict, features: Features, part: plan.Batch) -> jax.Array:
        fitting = (size for size in self.batch_sizes if size >= len(part.indices))
        given = batches.collate(
            Features(features.ids, features.types, features.owner),
            part.indices,
            next(fitting),
            part.length,
            with_types=self.with_types,
        )
        placed = self._place(given)
        return self._program(params, placed)(params, placed)

    def _program(self, params: dict, batch: dict) -> Callable:
        shape = batch["input_ids"].shape
        # The lock is held while compiling: two threads that meet a shape share one program.
        with self._lock:
            if shape not in self.compiled:
                self.compiled[shape] = jax.jit(self._forward).lower(params, batch).compile()
            return self.compiled[shape]

    def _forward(self, params: dict, batch: dict) -> jax.Array:
        return models.task_logits(self.encoder, self.compute, self.head, params, **batch)

    def _fetch(
        self,
        part: plan.Batch,
        out: jax.Array,
        features: Features,
        rows: list,
        advance: Callable[[int], None] | None,
    ) -> None:
        host = jax.device_get(out)
        for row, index in zip(host, part.indices, strict=False):
            # A copy, or every row would keep its whole padded batch alive.
            rows[index] = (row if row.ndim == 1 else row[: len(features.ids[index])]).copy()
        if advance is not None:
            advance(len(part.indices))
