"""Sequences on disk to batches of host arrays, prefetched off the main loop with grain.

The plan says which sequences a step takes; grain counts the steps, remembers the count (that is
the whole iterator state) and runs the collation ahead of the loop in a thread.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Bool, Int

from distilflax.batches import plan
from distilflax.errors import UserError
from distilflax.settings import Data

HostBatch = dict[str, Int[np.ndarray, "rows length"]]

# One thread: collation is numpy that holds the interpreter's lock, so a second would only wait.
# Eight batches ahead cover the permutation that begins an epoch.
_READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)

_FITTING = 1  # what a seed is for, beside training; part of what a seed means


@runtime_checkable
class Sequences(Protocol):
    """What the pipeline needs of a corpus: random access by many indices at once."""

    @property
    def lengths(self) -> Int[np.ndarray, "n"]:
        """Tokens of each sequence, special tokens included."""
        ...

    def gather(self, indices: Int[np.ndarray, "rows"]) -> Int[np.ndarray, "tokens"]:
        """The ids of the sequences at `indices`, one after the other."""
        ...


@runtime_checkable
class PackedSequences(Sequences, Protocol):
    """Sequences that hold several passages each, as the layout `packed` needs them."""

    def gather_segments(self, indices: Int[np.ndarray, "rows"]) -> Int[np.ndarray, "tokens"]:
        """Likewise: which passage (1, 2, ...) of its sequence each token belongs to."""
        ...


def train_batches(
    sequences: Sequences,
    *,
    batch_size: int,
    seed: int,
    data: Data,
    process_index: int = 0,
    process_count: int = 1,
    beside: Callable[[int, HostBatch], Mapping[str, np.ndarray]] | None = None,
) -> grain.DatasetIterator:
    """This process's rows of every global batch, epoch after epoch without end.

    Batch i is `batch_at(i)`, and `get_state`/`set_state` (a small JSON-able dict) resume exactly.
    `beside` adds arrays to batch i: it is called with i and the batch, ahead of the loop.
    `close()` ends the prefetching thread.

    Raises:
      UserError: the batch does not divide among the processes, or fewer sequences than a batch.
    """
    collated = batch_at(
        sequences,
        batch_size=batch_size,
        seed=seed,
        data=data,
        process_index=process_index,
        process_count=process_count,
    )

    def with_others(step: int) -> dict[str, np.ndarray]:
        batch = collated(step)
        return batch if beside is None else {**batch, **beside(step, batch)}

    return iter(grain.MapDataset.range(sys.maxsize).map(with_others).to_iter_dataset(_READ))


def batch_at(
    sequences: Sequences,
    *,
    batch_size: int,
    seed: int,
    data: Data,
    process_index: int = 0,
    process_count: int = 1,
) -> Callable[[int], HostBatch]:
    """The function from a step to this process's rows of its global batch.

    Batch i is a pure function of (seed, i), and the global batch is the same for any number of
    processes. All processes pad to the same length, which is one of few buckets so that a step
    compiles once for each. What does not fill a batch at the end of an epoch is left out of that
    epoch.

    A batch is a dict of int32 arrays [batch_size / process_count, length]: `input_ids`,
    `attention_mask` (1 real, 0 padding) and, for the layout `packed`, `segment_ids` (1, 2, ...;
    0 on padding) and `position_ids` (from 0 in each segment). Padding has id 0: the attention
    mask, not the id, says what is padding.

    Raises:
      UserError: the batch does not divide among the processes, or fewer sequences than a batch.
    """
    if batch_size % process_count:
        raise UserError(
            f"config.training.batch_size {batch_size} does not divide among {process_count} "
            f"processes; make it a multiple of {process_count}."
        )
    packed = data.layout == "packed"
    planned = _planned(sequences, batch_size, seed, data)
    rows = batch_size // process_count
    mine = slice(process_index * rows, (process_index + 1) * rows)

    def collate_step(step: int) -> HostBatch:
        batch = planned(step)
        return collate(sequences, batch.indices[mine], rows, batch.length, packed)

    return collate_step


def longest_step(
    sequences: Sequences, *, steps: int, batch_size: int, seed: int, data: Data
) -> int:
    """The first of `steps` steps whose batch, of those of `train_batches`, is padded to the most.

    Raises:
      UserError: fewer sequences than a batch.
    """
    planned = _planned(sequences, batch_size, seed, data)
    return plan.longest_step(planned, steps, sequences.lengths, _buckets(data))


def fitting_batches(
    sequences: Sequences, *, rows: int, tokens: int, seed: int, data: Data
) -> Iterator[HostBatch]:
    """Batches of at most `rows` sequences, at least two, until they hold `tokens` real tokens.

    For what is fitted before training begins. The order is another than that of `train_batches`
    for the same seed: training on the very text of the fit would begin where it is overfitted.
    """
    other = int(np.random.SeedSequence([seed, _FITTING]).generate_state(1)[0])
    rows = max(1, min(rows, len(sequences.lengths) // 2))
    batches = train_batches(sequences, batch_size=rows, seed=other, data=data)
    given, number = 0, 0
    try:
        while given < tokens or number < 2:
            batch = next(batches)
            given, number = given + int(batch["attention_mask"].sum()), number + 1
            yield batch
    finally:
        batches.close()


def validation_batches(
    sequences: Sequences,
    *,
    batch_size: int,
    data: Data,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """One pass over every sequence, the shortest first: the same batches each time.

    As `train_batches`, except that the last batch is filled up with rows whose attention mask is
    zero throughout: nothing is dropped, and every batch of a bucket has one shape.

    Raises:
      UserError: the batch does not divide among the processes, or there is no sequence.
    """
    if batch_size % process_count:
        raise UserError(
            f"config.evaluation.batch_size {batch_size} does not divide among {process_count} "
            f"processes; make it a multiple of {process_count}."
        )
    batches = plan.validation_plan(sequences.lengths, batch_size=batch_size, buckets=_buckets(data))
    rows = batch_size // process_count
    mine = slice(process_index * rows, (process_index + 1) * rows)

    def collate_number(number: int) -> HostBatch:
        batch = batches[number]
        packed = data.layout == "packed"
        return collate(sequences, batch.indices[mine], rows, batch.length, packed)

    return iter(grain.MapDataset.range(len(batches)).map(collate_number).to_iter_dataset(_READ))


def steps_per_epoch(sequences: Sequences, batch_size: int) -> int:
    """How many steps of `train_batches` make an epoch; raises `UserError` if there is none."""
    return plan.steps_per_epoch(len(sequences.lengths), batch_size)


def collate(
    sequences: Sequences,
    indices: Int[np.ndarray, "n"],
    rows: int,
    length: int,
    packed: bool = False,
) -> HostBatch:
    """The sequences at `indices`, one a row, padded with zeros to [rows, length] int32.

    Rows beyond `indices` are padding throughout. No Python runs per token or per row.
    """
    lengths = np.zeros(rows, np.int64)
    lengths[: len(indices)] = sequences.lengths[indices]
    real = np.arange(length) < lengths[:, None]

    batch = {
        "input_ids": _padded(sequences.gather(indices), real),
        "attention_mask": real.astype(np.int32),
    }
    if packed:
        segments = _padded(sequences.gather_segments(indices), real)
        batch |= {"segment_ids": segments, "position_ids": positions_in_segment(segments)}
    return batch


def _padded(
    tokens: Int[np.ndarray, "tokens"], real: Bool[np.ndarray, "rows length"]
) -> Int[np.ndarray, "rows length"]:
    out = np.zeros(real.shape, np.int32)
    out[real] = tokens
    return out


def positions_in_segment(
    segments: Int[np.ndarray, "rows length"],
) -> Int[np.ndarray, "rows length"]:
    """0, 1, 2, ... from where each run of equal segment ids begins; 0 on padding."""
    at = np.broadcast_to(np.arange(segments.shape[1], dtype=np.int32), segments.shape)
    begins = np.diff(segments, axis=1, prepend=-1) != 0
    return np.where(segments > 0, at - np.maximum.accumulate(at * begins, axis=1), 0)


def _planned(
    sequences: Sequences, batch_size: int, seed: int, data: Data
) -> Callable[[int], plan.Batch]:
    return plan.train_plan(
        sequences.lengths,
        batch_size=batch_size,
        seed=seed,
        buckets=_buckets(data),
        # Packed sequences are equally long: sorting them would only take from the shuffle.
        window=1 if data.layout == "packed" else plan.WINDOW,
    )


def _buckets(data: Data) -> tuple[int, ...]:
    if data.layout == "packed":
        return (data.max_length,)
    return plan.bucket_lengths(data.buckets, data.max_length)
