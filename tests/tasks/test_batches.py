"""Rows to batches of few shapes, and the runner that compiles each shape once."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax.tasks import batches
from distilflax.tasks.runner import Runner
from distilflax.tasks.task import NOTHING, Features


def rows(*lengths, **targets):
    ids = [np.arange(1, n + 1, dtype=np.int32) for n in lengths]
    types = [np.ones(n, np.int32) for n in lengths]
    return Features(ids, types, np.arange(len(ids)), targets)


def test_buckets_end_where_rows_may():
    assert batches.buckets(40) == (12, 16, 24, 32, 40)
    assert batches.buckets(16, (8, 64)) == (8, 16)


def test_an_accelerator_compiles_fewer_lengths_and_sees_the_same_rows(monkeypatch):
    lengths = np.random.default_rng(0).integers(3, 41, 100)

    def planned():
        batch_at, _ = batches.training(lengths, batch_size=8, seed=0, buckets=batches.buckets(40))
        return [batch_at(step) for step in range(30)]

    here = planned()
    monkeypatch.setattr(batches.jax, "default_backend", lambda: "gpu")
    assert batches.buckets(40) == (32, 40) and batches.buckets(16, (8, 64)) == (8, 16)
    for ours, theirs in zip(here, planned(), strict=True):
        np.testing.assert_array_equal(ours.indices, theirs.indices)
        assert ours.length <= theirs.length


def test_a_cpu_takes_fewer_of_longer_rows_and_an_accelerator_does_not(monkeypatch):
    assert [batches.rows_at(length, 32) for length in (12, 64, 96, 256, 512)] == [32, 32, 16, 8, 4]
    assert batches.rows_at(512, 1) == 1 and batches.rows_at(512, 12) == 3
    assert batches.rows_at(512, 32, shards=8) == 8 and batches.rows_at(512, 12, shards=4) == 12
    monkeypatch.setattr(batches.jax, "default_backend", lambda: "gpu")
    assert batches.rows_at(512, 32) == 32


def test_long_rows_run_in_smaller_batches_and_all_of_them():
    features = rows(*[600] * 6, *[20] * 9)
    for i, ids in enumerate(features.ids):
        ids += i
    run = Runner(
        lambda params, input_ids, attention_mask: jnp.sum(input_ids, axis=1, keepdims=True),
        with_types=False,
        batch_sizes=(1, 8),
        buckets=(32, 600),
    )
    found = run({}, features)
    assert [int(row[0]) for row in found] == [ids.sum() for ids in features.ids]
    # Two of 600 tokens have room; the ninth short one goes with the first of them.
    assert set(run.compiled) == {(8, 32), (2, 600), (1, 600)}


def test_a_row_that_comes_again_is_computed_once():
    seen = []

    def counting(batch):
        seen.append(int(batch["attention_mask"].any(axis=1).sum()))
        return jax.device_put(batch)

    features = rows(5, 3, 5, 5, 3, 4)
    features.types[3][:] = 0  # The same tokens as another kind of text are another row.
    run = runner(with_types=True, place=counting)
    found = run({"by": jnp.int32(2)}, features)
    assert sum(seen) == 4
    for ids, types, row in zip(features.ids, features.types, found, strict=True):
        np.testing.assert_array_equal(row[:, 0], 2 * ids + types)


def test_padding_has_no_target_of_any_kind():
    features = rows(
        2,
        4,
        label=np.array([3, 4], np.int32),
        value=np.array([0.5, 1.5], np.float32),
        tag=[np.array([1, 2], np.int32), np.array([0, 0, 0, 7], np.int32)],
    )
    teacher = [np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)]
    batch = batches.collate(features, np.array([1, 0]), 4, 5, with_types=True, teacher=teacher)
    assert batch["input_ids"].tolist()[:2] == [[1, 2, 3, 4, 0], [1, 2, 0, 0, 0]]
    assert batch["attention_mask"].sum(1).tolist() == [4, 2, 0, 0]
    assert batch["token_type_ids"].sum() == 6
    assert batch["label"].tolist() == [4, 3, NOTHING, NOTHING]
    np.testing.assert_array_equal(batch["value"], [1.5, 0.5, np.nan, np.nan])
    assert batch["tag"][1].tolist() == [1, 2, NOTHING, NOTHING, NOTHING]
    assert batch["teacher"].shape == (4, 5, 3) and batch["teacher"].sum() == 18
    assert "token_type_ids" not in batches.collate(features, np.array([0]), 1, 2, with_types=False)


@pytest.mark.parametrize("number", [3, 8, 30])
def test_an_epoch_is_at_least_one_batch(number):
    lengths = np.full(number, 4)
    batch_at, of_epoch = batches.training(lengths, batch_size=8, seed=0, buckets=(16,))
    assert of_epoch == max(1, number / 8)
    steps = max(1, number // 8)  # after which the next order begins
    seen = np.concatenate([batch_at(step).indices for step in range(steps)])
    assert len(set(seen)) == len(seen) == min(number, 8 * steps)


def test_batches_of_a_contrast_are_drawn_without_lengths_and_have_no_text_twice():
    rng = np.random.default_rng(0)
    lengths, texts = np.arange(3, 173), rng.integers([0, 30], [30, 60], (170, 2))
    texts[::7, 1] = NOTHING  # which stands in many a batch
    given = {"batch_size": 8, "seed": 0, "buckets": (12, 24, 200), "contrasts": True}
    batch_at, of_epoch = batches.training(lengths, **given, texts=texts)
    assert of_epoch == 170 / 8
    steps = 21
    for epoch in (0, 1):
        drawn = [batch_at(step) for step in range(epoch * steps, (epoch + 1) * steps)]
        rows = np.concatenate([part.indices for part in drawn])
        assert len(rows) == len({*rows.tolist()}) == 8 * steps
        named = [[t for t in texts[part.indices].ravel().tolist() if t >= 0] for part in drawn]
        twice = [len(part) - len({*part}) for part in named]
        # At the end there may be nothing left to take turns with.
        assert sum(twice[:15]) == 0 and sum(twice) < 10
        assert np.mean([np.ptp(lengths[part.indices]) for part in drawn]) > 100
        assert all(part.length >= lengths[part.indices].max() for part in drawn)
    for step in (25, 3, 25):  # of the step alone, wherever a run goes on
        again, _ = batches.training(lengths, **given, texts=texts)
        np.testing.assert_array_equal(again(step).indices, batch_at(step).indices)
    # Where all are alike, or texts may stand twice, an epoch has no row twice all the same.
    for free in (np.zeros((170, 2), int), None):
        alike, _ = batches.training(lengths, **given, texts=free)
        rows = [alike(step).indices for step in range(steps)]
        assert len({*np.concatenate(rows).tolist()}) == 8 * steps
        assert np.mean([np.ptp(lengths[part]) for part in rows]) > 100


def runner(**options):
    def forward(params, input_ids, attention_mask, token_type_ids=0):
        out = (input_ids * params["by"] + token_type_ids).astype(jnp.float32)
        return out[..., None] * attention_mask[..., None]

    options = {"with_types": False, "batch_sizes": (1, 4), "buckets": (4, 8)} | options
    return Runner(forward, **options)


def test_rows_come_back_in_their_order_and_length():
    run, features = runner(), rows(3, 7, 1, 8, 5, 2)
    found = run({"by": jnp.int32(2)}, features)
    for ids, row in zip(features.ids, found, strict=True):
        np.testing.assert_array_equal(row[:, 0], 2 * ids)
    assert run({"by": jnp.int32(2)}, rows()) == []


def test_odd_numbers_and_lengths_compile_few_shapes():
    run, params = runner(), {"by": jnp.int32(1)}
    for number in range(1, 10):
        run(params, rows(*range(1, number)))
    assert set(run.compiled) == {(1, 4), (4, 4), (4, 8), (1, 8)}


def test_threads_share_one_program_for_a_shape():
    run, params, found = runner(), jax.device_put({"by": 3}), {}

    def work(number):
        found[number] = run(params, rows(number, 9 - number))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and set(run.compiled) == {(4, 8)}
    for number, (first, second) in found.items():
        assert (len(first), len(second)) == (number, 9 - number)
        np.testing.assert_array_equal(first[:, 0], 3 * np.arange(1, number + 1))
