import itertools
import random

import pytest

from distilflax.text.passages import beginning, pack, passages

CONTINUES = [False] * 100 + [True] * 100  # ids of 100 and more go on with a word


def documents(seed, longest=40):
    draw = random.Random(seed)
    lengths = [draw.randint(1, longest) for _ in range(draw.randint(1, 9))]
    return [[draw.randrange(200) for _ in range(n)] for n in lengths]


def joined(lists):
    return [*itertools.chain.from_iterable(lists)]


@pytest.mark.parametrize("seed", range(20))
def test_passages_hold_every_id_once_in_order_and_fit(seed):
    paragraphs = documents(seed)
    cut = list(passages(paragraphs, 16, CONTINUES))
    assert joined(cut) == joined(paragraphs)
    assert all(0 < len(passage) <= 16 for passage in cut)


@pytest.mark.parametrize("seed", range(20))
def test_a_paragraph_that_fits_is_never_split(seed):
    paragraphs = documents(seed, longest=16)
    ends = {sum(map(len, paragraphs[: i + 1])) for i in range(len(paragraphs))}
    position = 0
    for passage in passages(paragraphs, 16, CONTINUES):
        position += len(passage)
        assert position in ends


def test_paragraphs_share_a_passage_while_they_fit():
    assert list(passages([[1] * 3, [2] * 3, [3] * 3], 6, CONTINUES)) == [
        [1, 1, 1, 2, 2, 2],
        [3, 3, 3],
    ]


def test_a_long_paragraph_is_cut_before_a_word_and_not_within():
    word = [1, 100, 101]
    assert list(passages([[2, 3, 4, *word, 5]], 5, CONTINUES)) == [[2, 3, 4], [*word, 5]]


def test_a_word_longer_than_a_passage_is_cut_all_the_same():
    endless = [1] + [150] * 20
    cut = list(passages([endless], 8, CONTINUES))
    assert joined(cut) == endless and max(map(len, cut)) == 8


@pytest.mark.parametrize("seed", range(5))
def test_packing_keeps_each_passage_whole_and_wastes_little(seed):
    draw = random.Random(seed)
    found = [[i] * draw.randint(3, 60) for i in range(2000)]
    packed = list(pack(found, 64, 3))
    runs = sorted(
        (sequence[i], sequence.count(sequence[i]))
        for sequence in packed
        for i in range(len(sequence))
        if i == 0 or sequence[i] != sequence[i - 1]
    )
    assert runs == [(i, len(passage)) for i, passage in enumerate(found)]
    assert all(len(sequence) <= 64 for sequence in packed)
    assert sum(map(len, packed)) / (64 * len(packed)) > 0.95


def test_packing_does_not_change_its_input():
    found = [[1] * 10, [2] * 10]
    assert list(pack(found, 32, 3)) == [[1] * 10 + [2] * 10]
    assert found == [[1] * 10, [2] * 10]


@pytest.mark.parametrize("seed", range(20))
def test_the_beginning_of_a_document_is_its_first_ids_up_to_a_word(seed):
    paragraphs = documents(seed)
    whole = joined(paragraphs)
    assert beginning(paragraphs, 0, CONTINUES) == paragraphs
    for keep in (1, 7, 30):
        kept = joined(beginning(paragraphs, keep, CONTINUES))
        assert kept == whole[: len(kept)]
        # Less than is allowed only where the text ends, or within the word that would not fit.
        assert len(kept) == min(keep, len(whole)) or (
            keep // 2 < len(kept) < keep and CONTINUES[whole[keep]]
        )
