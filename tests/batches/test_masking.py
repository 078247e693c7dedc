"""Masking: exact budgets, honest probabilities, and nothing that depends on devices or padding."""

import functools
import itertools
import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import stats

from distilflax.batches.masking import at_positions, budget, mask_table, mask_tokens
from distilflax.errors import UserError
from distilflax.settings import Masking

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = (PAD, UNK, CLS, SEP, MASK)
SIZE = 400
IS_SPECIAL = np.arange(SIZE) <= MASK
# Every third ordinary word continues the one before it.
CONTINUES = (np.arange(SIZE) % 3 == 0) & ~IS_SPECIAL
COUNTS = np.random.default_rng(0).zipf(1.5, SIZE).clip(0, 10**9).astype(np.int64)
MODES = (Masking(), Masking(rate=0.5, whole_word=True))


@functools.cache
def jitted(masking):
    return jax.jit(functools.partial(mask_tokens, masking=masking))


def table_for(masking, counts=COUNTS):
    return mask_table(IS_SPECIAL, CONTINUES, MASK, counts, masking)


def rows_of(lengths, width, seed=0):
    """[CLS] words, some of them [UNK], [SEP]; rows of the given lengths.

    What lies beyond is ordinary words, so that only the attention mask tells padding.
    """
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, SIZE, (len(lengths), width)).astype(np.int32)
    for row, length in zip(ids, lengths, strict=True):
        if length:
            row[:length][rng.random(length) < 0.05] = UNK
            row[0], row[length - 1] = CLS, SEP
    mask = (np.arange(width) < np.asarray(lengths)[:, None]).astype(np.int32)
    return ids, mask


def words_of(row, mask):
    """The positions of each word of a row, written the slow way."""
    words = []
    for at, (token, real) in enumerate(zip(row, mask, strict=True)):
        if not real or token in SPECIAL:
            continue
        follows = bool(words) and words[-1][-1] == at - 1
        if CONTINUES[token] and follows:
            words[-1].append(at)
        else:
            words.append([at])
    return words


@pytest.mark.parametrize("masking", MODES, ids=str)
def test_only_ordinary_real_tokens_are_drawn_and_all_else_is_untouched(masking):
    ids, mask = rows_of([0, 2, 3, 4, 17, 40, 64, 64], 64)
    out = jax.tree.map(
        np.asarray, jitted(masking)(jax.random.key(1), ids, mask, table_for(masking))
    )
    assert out.positions.shape == out.labels.shape == (8, budget(64, masking.rate))
    for row in range(8):
        ordinary = [i for i in range(64) if mask[row, i] and ids[row, i] not in SPECIAL]
        used = out.weights[row] == 1
        drawn = out.positions[row][used]
        assert set(out.weights[row]) <= {0.0, 1.0}
        assert (np.diff(used.astype(int)) <= 0).all(), "used slots come first"
        if masking.whole_word:
            assert len(drawn) <= budget(len(ordinary), masking.rate)
        else:
            assert len(drawn) == budget(len(ordinary), masking.rate)
        assert len(set(drawn)) == len(drawn) and set(drawn) <= set(ordinary)
        np.testing.assert_array_equal(out.labels[row][used], ids[row][drawn])
        assert (out.positions[row][~used] == 0).all()
        untouched = np.setdiff1d(np.arange(64), drawn)
        np.testing.assert_array_equal(out.input_ids[row][untouched], ids[row][untouched])
        assert not set(out.input_ids[row][drawn]) & (set(SPECIAL) - {MASK})


def test_budget_rounds_and_is_at_least_one_where_there_is_any():
    assert [budget(n, 0.15) for n in (0, 1, 3, 10, 126, 128)] == [0, 1, 1, 2, 19, 19]
    assert budget(100, 0.0) == 0
    assert all(budget(n, 0.9) <= n for n in range(600))


@pytest.mark.parametrize("masking", MODES, ids=str)
def test_padding_changes_nothing(masking):
    ids, mask = rows_of([9, 20, 14, 3, 51, 50, 0, 2], 51)
    key, table = jax.random.key(7), table_for(masking)
    short = jitted(masking)(key, ids, mask, table)
    slots = short.positions.shape[1]
    wider = [(0, 0), (0, 13)]
    long = jitted(masking)(key, np.pad(ids, wider, constant_values=9), np.pad(mask, wider), table)
    np.testing.assert_array_equal(long.input_ids[:, :51], short.input_ids)
    for name in ("positions", "labels", "weights"):
        np.testing.assert_array_equal(getattr(long, name)[:, :slots], getattr(short, name))
    assert not long.weights[:, slots:].any()


