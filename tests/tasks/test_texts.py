"""Pairs are cut as `tokenizers` cuts them, and laid out as BERT takes them."""

import numpy as np
import pytest

from distilflax.tasks import texts


def test_pairs_are_those_of_the_tokenizer_itself(words):
    rng = np.random.default_rng(0)
    vocabulary = ["cat", "dog", "mat", "birds"]
    for room in (8, 9, 16):
        for _ in range(40):
            first, second = (" ".join(rng.choice(vocabulary, rng.integers(0, 14))) for _ in "ab")
            words.fast.enable_truncation(room, strategy="longest_first")
            try:
                expected = words.fast.encode(first, second)
            finally:
                words.fast.no_truncation()
            ids, types = texts.pair(words, *texts.pieces(words, [first, second]), room)
            assert ids.tolist() == expected.ids
            assert types.tolist() == expected.type_ids


def test_a_text_is_cut_from_its_end(words):
    (ids,) = texts.pieces(words, ["cat dog mat"])
    assert texts.single(words, ids, 4).tolist() == [words.cls_id, *ids[:2], words.sep_id]


@pytest.mark.parametrize("room", [0, 1, 2, 3])
def test_what_has_no_room_is_cut_to_nothing(words, room):
    ids, other = texts.pieces(words, ["cat dog mat birds", "dog mat"])
    assert texts.single(words, ids, min(room, 2)).tolist() == [words.cls_id, words.sep_id]
    for both in ((ids, other), (other, ids), (ids, other[:0])):
        row, types = texts.pair(words, *both, room)
        assert row.tolist() == [words.cls_id, words.sep_id, words.sep_id]
        assert types.tolist() == [0, 0, 1]


def test_texts_that_hold_anything_are_tokenised(words):
    odd = ["", "\x00\x07", "🎉🎉", "\u202eعربي", "a\ud83d", "x" * 5_000_000]
    assert len(texts.pieces(words, odd)) == len(odd)
