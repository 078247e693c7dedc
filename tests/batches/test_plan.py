"""The plan: every epoch a new permutation, little padding, and nothing but (seed, step)."""

import numpy as np
import pytest

from distilflax.batches.plan import (
    bucket_lengths,
    longest_step,
    steps_per_epoch,
    train_plan,
    validation_plan,
)
from distilflax.errors import UserError

LENGTHS = np.random.default_rng(0).integers(3, 129, 1000).astype(np.int32)
BUCKETS = (32, 64, 96, 128)


def plan_of(seed=0, lengths=LENGTHS, batch_size=8, **kwargs):
    return train_plan(lengths, batch_size=batch_size, seed=seed, buckets=BUCKETS, **kwargs)


def epoch_of(batch_at, epoch, steps=125):
    return [batch_at(epoch * steps + step) for step in range(steps)]


def test_an_epoch_is_a_permutation_and_the_next_is_another():
    batch_at = plan_of()
    first, second = (
        np.concatenate([b.indices for b in epoch_of(batch_at, epoch)]) for epoch in (0, 1)
    )
    for order in (first, second):
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    # Two unrelated orders of 1000 agree at one place on average.
    assert (first == second).sum() < 10
    assert (first == np.concatenate([b.indices for b in epoch_of(plan_of(1), 0)])).sum() < 10


def test_the_remainder_that_is_left_out_is_another_in_every_epoch():
    assert steps_per_epoch(1000, 16) == 62
    batch_at = plan_of(batch_size=16)
    seen = [
        {int(i) for batch in epoch_of(batch_at, epoch, 62) for i in batch.indices}
        for epoch in range(5)
    ]
    assert all(len(epoch) == 992 for epoch in seen)
    assert len(set.union(*seen)) == 1000


def test_a_batch_is_a_function_of_seed_and_step_alone():
    forwards, backwards = plan_of(3), plan_of(3)
    steps = range(0, 400, 7)
    expected = [forwards(step) for step in steps]
    for step, batch in reversed(list(zip(steps, expected, strict=True))):
        again = backwards(step)
        np.testing.assert_array_equal(again.indices, batch.indices)
        assert again.length == batch.length


def test_batches_are_padded_to_the_smallest_bucket_that_holds_them():
    for batch in epoch_of(plan_of(), 0):
        longest = LENGTHS[batch.indices].max()
        assert batch.length == min(bucket for bucket in BUCKETS if bucket >= longest)


def test_the_longest_batch_of_a_run_is_found_without_looking_at_all():
    few = np.full(1000, 40, np.int32)
    few[7] = 128  # Its batch is in the first epoch, somewhere.
    for lengths, steps in ((LENGTHS, 125), (few, 125), (few, 3)):
        padded = [plan_of(lengths=lengths)(step).length for step in range(steps)]
        asked, batch_at = [], plan_of(lengths=lengths)

        def seen(step, asked=asked, batch_at=batch_at):
            asked.append(step)
            return batch_at(step)

        found = longest_step(seen, steps, lengths, BUCKETS)
        assert found == padded.index(max(padded))
        assert len(asked) == (found + 1 if max(padded) == 128 else steps)


def test_windows_group_by_length_so_that_little_is_padding():
    def filled(window):
        batches = epoch_of(plan_of(window=window), 0)
        return LENGTHS.sum() / sum(8 * batch.length for batch in batches)

    # What no grouping could beat: every sequence in the smallest bucket that holds it.
    best = LENGTHS.sum() / np.array(BUCKETS)[np.searchsorted(BUCKETS, LENGTHS)].sum()
    assert filled(64) > 0.95 * best > 1.2 * filled(1)


def test_the_order_of_batches_says_nothing_about_length():
    lengths = [batch.length for epoch in range(8) for batch in epoch_of(plan_of(), epoch)]
    correlation = np.corrcoef(lengths[:-1], lengths[1:])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(len(lengths))


def test_buckets_default_to_multiples_of_32_up_to_the_longest():
    assert bucket_lengths((), 128) == (32, 64, 96, 128)
    assert bucket_lengths((), 100) == (32, 64, 96, 100)
    assert bucket_lengths((), 20) == (20,)
    assert bucket_lengths((128, 24, 24), 128) == (24, 128)


def test_validation_takes_everything_once_and_the_shortest_first():
    batches = validation_plan(LENGTHS, batch_size=48, buckets=BUCKETS)
    order = np.concatenate([batch.indices for batch in batches])
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert (np.diff(LENGTHS[order]) >= 0).all()
    assert [len(batch.indices) for batch in batches] == [48] * 20 + [40]
    assert [
        len(b.indices) for b in validation_plan(LENGTHS[:8], batch_size=8, buckets=BUCKETS)
    ] == [8]


def test_longer_sequences_come_in_smaller_batches_where_that_is_asked_for():
    def rows_at(length):
        return 48 if length <= 64 else 12

    batches = validation_plan(LENGTHS, batch_size=48, buckets=BUCKETS, rows_at=rows_at)
    order = np.concatenate([batch.indices for batch in batches])
    np.testing.assert_array_equal(order, np.argsort(LENGTHS, kind="stable"))
    assert all(len(batch.indices) <= rows_at(batch.length) for batch in batches)
    assert all(LENGTHS[batch.indices].max() <= batch.length for batch in batches)


def test_corpora_that_cannot_fill_a_batch_are_refused():
    with pytest.raises(UserError, match=r"7 training sequences.*batch of 8; lower config.training"):
        plan_of(lengths=LENGTHS[:7])
    with pytest.raises(UserError, match=r"no validation sequence; raise config.data.validation_f"):
        validation_plan(LENGTHS[:0], batch_size=8, buckets=BUCKETS)
    with pytest.raises(UserError, match=r"sequence of 129 tokens.*at most 128; raise config.data"):
        plan_of(lengths=np.append(LENGTHS, np.int32(129)))