@pytest.mark.parametrize("masking", MODES, ids=str)
def test_devices_change_nothing_and_do_not_talk(masking):
    ids, mask = rows_of([64] * 5 + [30] * 3, 64)
    key, table = jax.random.key(3), table_for(masking)
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    spread = jax.device_put((ids, mask), NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))

    @jax.jit
    def step(key, ids, mask, table):
        masked = mask_tokens(key, ids, mask, table, masking)
        return masked, at_positions(ids, masked.positions)

    compiled = step.lower(key, *spread, table).compile()
    together, labels = compiled(key, *spread, table)
    alone = jitted(masking)(key, ids, mask, table)
    jax.tree.map(np.testing.assert_array_equal, alone, together)
    np.testing.assert_array_equal(labels, alone.labels)
    assert together.input_ids.sharding.spec == PartitionSpec(("data", "fsdp"))
    assert not re.findall(r"all-gather|all-reduce|all-to-all|collective", compiled.as_text())


def test_a_row_does_not_depend_on_the_others():
    ids, mask = rows_of([64] * 8, 64)
    others, other_mask = rows_of([30] * 8, 64, seed=1)
    others[:4], other_mask[:4] = ids[:4], mask[:4]
    key, table, masking = jax.random.key(3), table_for(Masking()), Masking()
    one = jitted(masking)(key, ids, mask, table)
    other = jitted(masking)(key, others, other_mask, table)
    np.testing.assert_array_equal(one.input_ids[:4], other.input_ids[:4])
    np.testing.assert_array_equal(one.positions[:4], other.positions[:4])


def test_another_key_or_row_is_another_mask():
    masking = Masking()
    ids, mask = rows_of([64], 64)
    ids, mask = np.repeat(ids, 8, 0), np.repeat(mask, 8, 0)
    root, table = jax.random.key(0), table_for(masking)
    drawn = {
        tuple(sorted(np.asarray(row).tolist()))
        for step in range(3)
        for row in jitted(masking)(jax.random.fold_in(root, step), ids, mask, table).positions
    }
    assert len(drawn) == 24


def test_mask_keep_random_are_drawn_as_often_as_they_should():
    masking = Masking(mask=0.8, keep=0.1, random=0.1)
    ids, mask = rows_of([128] * 1000, 128)
    out = jitted(masking)(jax.random.key(5), ids, mask, table_for(masking))
    used = np.asarray(out.weights) == 1
    labels = np.asarray(out.labels)[used]
    now = np.asarray(at_positions(out.input_ids, out.positions))[used]
    # A random word is the old one once in `ordinary` times, and then looks kept.
    ordinary = SIZE - len(SPECIAL)
    random = 0.1 * (1 - 1 / ordinary)
    seen = [(now == MASK).sum(), (now == labels).sum(), ((now != MASK) & (now != labels)).sum()]
    expected = np.array([0.8, 0.2 - random, random]) * len(now)
    assert len(now) > 15_000 and stats.chisquare(seen, expected).pvalue > 1e-3

    replaced = np.bincount(now[(now != MASK) & (now != labels)], minlength=SIZE)
    assert not replaced[list(SPECIAL)].any()
    assert stats.chisquare(replaced[5:]).pvalue > 1e-3


@pytest.mark.parametrize("weighting", ("rarity", "uniform"))
def test_positions_are_successive_draws_without_replacement(weighting):
    """Against every ordered pair of draws, enumerated."""
    masking = Masking(rate=0.5, power=0.7, weighting=weighting)
    counts = np.ones(SIZE, np.int64)
    words, counts[[5, 7, 8, 10]] = [5, 7, 8, 10], [1000, 100, 10, 0]
    weights = np.array([1000, 100, 10, 1.0]) ** (-0.7 if weighting == "rarity" else 0)
    rows = 4000
    ids = np.tile(np.array([[CLS, *words, SEP]], np.int32), (rows, 1))
    draw = jitted(Masking(rate=0.5))  # what weighs is in the table
    out = draw(jax.random.key(2), ids, np.ones_like(ids), table_for(masking, counts))
    assert (np.asarray(out.weights).sum(1) == 2).all()
    pairs = list(itertools.permutations(range(4), 2))
    first, second = np.array(pairs).T
    share = weights / weights.sum()
    expected = share[first] * share[second] / (1 - share[first]) * rows
    drawn = [tuple(pair) for pair in (np.asarray(out.positions)[:, :2] - 1).tolist()]
    seen = np.array([drawn.count(pair) for pair in pairs])
    often = expected >= 5
    seen = [*seen[often], seen[~often].sum() + 1e-9]
    expected = [*expected[often], expected[~often].sum() + 1e-9]
    assert stats.chisquare(seen, expected).pvalue > 1e-3


