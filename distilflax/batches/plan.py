"""Which sequences make up which batch: a pure function of (seed, step), in numpy.

An epoch is a fresh permutation of all sequences, cut into windows of some batches. Within a window
the sequences are sorted by length before they are cut into batches, and the batches are then
shuffled: batches hold sequences of like length, hence little padding, and yet their order says
nothing about length. DistilBERT's training code grouped by length for the same reason; doing it by
window keeps it a random access, so that a resumed run needs to know nothing but its step.

The order costs 8 bytes a sequence, less than the lengths and offsets that are in memory anyway.
"""

import bisect
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from distilflax.errors import UserError

WINDOW = 64  # batches: long enough that few cross a bucket's edge, short enough to stay shuffled
BUCKET_STEP = 32  # the widths of a matrix unit's tiles: finer buckets would save no time


@dataclass(frozen=True)
class Batch:
    """The sequences of one global batch, and the length to which all are padded."""

    indices: Int[np.ndarray, "batch"]
    length: int


def bucket_lengths(buckets: tuple[int, ...], max_length: int) -> tuple[int, ...]:
    """The lengths a batch may be padded to, rising: those given, or multiples of 32 up to
    `max_length`, which is always the last."""
    if buckets:
        return tuple(sorted(set(buckets)))
    return (*range(BUCKET_STEP, max_length, BUCKET_STEP), max_length)


def steps_per_epoch(sequences: int, batch_size: int) -> int:
    """Batches in one pass. The remainder of an epoch, other sequences in each, is left out.

    Raises:
      UserError: fewer sequences than one batch.
    """
    if sequences < batch_size:
        raise UserError(
            f"the corpus holds {sequences} training sequences, fewer than one batch of "
            f"{batch_size}; lower config.training.batch_size or add to config.data.sources."
        )
    return sequences // batch_size


def train_plan(
    lengths: Int[np.ndarray, "n"],
    *,
    batch_size: int,
    seed: int,
    buckets: tuple[int, ...],
    window: int = WINDOW,
) -> Callable[[int], Batch]:
    """The function from a step (0, 1, ... without end) to its global batch.

    Nearby steps are cheap one after the other; a far one costs the permutation of its epoch.

    Raises:
      UserError: fewer sequences than one batch, or one that is longer than every bucket.
    """
    epoch_steps = steps_per_epoch(len(lengths), batch_size)
    _check_fit(lengths, buckets)

    @functools.lru_cache(maxsize=1)
    def order(epoch: int) -> Int[np.ndarray, "n"]:
        return order_of(len(lengths), seed, epoch)

    @functools.lru_cache(maxsize=2)
    def batches(epoch: int, first: int) -> Int[np.ndarray, "w batch"]:
        last = min(first + window, epoch_steps)
        drawn = order(epoch)[first * batch_size : last * batch_size]
        by_length = drawn[np.argsort(lengths[drawn], kind="stable")].reshape(-1, batch_size)
        return _rng(seed, epoch, first).permutation(by_length)

    def batch_at(step: int) -> Batch:
        epoch, step = divmod(step, epoch_steps)
        indices = batches(epoch, step - step % window)[step % window]
        return Batch(indices, bucket(lengths[indices], buckets))

    return batch_at


def order_of(number: int, seed: int, epoch: int) -> Int[np.ndarray, "n"]:
    """The order in which an epoch takes its sequences."""
    return _rng(seed, epoch).permutation(number)


def longest_step(
    batch_at: Callable[[int], Batch],
    steps: int,
    lengths: Int[np.ndarray, "n"],
    buckets: tuple[int, ...],
) -> int:
    """The first of `steps` steps of a `train_plan` whose batch is padded to the most.

    Few are looked at where many sequences need the largest of the buckets: most windows have one.
    """
    most = bucket(lengths, buckets)
    found, padded = 0, 0
    for step in range(steps):
        length = batch_at(step).length
        if length > padded:
            found, padded = step, length
        if padded == most:
            break
    return found


def validation_plan(
    lengths: Int[np.ndarray, "n"],
    *,
    batch_size: int,
    buckets: tuple[int, ...],
    rows_at: Callable[[int], int] | None = None,
) -> list[Batch]:
    """Every sequence once, the shortest first; the last batch may be smaller.

    `rows_at` says how many rows a batch of a length has where these are not always `batch_size`:
    never more than that, and never more of longer ones.

    Raises:
      UserError: no sequence, or one that is longer than every bucket.
    """
    if not len(lengths):
        raise UserError(
            "the corpus holds no validation sequence; raise config.data.validation_fraction or "
            "add to config.data.sources."
        )
    _check_fit(lengths, buckets)
    order = np.argsort(lengths, kind="stable")
    batches, first = [], 0
    while first < len(order):
        some = order[first : first + batch_size]
        length = bucket(lengths[some], buckets)
        some = some if rows_at is None else some[: rows_at(length)]
        batches.append(Batch(some, length))
        first += len(some)
    return batches


def _rng(seed: int, *where: int) -> np.random.Generator:
    # A spawn key, because as plain entropy (seed, 3) and (seed, 3, 0) are one and the same stream.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=where))


def bucket(lengths: Int[np.ndarray, "batch"], buckets: tuple[int, ...]) -> int:
    """The least of the lengths `buckets`, which rise, that has room for all of a batch."""
    return buckets[bisect.bisect_left(buckets, int(lengths.max()))]


def _check_fit(lengths: Int[np.ndarray, "n"], buckets: tuple[int, ...]) -> None:
    longest = int(lengths.max())
    if longest > buckets[-1]:
        raise UserError(
            f"the corpus holds a sequence of {longest} tokens but batches are padded to at most "
            f"{buckets[-1]}; raise config.data.max_length and buckets, or prepare the corpus again."
        )
