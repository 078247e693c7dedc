"""The pipeline: exact resume, one global batch for any process count, zeros for padding."""

import itertools
import json
import sys

import numpy as np
import pytest

from distilflax.batches import plan
from distilflax.batches.pipeline import (
    PackedSequences,
    batch_at,
    fitting_batches,
    steps_per_epoch,
    train_batches,
    validation_batches,
)
from distilflax.errors import UserError
from distilflax.settings import Data
from distilflax.text.shards import Sequences, SequenceWriter

DATA = Data(max_length=64)
LENGTHS = np.random.default_rng(0).integers(3, 65, 150)


@pytest.fixture
def take():
    """`take(iterator, n)`: the next batches; every iterator's thread is ended after the test."""
    opened = []

    def next_batches(iterator, n):
        opened.append(iterator)
        return list(itertools.islice(iterator, n))

    yield next_batches
    for iterator in opened:
        iterator.close()


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_rows_hold_the_sequences_and_padding_is_masked(in_memory, take):
    sequences = in_memory(LENGTHS)
    iterator = train_batches(sequences, batch_size=8, seed=0, data=DATA)
    for batch in take(iterator, steps_per_epoch(sequences, 8)):
        assert set(batch) == {"input_ids", "attention_mask"}
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            assert ids.dtype == mask.dtype == np.int32
            length = mask.sum()
            assert len(ids) in (32, 64)
            np.testing.assert_array_equal(mask, np.arange(len(ids)) < length)
            np.testing.assert_array_equal(ids[:length], sequences.rows[ids[0] // 1000])
            assert not ids[length:].any()


@pytest.mark.parametrize("layout", ("lines", "packed"))
def test_resuming_at_any_step_gives_the_same_rest(in_memory, take, layout):
    sequences = in_memory(LENGTHS, [np.ones(n, np.int32) for n in LENGTHS])

    def start():
        data = Data(max_length=64, layout=layout)
        return train_batches(sequences, batch_size=16, seed=5, data=data)

    whole = take(start(), 24)  # two and a half epochs of 9
    running = start()
    for k in range(0, 24, 3):
        state = json.loads(json.dumps(running.get_state()))
        resumed = start()
        resumed.set_state(state)
        assert_same(take(resumed, 24 - k), whole[k:])
        assert_same(take(running, 3), whole[k : k + 3])


def test_an_iterator_that_has_run_can_be_set_back(in_memory, take):
    iterator = train_batches(in_memory(LENGTHS), batch_size=16, seed=5, data=DATA)
    state = iterator.get_state()
    first = take(iterator, 5)
    iterator.set_state(state)
    assert_same(take(iterator, 5), first)


def test_every_epoch_reads_in_another_order(in_memory, take):
    iterator = train_batches(in_memory(LENGTHS), batch_size=10, seed=0, data=DATA)
    epochs = [
        np.concatenate([batch["input_ids"][:, 0] // 1000 for batch in take(iterator, 15)])
        for _ in range(3)
    ]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(150))
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("count", (2, 4, 8))
@pytest.mark.parametrize("batches", (train_batches, validation_batches))
def test_processes_partition_the_same_global_batch(in_memory, take, count, batches):
    seed = {"seed": 1} if batches is train_batches else {}

    def run(index, count):
        sequences = in_memory(LENGTHS)
        place = {"process_index": index, "process_count": count}
        iterator = batches(sequences, batch_size=16, data=DATA, **seed, **place)
        return take(iterator, 10)

    whole = run(0, 1)
    parts = [run(index, count) for index in range(count)]
    together = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(together, whole)


def test_what_is_fitted_before_training_reads_in_an_order_of_its_own(in_memory, take):
    sequences = in_memory(LENGTHS)

    def fitting(tokens, sequences=sequences):
        return list(fitting_batches(sequences, rows=8, tokens=tokens, seed=3, data=DATA))

    batches = fitting(700)
    held = [int(batch["attention_mask"].sum()) for batch in batches]
    assert sum(held[:-1]) < 700 <= sum(held)
    assert_same(batches, fitting(700))
    assert len(fitting(1)) == 2
    training = take(train_batches(sequences, batch_size=8, seed=3, data=DATA), len(batches))
    ours, theirs = (
        {tuple(row) for batch in some for row in batch["input_ids"][:, :3].tolist()}
        for some in (batches, training)
    )
    assert ours != theirs
    # Half of few sequences make a batch, so that there are two that differ.
    assert [len(batch["input_ids"]) for batch in fitting(1, in_memory(np.full(10, 9)))] == [5, 5]
    # A text of one sequence is read again and again.
    assert len(fitting(30, in_memory(np.array([9])))) == 4


def test_validation_drops_nothing_and_fills_the_last_batch_with_empty_rows(in_memory, take):
    iterator = validation_batches(in_memory(LENGTHS), batch_size=16, data=DATA)
    batches = take(iterator, 1000)
    assert len(batches) == 10
    real = np.concatenate([batch["attention_mask"].any(axis=1) for batch in batches])
    seen = np.concatenate([batch["input_ids"][:, 0] // 1000 for batch in batches])[real]
    np.testing.assert_array_equal(np.sort(seen), np.arange(150))
    assert not real[150:].any() and len(real) == 160
    assert not batches[-1]["input_ids"][-10:].any()
    again = validation_batches(in_memory(LENGTHS), batch_size=16, data=DATA)
    assert_same(take(again, 1000), batches)


def test_packed_positions_restart_and_segments_do_not_cross(in_memory, take):
    rng = np.random.default_rng(0)
    segments = []
    for length in (64, 64, 60, 5):
        cuts = np.sort(rng.choice(np.arange(1, length), min(4, length // 3), replace=False))
        segments.append(1 + np.searchsorted(cuts, np.arange(length), side="right").astype(np.int32))
    sequences = in_memory([len(s) for s in segments], segments)
    data = Data(max_length=64, layout="packed")
    (batch,) = take(train_batches(sequences, batch_size=4, seed=0, data=data), 1)
    assert batch["input_ids"].shape == (4, 64)
    for ids, mask, segment, position in zip(
        *(batch[k] for k in ("input_ids", "attention_mask", "segment_ids", "position_ids")),
        strict=True,
    ):
        expected = segments[ids[0] // 1000]
        np.testing.assert_array_equal(segment[mask == 1], expected)
        assert not segment[mask == 0].any() and not position[mask == 0].any()
        for one in np.unique(expected):
            held = position[segment == one]
            np.testing.assert_array_equal(held, np.arange(len(held)))


def test_packed_sequences_are_not_sorted_by_length(in_memory):
    sequences = in_memory(LENGTHS, [np.ones(n, np.int32) for n in LENGTHS])
    data = Data(max_length=64, layout="packed")
    options = {"batch_size": 8, "seed": 2}
    found = batch_at(sequences, data=data, **options)(3)["input_ids"][:, 0] // 1000
    shuffled = plan.train_plan(sequences.lengths, buckets=(64,), window=1, **options)(3)
    assert found.tolist() == shuffled.indices.tolist()


def test_a_corpus_on_disk_is_what_the_pipeline_takes(in_memory, take, tmp_path):
    rng = np.random.default_rng(0)
    rows = [[1, *rng.integers(5, 90, n).tolist(), 2] for n in rng.integers(1, 60, 40)]
    packed = [row + rows[0] if len(row) + len(rows[0]) <= 64 else row for row in rows]
    for layout, ids in (("lines", rows), ("packed", packed)):
        writer = SequenceWriter(tmp_path, layout, 100)
        writer.write(ids)
        on_disk = Sequences([tmp_path / name for name in writer.close()], cls_id=1)
        assert isinstance(on_disk, PackedSequences)
        memory = in_memory(list(map(len, ids)))
        memory.rows = [np.array(row, np.int32) for row in ids]
        memory.segments = [np.cumsum(row == 1).astype(np.int32) for row in memory.rows]
        data = Data(max_length=64, layout=layout)
        read, expected = (
            take(train_batches(source, batch_size=8, seed=0, data=data), 10)
            for source in (on_disk, memory)
        )
        assert_same(read, expected)


def test_batches_are_prefetched_while_the_loop_is_busy(in_memory, take):
    sequences = in_memory(LENGTHS)
    iterator = train_batches(sequences, batch_size=16, seed=0, data=DATA)
    take(iterator, 1)
    assert len(iterator._buffer) > 1
    # What is ahead in the buffer is not yet consumed, and the state says so.
    assert iterator.get_state()["next_index"] == 1
    iterator.set_state({"next_index": sys.maxsize // 2})
    assert take(iterator, 1)[0]["input_ids"].shape[0] == 16


def test_batches_that_do_not_divide_are_refused(in_memory):
    sequences = in_memory(LENGTHS)
    with pytest.raises(UserError, match=r"training.batch_size 10 .*among 4 processes; make it a m"):
        train_batches(sequences, batch_size=10, seed=0, data=DATA, process_count=4)
    with pytest.raises(UserError, match=r"evaluation.batch_size 10 .*among 4 processes; make it"):
        validation_batches(sequences, batch_size=10, data=DATA, process_count=4)
    with pytest.raises(UserError, match=r"holds 150 training sequences"):
        train_batches(sequences, batch_size=151, seed=0, data=DATA)
    with pytest.raises(UserError, match=r"holds 150 training sequences"):
        steps_per_epoch(sequences, 151)