def test_an_extreme_power_still_fills_the_budget():
    masking = Masking(power=60.0)  # 1e9 ** -60 is zero in float32
    counts = np.full(SIZE, 10**9, np.int64)
    ids, mask = rows_of([64] + [0] * 7, 64)
    out = jitted(Masking())(jax.random.key(0), ids, mask, table_for(masking, counts))
    assert out.weights.sum() == budget(int((ids > MASK)[mask == 1].sum()), 0.15)


@pytest.mark.parametrize("seed", range(6))
def test_whole_words_stay_whole_and_no_word_that_fits_is_left(seed):
    masking, rate = Masking(rate=0.5, whole_word=True), 0.5
    ids, mask = rows_of([64, 50, 33, 12, 5, 4, 6, 7], 64, seed)
    out = jitted(masking)(jax.random.key(seed), ids, mask, table_for(masking))
    for row in range(len(ids)):
        words = words_of(ids[row], mask[row])
        drawn = set(np.asarray(out.positions[row])[np.asarray(out.weights[row]) == 1].tolist())
        left = budget(sum(map(len, words)), rate) - len(drawn)
        for word in words:
            assert drawn.issuperset(word) or drawn.isdisjoint(word)
            assert drawn.issuperset(word) or len(word) > left


def test_whole_words_are_drawn_by_their_rarest_piece():
    masking = Masking(rate=0.5, power=0.5, whole_word=True)
    counts = np.ones(SIZE, np.int64)
    common, piece, plain = 5, 6, 7
    assert CONTINUES[piece] and not CONTINUES[[common, plain]].any() and CONTINUES[9]
    counts[[common, piece, plain, 9]] = [10_000, 100, 400, 10_000]
    # Two words of two pieces (weights 1/10 and 1/20), budget 2: one of them is drawn.
    ids = np.tile(np.array([[CLS, common, piece, plain, 9, SEP]], np.int32), (4000, 1))
    out = jitted(masking)(jax.random.key(9), ids, np.ones_like(ids), table_for(masking, counts))
    first = int((np.asarray(out.positions)[:, 0] == 1).sum())
    assert stats.binomtest(first, 4000, 2 / 3).pvalue > 1e-3


def test_a_rate_of_zero_masks_nothing():
    masking = Masking(rate=0.0)
    ids, mask = rows_of([16, 5], 16)
    out = jitted(masking)(jax.random.key(0), ids, mask, table_for(masking))
    np.testing.assert_array_equal(out.input_ids, ids)
    assert out.positions.shape == (2, 0)


def test_at_positions_gathers_hidden_states():
    x = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
    at = np.array([[0, 4], [2, 2], [1, 0]], np.int32)
    got = at_positions(jax.numpy.asarray(x), jax.numpy.asarray(at))
    np.testing.assert_array_equal(got, x[np.arange(3)[:, None], at])


def test_tables_that_cannot_work_are_refused():
    with pytest.raises(UserError, match=r"counts 7 words but the tokenizer has 400; prepare"):
        table_for(Masking(), COUNTS[:7])
    with pytest.raises(UserError, match=r"all 400 words .* special tokens.*give a tokenizer"):
        mask_table(IS_SPECIAL | True, CONTINUES, MASK, COUNTS, Masking())
    with pytest.raises(UserError, match=r"config.masking.whole_word .*none; set it to False"):
        mask_table(IS_SPECIAL, CONTINUES & False, MASK, COUNTS, Masking(whole_word=True))
    mask_table(IS_SPECIAL, CONTINUES & False, MASK, COUNTS, Masking())


def test_a_share_of_the_sequences_is_masked_and_the_others_stay_whole():
    masking = Masking(sequences=0.25)
    ids, mask = rows_of([32] * 512, 32)
    out = jax.tree.map(
        np.asarray, jitted(masking)(jax.random.key(3), ids, mask, table_for(masking))
    )
    whole = jax.tree.map(
        np.asarray, jitted(Masking())(jax.random.key(3), ids, mask, table_for(masking))
    )
    masked = out.weights.any(axis=1)
    # 512 draws at 0.25: four standard deviations are 0.077.
    assert abs(masked.mean() - 0.25) < 0.08
    np.testing.assert_array_equal(out.input_ids[~masked], ids[~masked])
    # A row that is masked is masked as it would be if all were.
    np.testing.assert_array_equal(out.input_ids[masked], whole.input_ids[masked])
    np.testing.assert_array_equal(out.weights[masked], whole.weights[masked])
